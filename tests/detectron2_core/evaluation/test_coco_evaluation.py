"""COCOEvaluator compared with pycocotools."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

CLASSES = ["two", "three", "five", "seven"]
ID_TO_INDEX = {2: 0, 3: 1, 5: 2, 7: 3}


def reference(json_file, results, task, image_ids=None, max_dets=100):
    """Precisions [thresholds, recalls, categories, areas] by pycocotools, -1 without ground truth."""
    truth = COCO(json_file)
    results = [{k: v for k, v in r.items() if k != "bbox" or task == "bbox"} for r in results]
    evaluation = COCOeval(truth, truth.loadRes(results), task)
    evaluation.params.maxDets = [1, 10, max_dets]
    if image_ids is not None:
        evaluation.params.imgIds = image_ids
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def mean(precision):
    return 100 * precision[precision > -1].mean() if (precision > -1).any() else float("nan")


def reference_metrics(precision):
    expected = {
        "AP": mean(precision[..., 0]),
        "AP50": mean(precision[0, ..., 0]),
        "AP75": mean(precision[5, ..., 0]),
        "APs": mean(precision[..., 1]),
        "APm": mean(precision[..., 2]),
        "APl": mean(precision[..., 3]),
    }
    return expected | {f"AP-{name}": mean(precision[:, :, k, 0]) for k, name in enumerate(CLASSES)}


def assert_equal(metrics, expected):
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-6, nan_ok=True), name


@pytest.fixture
def coco(metadata, make_scenes, tmp_path):
    """A registered dataset: (name, scenes)."""

    def register(seed=0, **kwargs):
        scenes = make_scenes(seed, **kwargs)
        json_file = scenes.write_coco(tmp_path / "truth.json")
        metadata.set(json_file=json_file, thing_classes=CLASSES, thing_dataset_id_to_contiguous_id=ID_TO_INDEX)
        return metadata.name, scenes

    return register


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(coco, metadata, seed, fast):
    name, scenes = coco(seed)
    evaluator = COCOEvaluator(name, distributed=False, use_fast_impl=fast)
    scenes.feed(evaluator)
    metrics = evaluator.evaluate()
    assert set(metrics) == {"bbox", "segm"}
    for task in metrics:
        expected = reference_metrics(reference(metadata.json_file, scenes.results(), task))
        assert 1 < expected["AP"] < 99  # the random detections are neither all right nor all wrong
        assert expected["APs"] != expected["APl"]
        assert_equal(metrics[task], expected)


def test_crowd_regions_count(coco, metadata):
    """Makes sure that the test above has crowds that change the metrics."""
    _, scenes = coco(0)
    with_crowds = mean(reference(metadata.json_file, scenes.results(), "bbox")[..., 0])
    content = json.loads(Path(metadata.json_file).read_text())
    content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
    Path(metadata.json_file).write_text(json.dumps(content))
    assert abs(mean(reference(metadata.json_file, scenes.results(), "bbox")[..., 0]) - with_crowds) > 0.1


@pytest.mark.parametrize("fast", [True, False])
def test_max_dets_per_image(coco, metadata, fast):
    name, scenes = coco(1, images=4)
    # 30 misses ahead of everything else push the right detections beyond the limit
    miss = np.array([0.0, 0.0, 4.0, 4.0])
    for image_id in scenes.image_ids[2:]:
        scenes.detections[image_id] += [(miss, kind, 1.0) for kind in range(3) for _ in range(30)]
    metrics = {}
    for limit in (20, 200):
        evaluator = COCOEvaluator(name, ["bbox"], distributed=False, max_dets_per_image=limit, use_fast_impl=fast)
        scenes.feed(evaluator)
        metrics[limit] = evaluator.evaluate()["bbox"]
        precision = reference(metadata.json_file, scenes.results(), "bbox", max_dets=limit)
        assert_equal(metrics[limit], reference_metrics(precision))
    assert metrics[20]["AP"] < metrics[200]["AP"]


def test_subset_of_images(coco, metadata):
    name, scenes = coco(2)
    evaluator = COCOEvaluator(name, ("bbox",), distributed=False)
    scenes.feed(evaluator)
    chosen = scenes.image_ids[2:6]
    metrics = evaluator.evaluate(img_ids=chosen)["bbox"]
    assert_equal(
        metrics,
        reference_metrics(reference(metadata.json_file, scenes.results(), "bbox", image_ids=chosen)),
    )


def test_boxes_alone_give_no_mask_metrics(coco):
    name, scenes = coco(0)
    evaluator = COCOEvaluator(name, distributed=False)
    scenes.feed(evaluator, with_masks=False)
    assert set(evaluator.evaluate()) == {"bbox"}


def test_writes_results_that_pycocotools_reads(coco, metadata, tmp_path):
    name, scenes = coco(0)
    output = tmp_path / "inference"
    evaluator = COCOEvaluator(name, distributed=False, output_dir=str(output))
    scenes.feed(evaluator)
    metrics = evaluator.evaluate()
    written = json.loads((output / "coco_instances_results.json").read_text())
    assert written == scenes.results()
    expected = reference_metrics(reference(metadata.json_file, written, "segm"))
    assert_equal(metrics["segm"], expected)
    predictions = torch.load(output / "instances_predictions.pth", weights_only=False)
    assert [p["image_id"] for p in predictions] == scenes.image_ids


def test_nothing_detected_is_nan(coco):
    name, scenes = coco(0)
    scenes.detections = {i: [] for i in scenes.image_ids}
    evaluator = COCOEvaluator(name, tasks=("bbox", "segm"), distributed=False)
    scenes.feed(evaluator)
    metrics = evaluator.evaluate()
    for task in ("bbox", "segm"):
        assert set(metrics[task]) == {"AP", "AP50", "AP75", "APs", "APm", "APl"}
        assert all(np.isnan(value) for value in metrics[task].values())


def test_nothing_processed_is_empty(coco):
    name, _ = coco(0)
    evaluator = COCOEvaluator(name, distributed=False)
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_reset_forgets(coco):
    name, scenes = coco(0)
    evaluator = COCOEvaluator(name, distributed=False)
    scenes.feed(evaluator)
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_class_out_of_range(coco):
    name, scenes = coco(0)
    scenes.detections[scenes.image_ids[3]] = [(np.array([0.0, 0.0, 9.0, 9.0]), 4, 0.5)]
    evaluator = COCOEvaluator(name, distributed=False)
    scenes.feed(evaluator)
    with pytest.raises(AssertionError, match="class=4"):
        evaluator.evaluate()


def test_without_ground_truth_writes_only(coco, metadata, tmp_path):
    name, scenes = coco(0)
    content = json.loads(Path(metadata.json_file).read_text())
    del content["annotations"]
    Path(metadata.json_file).write_text(json.dumps(content))
    evaluator = COCOEvaluator(name, distributed=False, output_dir=str(tmp_path / "out"))
    scenes.feed(evaluator)
    assert evaluator.evaluate() == {}
    assert json.loads((tmp_path / "out" / "coco_instances_results.json").read_text()) == scenes.results()


@pytest.fixture
def dicts_dataset(metadata):
    """A dataset that is only a list of dicts: one image with one object of class 1."""
    record = {
        "file_name": "a.png",
        "image_id": 5,
        "height": 20,
        "width": 30,
        "annotations": [
            {
                "bbox": [2.0, 4.0, 12.0, 14.0],
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 1,
                "segmentation": [[2.0, 4.0, 12.0, 4.0, 12.0, 14.0]],
            }
        ],
    }
    metadata.thing_classes = ["dog", "cat"]
    DatasetCatalog.register(metadata.name, lambda: [record])
    yield metadata.name
    DatasetCatalog.remove(metadata.name)


def test_dataset_without_json_is_converted(dicts_dataset, metadata, tmp_path):
    evaluator = COCOEvaluator(dicts_dataset, distributed=False, output_dir=str(tmp_path / "out"))
    (annotation,) = json.loads(Path(metadata.json_file).read_text())["annotations"]
    assert annotation["bbox"] == [2, 4, 10, 10] and annotation["area"] == 50
    instances = Instances((20, 30))
    instances.pred_boxes = Boxes(torch.tensor([[2.0, 4.0, 12.0, 14.0]]))
    instances.scores = torch.tensor([0.9])
    instances.pred_classes = torch.tensor([1])
    evaluator.reset()
    evaluator.process([{"image_id": 5}], [{"instances": instances}])
    metrics = evaluator.evaluate()["bbox"]
    assert metrics["AP"] == pytest.approx(100) and metrics["AP-cat"] == pytest.approx(100)
    assert np.isnan(metrics["AP-dog"])


def test_dataset_without_json_needs_an_output_dir(dicts_dataset):
    with pytest.raises(ValueError, match="output_dir"):
        COCOEvaluator(dicts_dataset, distributed=False)


def test_instances_to_coco_json():
    instances = Instances((6, 8))
    instances.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 4.5, 6.0]]))
    instances.scores = torch.tensor([0.25])
    instances.pred_classes = torch.tensor([3])
    mask = torch.zeros(1, 6, 8, dtype=torch.bool)
    mask[0, 2:6, 1] = True
    instances.pred_masks = mask
    (result,) = instances_to_coco_json(instances, 17)
    # uncompressed: 8 zeros (column 0 and the top of column 1), 4 ones, 36 zeros, column by column
    rle = {"size": [6, 8], "counts": "84T1"}
    assert result == {
        "image_id": 17,
        "category_id": 3,
        "bbox": [1.0, 2.0, 3.5, 4.0],
        "score": 0.25,
        "segmentation": rle,
    }
    assert instances_to_coco_json(instances[:0], 17) == []
