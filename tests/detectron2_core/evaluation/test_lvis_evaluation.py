"""LVISEvaluator compared with the lvis API.

lvis 0.5.3 uses ``np.float``, which NumPy 1.24 removed. detectron2-core works around this, upstream does not. Therefore
these tests give the module ``lvis.eval`` a NumPy with ``np.float``: for the reference always, for the evaluator if it
is upstream's.
"""

import contextlib
import copy
import importlib.util
import json
from pathlib import Path

import lvis.eval
import numpy as np
import pytest
from detectron2.evaluation import LVISEvaluator
from lvis import LVIS, LVISEval, LVISResults

METRICS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
UPSTREAM = importlib.util.find_spec("detectron2._C") is not None


class OldNumpy:
    float = float

    def __getattr__(self, name):
        return getattr(np, name)


@contextlib.contextmanager
def lvis_with_old_numpy():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lvis.eval, "np", OldNumpy())
        yield


def evaluate(evaluator):
    with lvis_with_old_numpy() if UPSTREAM else contextlib.nullcontext():
        return evaluator.evaluate()


def reference(json_file, results, task, max_dets=300):
    results = [{k: v for k, v in r.items() if k != "bbox" or task == "bbox"} for r in copy.deepcopy(results)]
    truth = LVIS(json_file)
    evaluation = LVISEval(truth, LVISResults(truth, results, max_dets=max_dets), task)
    with lvis_with_old_numpy():
        evaluation.run()
    return {name: 100 * evaluation.get_results()[name] for name in METRICS}


def assert_equal(metrics, expected):
    assert list(metrics) == METRICS
    for name in METRICS:
        assert metrics[name] == pytest.approx(expected[name], abs=1e-6), name


@pytest.fixture
def lvis_dataset(metadata, make_scenes, tmp_path):
    """A registered dataset with the category ids 1 to 5: (name, scenes). No image has the fifth category.

    The second category is not exhaustively annotated in images with numbers divisible by 3. The third is known to be
    absent from images with even numbers in which it does not occur. For other categories that do not occur in an image,
    nothing is known.
    """

    def register(seed=0, **kwargs):
        scenes = make_scenes(seed, category_ids=[1, 2, 3, 4], **kwargs)
        images = scenes.images()
        for image in images:
            present = {kind + 1 for _, kind, _ in scenes.objects[image["id"]]}
            image["not_exhaustive_category_ids"] = [2] if image["id"] % 3 == 0 else []
            image["neg_category_ids"] = [3] if image["id"] % 2 == 0 and 3 not in present else []
        categories = [
            {"id": i, "name": f"c{i}", "synonyms": [f"c{i}"], "frequency": frequency}
            for i, frequency in enumerate("rcffr", start=1)
        ]
        annotations = [{k: v for k, v in a.items() if k != "iscrowd"} for a in scenes.annotations(crowds=False)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        json_file = tmp_path / "truth.json"
        json_file.write_text(json.dumps(content))
        metadata.set(json_file=str(json_file), thing_classes=[c["name"] for c in categories])
        return metadata.name, scenes

    return register


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_lvis_api(lvis_dataset, metadata, seed):
    name, scenes = lvis_dataset(seed)
    evaluator = LVISEvaluator(name, distributed=False)
    scenes.feed(evaluator)
    metrics = evaluate(evaluator)
    assert set(metrics) == {"bbox", "segm"}
    for task in metrics:
        expected = reference(metadata.json_file, scenes.results(), task)
        assert 1 < expected["AP"] < 99
        assert len({expected["APr"], expected["APc"], expected["APf"]}) == 3
        assert_equal(metrics[task], expected)


def test_max_dets_per_image(lvis_dataset, metadata):
    name, scenes = lvis_dataset(0)
    results = {}
    for limit in (3, None):
        evaluator = LVISEvaluator(name, ["bbox"], distributed=False, max_dets_per_image=limit)
        scenes.feed(evaluator)
        results[limit] = evaluate(evaluator)["bbox"]
        expected = reference(metadata.json_file, scenes.results(), "bbox", max_dets=limit or 300)
        assert_equal(results[limit], expected)
    assert results[3]["AP"] < results[None]["AP"]


def test_leaves_numpy_and_lvis_as_they_are(lvis_dataset, monkeypatch):
    monkeypatch.setattr(lvis.eval, "np", np)  # a project may have put another there before
    name, scenes = lvis_dataset(0)
    evaluator = LVISEvaluator(name, distributed=False)
    scenes.feed(evaluator)
    evaluate(evaluator)
    assert not hasattr(np, "float")
    assert lvis.eval.np is np


def test_writes_results(lvis_dataset, tmp_path):
    name, scenes = lvis_dataset(0)
    evaluator = LVISEvaluator(name, distributed=False, output_dir=str(tmp_path / "out"))
    scenes.feed(evaluator)
    evaluate(evaluator)
    written = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert written == scenes.results()


def test_ids_mapped_by_metadata(lvis_dataset, metadata):
    """As for LVIS's images with COCO's categories."""
    name, scenes = lvis_dataset(0)
    metadata.thing_dataset_id_to_contiguous_id = {4: 0, 3: 1, 2: 2, 1: 3, 5: 4}
    for detections in scenes.detections.values():
        detections[:] = [(box, 3 - kind, score) for box, kind, score in detections]
    evaluator = LVISEvaluator(name, ("bbox",), distributed=False)
    scenes.feed(evaluator)
    metrics = evaluate(evaluator)["bbox"]
    scenes.category_ids = [4, 3, 2, 1]
    assert_equal(metrics, reference(metadata.json_file, scenes.results(), "bbox"))


def test_nothing_detected_is_nan(lvis_dataset):
    name, scenes = lvis_dataset(0)
    scenes.detections = {i: [] for i in scenes.image_ids}
    evaluator = LVISEvaluator(name, tasks=("bbox", "segm"), distributed=False)
    scenes.feed(evaluator)
    metrics = evaluate(evaluator)
    for task in ("bbox", "segm"):
        assert list(metrics[task]) == METRICS
        assert all(np.isnan(value) for value in metrics[task].values())


def test_nothing_processed_is_empty(lvis_dataset):
    name, _ = lvis_dataset(0)
    evaluator = LVISEvaluator(name, distributed=False)
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_without_ground_truth_writes_only(lvis_dataset, metadata, tmp_path):
    name, scenes = lvis_dataset(0)
    content = json.loads(Path(metadata.json_file).read_text())
    content["annotations"] = []
    Path(metadata.json_file).write_text(json.dumps(content))
    evaluator = LVISEvaluator(name, distributed=False, output_dir=str(tmp_path / "out"))
    scenes.feed(evaluator)
    assert evaluator.evaluate() == {}
    assert json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text()) == scenes.results()
