"""What augmentations must keep: boxes, masks, crowds, and words such as "left". Examples are drawn by hypothesis.

Scenes have painted objects, each in the colour of its class, so that the pixels tell which object is where.
"""

from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uniperceiver_v2.data.mappers.captions import PairMapper, RetrievalMapper
from uniperceiver_v2.data.mappers.images import ClassificationMapper, DetectionMapper
from uniperceiver_v2.data.mappers.phrases import GroundingMapper
from uniperceiver_v2.data.mappers.rand_augment import OPERATIONS, RandAugment, RandomErasing
from uniperceiver_v2.data.order import numpy_draws_from
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.modeling.pretrained import load_tokenizer

TOKENIZER = load_tokenizer(REPOSITORY / "configs/digit_scenes/text_encoder")
NAMES = ("a", "b", "c", "d", "crowd")
CROWD = 4
few = settings(max_examples=30)
seeds = st.integers(0, 2**31)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("painted")


def input_settings(**changes) -> SimpleNamespace:
    """The part of a configuration that the mappers read."""
    node = {"FORMAT": "RGB", "MIN_SIZE_TRAIN": (40, 60), "MAX_SIZE_TRAIN": 200, "MIN_SIZE_TRAIN_SAMPLING": "choice"}
    node |= {"MIN_SIZE_TEST": 50, "MAX_SIZE_TEST": 200, "RANDOM_FLIP": "none"}
    node |= {"CROP": SimpleNamespace(ENABLED=False, TYPE="relative", SIZE=[0.7, 0.7])}
    return SimpleNamespace(INPUT=SimpleNamespace(**node | changes), MODEL=SimpleNamespace(MASK_ON=True))


def colour(label: int) -> tuple[int, int, int]:
    return 240 - 40 * label, 30, 60 + 40 * label


