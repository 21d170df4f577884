import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_api

from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.data.mappers import augmentations
from uniperceiver_v2.data.mappers.augmentations import BoundedResize, CenterCrop, RandomResizedCrop
from uniperceiver_v2.data.mappers.images import ClassificationMapper, DetectionMapper, as_tensor
from uniperceiver_v2.data.order import numpy_draws_from
from uniperceiver_v2.errors import UnreadableImage

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture
def cfg(scenes_config):
    scenes_config.INPUT.MASK_FORMAT = "bitmask"  # the format that the comparison needs from Detectron2's mapper
    return scenes_config


def drawn(mapper, record, seed):
    with numpy_draws_from(np.random.default_rng(seed)):
        return mapper(record)


@pytest.mark.parametrize("flip", ["none", "horizontal", "vertical"])
def test_detection_training_equals_detectron2s_mapper(cfg, flip):
    cfg.INPUT.RANDOM_FLIP = flip
    ours, theirs = DetectionMapper(cfg, "scenes", NAMES, is_train=True), DatasetMapper(cfg, True)
    sizes = set()
    for seed, record in enumerate(load_dataset("tiny_digit_scenes_train")[:25]):
        ours_sample = drawn(ours, record, seed)
        theirs_sample = drawn(theirs, copy.deepcopy(record), seed)
        assert torch.equal(ours_sample["image"], theirs_sample["image"])
        sizes.add(tuple(ours_sample["image"].shape))
        a, b = ours_sample["instances"], theirs_sample["instances"]
        assert a.image_size == b.image_size and len(a) == len(b)
        assert torch.equal(a.gt_classes, b.gt_classes) and a.gt_classes.dtype == torch.int64
        torch.testing.assert_close(a.gt_boxes.tensor, b.gt_boxes.tensor)
        if len(b):
            assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor)
    assert len(sizes) >= 3


def test_what_a_sample_carries(cfg):
    records = load_dataset("tiny_digit_scenes_train")
    mapper = DetectionMapper(cfg, "scenes", NAMES, is_train=True)
    first, second = mapper(records[0]), mapper(records[1])
    assert first.keys() == {
        *("task", "image", "height", "width", "file_name", "image_id", "candidates", "instances"),
    }
    assert first["task"] == "scenes" and first["image"].dtype == torch.uint8
    assert (first["height"], first["width"]) == (96, 96)
    assert (first["image_id"], first["file_name"]) == (records[0]["image_id"], records[0]["file_name"])
    assert first["candidates"] == NAMES and first["candidates"] is second["candidates"]


def test_colours_are_in_the_configured_order(cfg):
    record = load_dataset("tiny_digit_scenes_train")[0]
    cfg.INPUT.MIN_SIZE_TRAIN = (96,)
    rgb = DetectionMapper(cfg, "scenes", NAMES, is_train=True)(record)["image"]
    cfg.INPUT.FORMAT = "BGR"
    bgr = DetectionMapper(cfg, "scenes", NAMES, is_train=True)(record)["image"]
    assert torch.equal(rgb, bgr.flip(0))
    np.testing.assert_array_equal(rgb.permute(1, 2, 0), np.asarray(Image.open(record["file_name"])))


def test_a_mapper_leaves_its_record_as_it_is(cfg):
    cfg.INPUT.CROP.ENABLED = True
    for record in load_dataset("tiny_digit_scenes_train")[:5]:
        before = copy.deepcopy(record)
        DetectionMapper(cfg, "scenes", NAMES, is_train=True)(record)
        assert record == before


def test_crowds_and_masks_as_run_lengths(cfg):
    """A crowd gives no target. An instance may have a run-length encoding instead of polygons."""
    record = copy.deepcopy(load_dataset("tiny_digit_scenes_train")[0])
    annotation = record["annotations"][0]
    rle = mask_api.merge(mask_api.frPyObjects(annotation["segmentation"], 96, 96))
    x, y, w, h = annotation["bbox"]
    record["annotations"] = [
        {**annotation, "segmentation": rle},
        {**annotation, "bbox": [x, y, x + w, y + h], "bbox_mode": BoxMode.XYXY_ABS},
        {**annotation, "iscrowd": 1},
    ]
    cfg.INPUT.MIN_SIZE_TRAIN = (192,)
    instances = DetectionMapper(cfg, "scenes", NAMES, is_train=True)(record)["instances"]
    assert len(instances) == 2
    torch.testing.assert_close(instances.gt_boxes.tensor[0], torch.tensor([x, y, x + w, y + h]) * 2)
    torch.testing.assert_close(instances.gt_boxes.tensor[0], instances.gt_boxes.tensor[1])
    a, b = instances.gt_masks.tensor
    assert (a & b).sum() / (a | b).sum() > 0.9

    record["annotations"] = record["annotations"][2:]
    instances = DetectionMapper(cfg, "scenes", NAMES, is_train=True)(record)["instances"]
    assert len(instances) == 0 and instances.gt_masks.tensor.shape == (0, 192, 192)
    assert instances.gt_boxes.tensor.shape == (0, 4)


