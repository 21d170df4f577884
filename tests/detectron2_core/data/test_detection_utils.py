import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import EpsImagePlugin, Image, UnidentifiedImageError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.fixture
def png(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


@pytest.mark.skipif("detectron2_core" not in utils.__file__, reason="upstream's read_image lets Pillow open EPS")
def test_read_image_starts_no_program(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 9\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(UnidentifiedImageError):
        utils.read_image(str(path))


def test_read_image_formats(png, pixels):
    np.testing.assert_array_equal(utils.read_image(png), pixels)
    np.testing.assert_array_equal(utils.read_image(png, "RGB"), pixels)
    np.testing.assert_array_equal(utils.read_image(png, "BGR"), pixels[:, :, ::-1])
    gray = utils.read_image(png, "L")
    assert gray.shape == (4, 6, 1) and gray.dtype == np.uint8
    yuv = utils.read_image(png, "YUV-BT.601")
    np.testing.assert_allclose(yuv[:, :, 0], pixels @ [0.299, 0.587, 0.114] / 255, atol=1e-6)
    assert np.abs(gray[:, :, 0] - yuv[:, :, 0] * 255).max() <= 1


@pytest.mark.parametrize("format", ["BGR", "YUV-BT.601"])
def test_formats_convert_back_to_rgb(png, pixels, format):
    rgb = utils.convert_image_to_rgb(utils.read_image(png, format), format)
    np.testing.assert_allclose(rgb, pixels, atol=0.05)
    rgb = utils.convert_image_to_rgb(torch.from_numpy(utils.read_image(png, format).copy()), format)
    np.testing.assert_allclose(rgb, pixels, atol=0.05)


def test_gray_file_becomes_colour(tmp_path):
    Image.fromarray(np.full((2, 3), 9, dtype=np.uint8)).save(tmp_path / "gray.png")
    assert (utils.read_image(str(tmp_path / "gray.png"), "RGB") == np.full((2, 3, 3), 9)).all()


@pytest.mark.parametrize(
    "orientation, expected",
    [
        (1, lambda p: p),
        (2, lambda p: p[:, ::-1]),
        (3, lambda p: p[::-1, ::-1]),
        (6, lambda p: np.rot90(p, -1)),
        (8, np.rot90),
    ],
)
def test_read_image_is_upright(tmp_path, pixels, orientation, expected):
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(utils.read_image(str(tmp_path / "a.png"), "RGB"), expected(pixels))


def test_check_image_size(pixels):
    record = {"file_name": "a.png"}
    utils.check_image_size(record, pixels)
    assert record == {"file_name": "a.png", "width": 6, "height": 4}
    utils.check_image_size(record, pixels)
    with pytest.raises(utils.SizeMismatchError, match=r"a\.png.*\(6, 4\).*\(6, 5\)"):
        utils.check_image_size({"file_name": "a.png", "width": 6, "height": 5}, pixels)
    assert issubclass(utils.SizeMismatchError, ValueError)


def annotation(**changes):
    return {
        "bbox": [2.0, 3.0, 4.0, 6.0],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 1,
        "segmentation": [[2.0, 3.0, 6.0, 3.0, 6.0, 9.0, 2.0, 9.0]],
    } | changes


def rle(height=10, width=20):
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[3:9, 2:6] = 1
    return mask_util.encode(mask)


def test_transform_polygons_and_box():
    transforms = [T.HFlipTransform(20), T.ResizeTransform(10, 20, 20, 40)]
    result = utils.transform_instance_annotations(annotation(), transforms, (20, 40))
    assert result["bbox_mode"] == BoxMode.XYXY_ABS
    np.testing.assert_allclose(result["bbox"], [28, 6, 36, 18])
    np.testing.assert_allclose(result["segmentation"], [[36, 6, 28, 6, 28, 18, 36, 18]])


def test_transform_clips_the_box():
    result = utils.transform_instance_annotations(
        annotation(bbox=[-5.0, -5.0, 100.0, 100.0]), T.TransformList([T.NoOpTransform()]), (10, 20)
    )
    np.testing.assert_allclose(result["bbox"], [0, 0, 20, 10])


def test_transform_run_lengths():
    transforms = T.TransformList([T.HFlipTransform(20)])
    result = utils.transform_instance_annotations(annotation(segmentation=rle()), transforms, (10, 20))
    expected = np.zeros((10, 20))
    expected[3:9, 14:18] = 1
    np.testing.assert_array_equal(result["segmentation"], expected)
    with pytest.raises(ValueError, match="Cannot transform segmentation"):
        utils.transform_instance_annotations(annotation(segmentation="?"), transforms, (10, 20))


def test_instances_with_polygons():
    instances = utils.annotations_to_instances([annotation(), annotation(category_id=5)], (10, 20))
    assert instances.image_size == (10, 20)
    torch.testing.assert_close(instances.gt_boxes.tensor, torch.tensor([[2.0, 3.0, 6.0, 9.0]] * 2))
    assert instances.gt_classes.tolist() == [1, 5] and instances.gt_classes.dtype == torch.int64
    assert isinstance(instances.gt_masks, PolygonMasks)
    torch.testing.assert_close(instances.gt_masks.area(), torch.tensor([24.0, 24.0]), check_dtype=False)


def test_instances_with_bitmasks_of_all_kinds():
    mask = np.zeros((10, 20), dtype=np.uint8)
    mask[3:9, 2:6] = 1
    annotations = [annotation(), annotation(segmentation=rle()), annotation(segmentation=mask[:, ::-1])]
    instances = utils.annotations_to_instances(annotations, (10, 20), mask_format="bitmask")
    assert isinstance(instances.gt_masks, BitMasks)
    expected = torch.from_numpy(np.stack([mask, mask, np.ascontiguousarray(mask[:, ::-1])])).bool()
    assert torch.equal(instances.gt_masks.tensor, expected)


def test_instances_without_annotations_or_masks():
    empty = utils.annotations_to_instances([], (10, 20))
    assert len(empty) == 0 and empty.gt_boxes.tensor.shape == (0, 4)
    box_only = {k: v for k, v in annotation().items() if k != "segmentation"}
    assert not utils.annotations_to_instances([box_only], (10, 20)).has("gt_masks")


def test_instances_of_unfit_masks():
    with pytest.raises(ValueError):
        utils.annotations_to_instances([annotation(segmentation=rle())], (10, 20), mask_format="polygon")
    with pytest.raises(ValueError, match="Cannot convert segmentation"):
        utils.annotations_to_instances([annotation(segmentation="?")], (10, 20), mask_format="bitmask")


def test_filter_empty_instances():
    empty_mask = np.zeros((10, 20), dtype=np.uint8)
    full_mask = np.ones((10, 20), dtype=np.uint8)
    annotations = [
        annotation(segmentation=full_mask),
        annotation(segmentation=full_mask, bbox=[2.0, 3.0, 0.0, 6.0]),
        annotation(segmentation=empty_mask),
    ]
    instances = utils.annotations_to_instances(annotations, (10, 20), mask_format="bitmask")
    kept, mask = utils.filter_empty_instances(instances, return_mask=True)
    assert mask.tolist() == [True, False, False] and len(kept) == 1
    assert len(utils.filter_empty_instances(instances, by_mask=False)) == 2
    assert len(utils.filter_empty_instances(instances, by_box=False)) == 2
    assert len(utils.filter_empty_instances(instances, box_threshold=4.5)) == 0


def test_crop_holds_the_centre_of_the_instance():
    instance = annotation(bbox=[30.0, 10.0, 8.0, 6.0])  # centre (34, 13)
    corners = set()
    for _ in range(200):
        crop = utils.gen_crop_transform_with_instance((10, 12), (20, 40), instance)
        assert (crop.h, crop.w) == (10, 12)
        assert crop.x0 <= 34 <= crop.x0 + 12 <= 40 and crop.y0 <= 13 <= crop.y0 + 10 <= 20
        corners.add((crop.x0, crop.y0))
    assert len(corners) > 20
    with pytest.raises(AssertionError):
        utils.gen_crop_transform_with_instance((30, 12), (20, 40), instance)
    with pytest.raises(AssertionError):
        utils.gen_crop_transform_with_instance((5, 5), (12, 20), instance)


def test_metadata_consistency(request):
    names = [f"{request.node.name}/{i}" for i in range(3)]
    for name, classes in zip(names, (["a"], ["a"], ["b"])):
        MetadataCatalog.get(name).thing_classes = classes
    try:
        utils.check_metadata_consistency("thing_classes", names[:2])
        with pytest.raises(ValueError, match="thing_classes"):
            utils.check_metadata_consistency("thing_classes", names)
        with pytest.raises(AttributeError):
            utils.check_metadata_consistency("stuff_classes", names)
    finally:
        for name in names:
            MetadataCatalog.remove(name)


def test_build_augmentation():
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (12, 18), 40
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 16, 20
    image = np.zeros((24, 48, 3), dtype=np.uint8)

    resize, flip = utils.build_augmentation(cfg, is_train=True)
    assert {resize.get_transform(image).new_h for _ in range(40)} == {12, 18}
    assert {type(flip.get_transform(image)) for _ in range(40)} == {T.HFlipTransform, T.NoOpTransform}
    (resize,) = utils.build_augmentation(cfg, is_train=False)
    assert resize.get_transform(image).apply_image(image).shape == (10, 20, 3)
    cfg.INPUT.RANDOM_FLIP = "none"
    assert len(utils.build_augmentation(cfg, is_train=True)) == 1
    cfg.INPUT.RANDOM_FLIP = "vertical"
    flips = {type(utils.build_augmentation(cfg, True)[1].get_transform(image)) for _ in range(40)}
    assert flips == {T.VFlipTransform, T.NoOpTransform}