@st.composite
def painted(draw):
    """(height, width, [(label, is a crowd, x0, y0, x1, y1)]): objects in strips of their own, from left to right."""
    height, width = draw(st.integers(24, 90)), draw(st.integers(40, 120))
    strips = draw(st.integers(1, 4))
    objects = []
    for strip in range(strips):
        low, high = strip * width // strips, (strip + 1) * width // strips
        x0, y0 = draw(st.integers(low, low + 2)), draw(st.integers(0, height // 2))
        label = draw(st.integers(0, CROWD))
        objects.append((label, int(label == CROWD), x0, y0, high - 1, draw(st.integers(y0 + 6, height))))
    return height, width, objects


def record_of(scene, folder, name="scene") -> dict:
    """The record of a scene, with every other mask as a run-length encoding."""
    from pycocotools import mask as mask_api

    height, width, objects = scene
    pixels = np.full((height, width, 3), 250, np.uint8)
    annotations = []
    for number, (label, crowd, x0, y0, x1, y1) in enumerate(objects):
        pixels[y0:y1, x0:x1] = colour(label)
        segmentation = [[x0, y0, x1, y0, x1, y1, x0, y1]]
        if crowd or number % 2:
            segmentation = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
        annotations.append(
            {
                **{"bbox": [x0, y0, x1 - x0, y1 - y0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": label},
                **{"iscrowd": crowd, "segmentation": segmentation},
            }
        )
    path = folder / f"{name}.png"
    Image.fromarray(pixels).save(path, compress_level=0)
    return {"file_name": str(path), "image_id": 1, "annotations": annotations}


def drawn(mapper, record, seed):
    with numpy_draws_from(np.random.default_rng(seed)):
        return mapper(record)


def inside(mask: np.ndarray, by: int) -> np.ndarray:
    """The pixels of a mask that are no nearer than ``by`` to its border or to that of the image."""
    padded = np.pad(mask, by)
    size = mask.shape
    shifts = [(y, x) for y in range(2 * by + 1) for x in range(2 * by + 1)]
    return np.logical_and.reduce([padded[y : y + size[0], x : x + size[1]] for y, x in shifts])


def check_objects(sample, blur: int = 4) -> None:
    """Boxes are around their masks, masks on their objects, and no crowd is an object."""
    image, instances = sample["image"].numpy(), sample["instances"]
    height, width = image.shape[1:]
    assert instances.image_size == (height, width) == tuple(instances.gt_masks.tensor.shape[1:])
    assert CROWD not in instances.gt_classes
    for box, label, mask in zip(instances.gt_boxes.tensor, instances.gt_classes, instances.gt_masks.tensor.numpy()):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        shown = image[:, inside(mask, blur)].astype(int)
        assert np.abs(shown - np.array(colour(int(label)))[:, None]).max(initial=0) <= 1


@few
@given(
    painted(),
    seeds,
    st.integers(20, 100),
    st.tuples(st.floats(0.1, 1), st.floats(1, 2)),
    st.sampled_from(["none", "horizontal", "vertical"]),
    st.booleans(),
)
def test_large_scale_jitter(folder, scene, seed, side, scale, flip, crop):
    cfg = input_settings(RANDOM_FLIP=flip)
    cfg.INPUT.CROP.ENABLED = crop
    mapper = DetectionMapper(cfg, "boxes", NAMES, is_train=True, jitter=(side, *scale))
    sample = drawn(mapper, record_of(scene, folder), seed)
    assert 0 < max(sample["image"].shape[1:]) <= side
    check_objects(sample)


def test_jitter_s_scales_are_those_asked_for(folder):
    record = record_of((50, 100, [(0, 0, 0, 0, 100, 50)]), folder)
    mapper = DetectionMapper(input_settings(), "boxes", NAMES, is_train=True, jitter=(200, 0.1, 2.0))
    samples = [drawn(mapper, record, seed) for seed in range(200)]
    widths = np.array([sample["image"].shape[2] for sample in samples])
    assert widths.min() < 30 and widths.max() == 200  # 0.1 times the square, and the whole of it
    assert 0.4 < (widths == 200).mean() < 0.65  # a scale of 1 to 2 fills the square, or more
    assert max(sample["image"].shape[1] for sample in samples) == 200
    (tested,) = {drawn(DetectionMapper(input_settings(), "boxes", NAMES, is_train=False), record, 0)["image"].shape}
    assert tested == (3, 50, 100)


@few
@given(painted(), painted(), seeds, st.booleans())
def test_copy_paste(folder, scene, other, seed, jitter):
    cfg = input_settings(RANDOM_FLIP="horizontal")
    options = {"jitter": (70, 0.5, 2.0) if jitter else None}
    mapper = DetectionMapper(cfg, "boxes", NAMES, is_train=True, copy_paste=1.0, **options)
    record = {**record_of(scene, folder), "another": record_of(other, folder, "other")}
    sample, plain = drawn(mapper, record, seed), drawn(DetectionMapper(cfg, "b", NAMES, True, **options), record, seed)
    masks, before = sample["instances"].gt_masks.tensor, plain["instances"].gt_masks.tensor
    changed = (sample["image"] != plain["image"]).any(0)
    image, instances = sample["image"].numpy(), sample["instances"]
    classes = instances.gt_classes.tolist()
    if classes == plain["instances"].gt_classes.tolist() and (masks == before).all():  # nothing was pasted, or its like
        assert not changed.any()
        return
    for label, mask in zip(instances.gt_classes, masks.numpy()):
        shown = image[:, inside(mask, 4)].astype(int)
        assert np.abs(shown - np.array(colour(int(label)))[:, None]).max(initial=0) <= 1
    assert CROWD not in instances.gt_classes
    assert masks.sum(0).max() <= 1  # what is covered is no part of the object below
    assert masks.flatten(1).any(1).all()
    assert masks.any(0)[changed].all()  # nothing but objects was pasted
    for box, mask in zip(instances.gt_boxes.tensor, masks):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        x0, y0, x1, y1 = box.tolist()
        assert x0 - 1 <= columns.min() and columns.max() < x1 + 1 and y0 - 1 <= rows.min() and rows.max() < y1 + 1


def test_copy_paste_is_drawn_as_often_as_asked_for(folder):
    record = record_of((60, 60, [(0, 0, 0, 0, 9, 9)]), folder)
    record["another"] = record_of((60, 60, [(1, 0, 20, 20, 50, 50)]), folder, "other")
    mapper = DetectionMapper(input_settings(), "boxes", NAMES, is_train=True, copy_paste=0.5)
    assert mapper.takes_another
    found = [len(drawn(mapper, record, seed)["instances"]) for seed in range(200)]
    assert set(found) == {1, 2} and 0.15 < np.mean(np.array(found) == 2) < 0.35  # one half of one half
    assert not DetectionMapper(input_settings(), "boxes", NAMES, is_train=True).takes_another


@few
@given(st.integers(10, 80), st.integers(10, 120), st.integers(8, 64), st.floats(0.05, 1), seeds, st.booleans())
def test_captioned_squares_keep_sides(folder, height, width, side, least, seed, mirror):
    """A ramp from dark to bright stays one, so that left is left. The whole image is seen in evaluation."""
    ramp = np.repeat(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], height, 0).repeat(3, 2)
    path = folder / "ramp.png"
    Image.fromarray(ramp).save(path)
    record = {"file_name": str(path), "image_id": 1, "captions": ["a two on the left"]}
    cfg = input_settings(RANDOM_FLIP="horizontal" if mirror else "none")
    image = drawn(PairMapper(cfg, "p", TOKENIZER, square=side, crop_scale=(least, 1.0)), record, seed)["image"].int()
    assert image.shape == (3, side, side) and (image.diff(dim=2) >= 0).all()
    whole = RetrievalMapper(cfg, "r", TOKENIZER, square=side)(record)["image"].int()
    assert whole.shape == (3, side, side) and (whole.diff(dim=2) >= 0).all()
    step = 255 / min(side, width)
    assert whole[0, 0, 0] <= step + 1 and whole[0, 0, -1] >= 254 - step


@few
@given(painted().filter(lambda scene: sum(not o[1] for o in scene[2]) > 1), seeds, st.sampled_from(["left", "RIGHT"]))
def test_phrases_with_sides_stay_true(folder, scene, seed, side):
    """The leftmost object stays left of the rightmost one, whatever INPUT says."""
    record = record_of(scene, folder)
    own = [i for i, a in enumerate(record["annotations"]) if not a["iscrowd"]]
    ends = (own[0], own[-1]) if side == "left" else (own[-1], own[0])
    record["phrases"] = [{"phrase": f"boat on the {side}", "objects": [ends[0]]}]
    cfg = input_settings(RANDOM_FLIP="horizontal")
    cfg.INPUT.CROP.ENABLED = True
    sample = drawn(GroundingMapper(cfg, "phrases", is_train=True, count=5), record, seed)
    centres = sample["instances"].gt_boxes.get_centers()[:, 0]
    (means,) = sample["phrase_objects"].tolist()
    chosen = centres[means.index(True)]
    assert chosen == (centres.min() if side == "left" else centres.max())


@few
@given(st.sampled_from(sorted(OPERATIONS)), st.floats(-1, 1), st.integers(1, 40), st.integers(1, 40), seeds)
def test_operations_keep_the_image_s_form(name, by, height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = OPERATIONS[name](Image.fromarray(pixels), by)
    assert image.size == (width, height) and image.mode == "RGB"
    if name not in ("autocontrast", "equalize"):  # which have no strength
        np.testing.assert_array_equal(OPERATIONS[name](Image.fromarray(pixels), 0.0), pixels)


def test_rand_augment_draws_all_operations_and_scales_them():
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)

    def change(magnitude, seed, count=1):
        with numpy_draws_from(np.random.default_rng(seed)):
            augmented = RandAugment(count, magnitude).get_transform(pixels).apply_image(pixels)
        return np.abs(augmented.astype(int) - pixels).mean()

    weak, strong = ([change(m, seed) for seed in range(60)] for m in (1, 9))
    assert np.mean(strong) > 2 * np.mean(weak) > 0
    assert len({round(value, 3) for value in strong}) >= 15  # operations, and their two directions
    assert change(9, 3, count=2) == change(9, 3, count=2)  # by the generator alone


@few
@given(st.integers(4, 50), st.integers(4, 50), seeds)
def test_erasing_changes_one_rectangle(height, width, seed):
    pixels = np.full((height, width, 3), 300 % 256, np.uint8)
    with numpy_draws_from(np.random.default_rng(seed)):
        erased = RandomErasing(1.0).get_transform(pixels).apply_image(pixels)
    changed = (erased != pixels).any(2)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    if not len(rows):
        return
    box = changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert box.mean() > 0.9 and box.size <= changed.size / 2


def test_classification_s_augmentations_are_those_of_training_alone(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    path = folder / "noise.png"
    Image.fromarray(pixels).save(path)
    record = {"file_name": str(path), "image_id": 1, "label": 0}
    options = {"crop_scale": (1.0, 1.0), "rand_augment": (2, 9.0), "erasing": 0.5}
    mapper = ClassificationMapper("digits", NAMES, "RGB", 32, **options)
    images = {drawn(mapper, record, seed)["image"].numpy().tobytes() for seed in range(30)}
    assert len(images) > 25
    assert drawn(mapper, record, 7)["image"].equal(drawn(mapper, record, 7)["image"])
    np.testing.assert_array_equal(ClassificationMapper("c", NAMES, "RGB", 32)(record)["image"].permute(1, 2, 0), pixels)