def test_a_crop_cuts_masks_tightens_boxes_and_removes_what_is_outside(cfg):
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "relative", [0.5, 0.75]
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)  # as it is
    mapper = DetectionMapper(cfg, "scenes", NAMES, is_train=True)
    lost = 0
    for seed, record in enumerate(load_dataset("tiny_digit_scenes_train")):
        with numpy_draws_from(np.random.default_rng(seed)):
            window = T.RandomCrop("relative", [0.5, 0.75]).get_transform(np.zeros((96, 96, 3)))
        expected = []
        for annotation in (a for a in record["annotations"] if not a["iscrowd"]):
            rle = mask_api.merge(mask_api.frPyObjects(annotation["segmentation"], 96, 96))
            mask = window.apply_segmentation(mask_api.decode(rle)).astype(bool)
            expected += [mask] if mask.any() else []
        sample = drawn(mapper, record, seed)
        instances = sample["instances"]
        assert instances.image_size == (48, 72) == tuple(sample["image"].shape[1:])
        np.testing.assert_array_equal(instances.gt_masks.tensor.numpy(), np.array(expected).reshape(-1, 48, 72))
        for box, mask in zip(instances.gt_boxes.tensor, expected, strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        lost += sum(not a["iscrowd"] for a in record["annotations"]) - len(instances)
    assert lost > 0


def test_detection_evaluation_has_no_targets(cfg):
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.CROP.ENABLED = 120, True
    record = load_dataset("tiny_digit_scenes_lvis_test")[0]
    sample = DetectionMapper(cfg, "detection", NAMES, is_train=False)(record)
    assert sample.keys() == {"task", "image", "height", "width", "file_name", "image_id", "candidates"}
    assert sample["image"].shape == (3, 120, 120) and (sample["height"], sample["width"]) == (96, 96)


def save(path, pixels) -> dict:
    Image.fromarray(pixels).save(path)
    return {"file_name": str(path), "image_id": 4, "label": 1}


def test_classification_evaluation_takes_the_centre(tmp_path):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 8:52] = 200
    record = save(tmp_path / "wide.png", pixels)
    sample = ClassificationMapper("classification", ("a", "b"), "RGB", 20)(record)
    assert sample["image"].shape == (3, 20, 20) and sample["image"].min() > 180
    assert (sample["label"], sample["height"], sample["width"]) == (1, 40, 60)
    assert sample["candidates"] == ("a", "b") and sample["task"] == "classification"


def test_classification_training_crops_resizes_and_flips(tmp_path):
    ramp = np.repeat(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    record = save(tmp_path / "ramp.png", ramp)
    mapper = ClassificationMapper("digits", ("a", "b"), "RGB", 24, crop_scale=(0.2, 1.0), flip=True)
    images = [drawn(mapper, record, seed)["image"].float() for seed in range(60)]
    assert all(image.shape == (3, 24, 24) for image in images)
    slopes = torch.stack([image[0, 12, -1] - image[0, 12, 0] for image in images])
    assert 15 < (slopes < 0).sum() < 45  # flipped every other time
    assert slopes.abs().std() > 20  # crops of many sizes
    unflipped = ClassificationMapper("digits", ("a", "b"), "RGB", 24, crop_scale=(0.2, 1.0), flip=False)
    assert all(drawn(unflipped, record, s)["image"].float()[0, 12].diff().min() >= 0 for s in range(30))


def test_a_grey_image_becomes_three_channels(tmp_path):
    record = save(tmp_path / "grey.png", np.full((30, 30), 77, np.uint8))
    image = ClassificationMapper("classification", ("a", "b"), "RGB", 16)(record)["image"]
    assert image.shape == (3, 16, 16) and (image == 77).all()


@pytest.mark.parametrize("shape", [(64, 64), (50, 90), (20, 400), (400, 20), (1, 7)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.5, 0.5), (1.0, 1.0)])
def test_random_crops_lie_inside_and_have_the_drawn_share(shape, scale):
    image = np.zeros((*shape, 3), np.uint8)
    shares = []
    for seed in range(40):
        with numpy_draws_from(np.random.default_rng(seed)):
            crop, resize = RandomResizedCrop(16, scale).get_transform(image).transforms
        assert crop.x0 >= 0 and crop.x0 + crop.w <= shape[1] and crop.w > 0
        assert crop.y0 >= 0 and crop.y0 + crop.h <= shape[0] and crop.h > 0
        assert (resize.new_h, resize.new_w) == (16, 16)
        shares.append(crop.w * crop.h / (shape[0] * shape[1]))
        if shape == (64, 64):
            assert scale[0] * 0.9 < shares[-1] <= min(1, scale[1] * 1.1)
            assert 0.7 < crop.w / crop.h < 1.4
    if shape == (64, 64) and scale[0] < scale[1]:
        assert 0.4 < np.mean(shares) < 0.65


