import copy

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import SizeMismatchError
from detectron2.structures import BitMasks, PolygonMasks
from PIL import Image


@pytest.fixture
def record(coco_content, write, name, tmp_path):
    """A 40 x 20 image with two objects and a crowd."""
    return load_coco_json(write(coco_content), str(tmp_path), name)[0]


def mapper(is_train=True, augmentations=(), image_format="RGB", **kwargs):
    return DatasetMapper(is_train, augmentations=list(augmentations), image_format=image_format, **kwargs)


def test_training(record):
    given = copy.deepcopy(record)
    flip = T.HFlipTransform(40)
    output = mapper(augmentations=[flip], use_instance_mask=True)(record)
    assert record == given
    pixels = np.asarray(Image.open(record["file_name"]))
    assert torch.equal(output["image"], torch.from_numpy(pixels[:, ::-1].copy()).permute(2, 0, 1))
    assert output["image_id"] == 3 and (output["height"], output["width"]) == (20, 40)
    instances = output["instances"]
    assert instances.gt_classes.tolist() == [0, 1]  # the crowd is none
    torch.testing.assert_close(
        instances.gt_boxes.tensor, torch.tensor([[23.0, 2.0, 35.0, 12.0], [6.0, 8.0, 22.0, 16.0]])
    )
    assert isinstance(instances.gt_masks, PolygonMasks)
    assert "annotations" not in output


def test_bitmasks(record):
    output = mapper(augmentations=[T.Resize((40, 80))], use_instance_mask=True, instance_mask_format="bitmask")(record)
    assert isinstance(output["instances"].gt_masks, BitMasks)
    assert output["instances"].gt_masks.tensor.shape == (2, 40, 80)
    assert output["instances"].gt_masks.tensor.sum(dim=(1, 2)).tolist() == [24 * 20, 32 * 16]
    assert (output["height"], output["width"]) == (20, 40)  # of the file, for results in its size


def test_without_masks(record):
    assert not mapper()(record)["instances"].has("gt_masks")


def test_inference(record):
    output = mapper(is_train=False, image_format="BGR")(record)
    assert "annotations" not in output and "instances" not in output
    pixels = np.asarray(Image.open(record["file_name"]))
    assert torch.equal(output["image"], torch.from_numpy(pixels[:, :, ::-1].copy()).permute(2, 0, 1))


def test_objects_cropped_away_are_left_out(record):
    crop = T.CropTransform(0, 0, 10, 20)
    instances = mapper(augmentations=[crop])(record)["instances"]
    assert instances.gt_classes.tolist() == [0]
    torch.testing.assert_close(instances.gt_boxes.tensor, torch.tensor([[5.0, 2.0, 10.0, 12.0]]))


def test_recomputed_boxes_are_tight(record):
    record["annotations"] = record["annotations"][:1]
    record["annotations"][0]["segmentation"] = [[5.0, 2.0, 9.0, 2.0, 9.0, 6.0]]
    boxes = {}
    for recompute in (True, False):
        output = mapper(use_instance_mask=True, recompute_boxes=recompute)(record)
        boxes[recompute] = output["instances"].gt_boxes.tensor.tolist()
    assert boxes == {True: [[5, 2, 9, 6]], False: [[5, 2, 17, 12]]}
    with pytest.raises(AssertionError):
        mapper(recompute_boxes=True)


def test_image_without_objects(record):
    record["annotations"] = []
    assert len(mapper(use_instance_mask=True)(record)["instances"]) == 0


def test_image_of_another_size(record):
    record["height"] = 21
    with pytest.raises(SizeMismatchError):
        mapper()(record)


def test_semantic_labels_follow_the_image(record, tmp_path):
    labels = np.zeros((20, 40), dtype=np.uint8)
    labels[:, :4] = 7
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record["sem_seg_file_name"] = str(tmp_path / "labels.png")
    output = mapper(augmentations=[T.HFlipTransform(40)])(record)
    assert output["sem_seg"].dtype == torch.int64
    assert (output["sem_seg"][:, 36:] == 7).all() and output["sem_seg"].sum() == 20 * 4 * 7


def test_from_config(record):
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (10,), 40
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    output = DatasetMapper(cfg, is_train=True)(record)
    assert output["image"].shape == (3, 10, 20)
    assert isinstance(output["instances"].gt_masks, BitMasks)
    assert DatasetMapper(cfg, is_train=False)(record)["image"].shape == (3, 40, 80)
    assert DatasetMapper(cfg, is_train=True, augmentations=[])(record)["image"].shape == (3, 20, 40)


def test_crop_from_config(record):
    cfg = get_cfg()
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute", [10, 30]
    cfg.INPUT.MIN_SIZE_TRAIN = (10,)
    for annotation in record["annotations"]:
        del annotation["segmentation"]
    assert DatasetMapper(cfg, is_train=True)(record)["image"].shape == (3, 10, 30)