def test_center_crop():
    image = np.arange(7 * 10).reshape(7, 10, 1).astype(np.uint8)
    cropped = CenterCrop(5).get_transform(image).apply_image(image)
    np.testing.assert_array_equal(cropped, image[1:6, 2:7])
    assert isinstance(CenterCrop(5), T.Augmentation)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "size"])
def test_unreadable_images_are_named(cfg, tmp_path, damage):
    record = dict(load_dataset("tiny_digit_scenes_train")[0])
    whole = Path(record["file_name"]).read_bytes()
    path = tmp_path / "broken.png"
    record["file_name"] = str(path)
    if damage == "size":
        Image.new("RGB", (90, 96)).save(path)
    elif damage != "missing":
        path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"hello"}[damage])
    with pytest.raises(UnreadableImage, match=r"broken\.png: \S+"):
        DetectionMapper(cfg, "scenes", NAMES, is_train=True)(record)


@pytest.mark.parametrize(("height", "width"), [(1, 4000), (4000, 1), (1, 1)])
@pytest.mark.parametrize("is_train", [True, False])
def test_a_picture_of_one_row_keeps_a_pixel(cfg, tmp_path, height, width, is_train):
    path = tmp_path / "row.png"
    Image.fromarray(np.full((height, width, 3), 200, np.uint8)).save(path)
    annotation = {
        "bbox": [0, 0, width, height],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 1,
        "segmentation": [[0, 0, width, 0, width, height, 0, height]],
    }
    record = {"file_name": str(path), "image_id": 1, "annotations": [annotation]}
    sample = DetectionMapper(cfg, "scenes", NAMES, is_train)(record)
    longest = cfg.INPUT.MAX_SIZE_TRAIN if is_train else cfg.INPUT.MAX_SIZE_TEST
    assert min(sample["image"].shape[1:]) >= 1 and max(sample["image"].shape[1:]) <= longest
    assert (sample["height"], sample["width"]) == (height, width)
    assert (sample["image"] == 200).all()


def test_other_pictures_are_resized_as_detectron2_does():
    image = np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8)
    theirs = T.ResizeShortestEdge((32, 32), 50)
    expected = theirs.get_transform(image).apply_image(image)
    assert np.array_equal(BoundedResize(theirs).get_transform(image).apply_image(image), expected)
    assert isinstance(BoundedResize(T.ResizeShortestEdge(0)).get_transform(image), T.NoOpTransform)


def test_a_picture_that_would_become_too_large_is_unreadable(tmp_path, monkeypatch):
    monkeypatch.setattr(augmentations, "LARGEST_RESIZED", 32 * 1000)
    path = tmp_path / "row.png"
    record = {"file_name": str(path), "image_id": 1, "label": 0}
    mapper = ClassificationMapper("classification", NAMES, "RGB", 32)
    Image.fromarray(np.zeros((2, 40, 3), np.uint8)).save(path)
    assert mapper(record)["image"].shape == (3, 32, 32)
    Image.fromarray(np.zeros((1, 2000, 3), np.uint8)).save(path)
    with pytest.raises(UnreadableImage, match=r"row\.png: of 2000 x 1 pixels it would be resized to 64000 x 32"):
        mapper(record)


@pytest.mark.parametrize("shape", [(5, 1, 3), (1, 4, 3), (1, 1, 3), (5, 4, 3)])
def test_a_mirrored_image_of_any_size_is_a_tensor(shape):
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    for mirrored in (image[:, ::-1], image[::-1]):
        assert as_tensor(mirrored).tolist() == mirrored.transpose(2, 0, 1).tolist()
