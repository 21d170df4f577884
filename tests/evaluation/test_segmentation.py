"""Panoptic quality and mean IoU against their formulas, written out plainly, pixel by pixel."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from PIL import Image

from uniperceiver_v2.evaluation import PanopticEvaluator, SemanticEvaluator

NAMES, IS_STUFF = ["cat", "dog", "grass", "sky"], [False, False, True, True]
CATEGORY_IDS = [7, 3, 90, 200]


@pytest.fixture
def dataset(catalogs):
    MetadataCatalog.get("parted").set(thing_classes=NAMES, is_stuff=IS_STUFF, category_ids=CATEGORY_IDS)
    yield "parted"
    MetadataCatalog.remove("parted")


def rectangles(rng, categories) -> tuple[np.ndarray, list[dict]]:
    """Rectangles of random categories over each other, some of which are hidden wholly."""
    ids = np.zeros((20, 30), dtype=np.int32)
    segments = []
    for number in range(1, rng.integers(3, 8)):
        y, x = rng.integers(0, 16), rng.integers(0, 24)
        ids[y : y + rng.integers(4, 14), x : x + rng.integers(4, 20)] = number * 300
        segments.append({"id": number * 300, "category_id": int(rng.choice(categories)), "iscrowd": 0})
    shown = set(np.unique(ids).tolist())
    return ids, [segment for segment in segments if segment["id"] in shown]


def moved(rng, ids, segments) -> tuple[np.ndarray, list[dict]]:
    """A prediction: the truth moved by a pixel or two, with other ids, some categories wrong and some segments gone."""
    ids = np.roll(ids, rng.integers(-2, 3, size=2), axis=(0, 1))
    found = []
    for segment in segments:
        area = ids == segment["id"]
        ids[area] = 0
        if rng.random() < 0.8:
            ids[area] = segment["id"] // 300 + 70_000
            category = segment["category_id"] if rng.random() < 0.8 else int(rng.integers(4))
            found.append({"id": segment["id"] // 300 + 70_000, "category_id": category})
    shown = set(np.unique(ids).tolist())
    return ids, [segment for segment in found if segment["id"] in shown]


@pytest.fixture
def data():
    """Inputs and outputs of 40 images, a fifth of whose things are crowds."""
    rng = np.random.default_rng(0)
    inputs, outputs = [], []
    for image_id in range(40):
        ids, segments = rectangles(rng, [0, 1, 2, 3])
        predicted = moved(rng, ids.copy(), segments)
        for segment in segments:
            segment["iscrowd"] = int(segment["category_id"] < 2 and rng.random() < 0.2)
        inputs.append(
            {"image_id": image_id, "file_name": f"a/{image_id:03d}.jpg", "segment_ids": ids, "segments": segments}
        )
        semantic = torch.from_numpy(rng.integers(0, 4, ids.shape))
        outputs.append({"panoptic_seg": (torch.from_numpy(predicted[0]), predicted[1]), "semantic": semantic})
    return inputs, outputs


def pixels_of(ids, number):
    return {tuple(place) for place in np.argwhere(ids == number).tolist()}


def plain_quality(inputs, outputs):
    """{category: (sum of IoUs, TP, FP, FN)} from sets of pixels, as the paper and COCO's rules for crowds have it."""
    totals = {category: [0.0, 0, 0, 0] for category in range(4)}
    for item, output in zip(inputs, outputs, strict=True):
        ids, segments = output["panoptic_seg"]
        void = pixels_of(item["segment_ids"], 0)
        true = [(s, pixels_of(item["segment_ids"], s["id"])) for s in item["segments"]]
        found = [(s, pixels_of(ids.numpy(), s["id"])) for s in segments]
        matched = []
        for i, (t, of_true) in enumerate(true):
            for j, (f, of_found) in enumerate(found):
                both, either = of_true & of_found, of_true | (of_found - void)
                if not t["iscrowd"] and t["category_id"] == f["category_id"] and len(both) / len(either) > 0.5:
                    totals[t["category_id"]][0] += len(both) / len(either)
                    totals[t["category_id"]][1] += 1
                    matched.append((i, j))
        for i, (t, _) in enumerate(true):
            if not t["iscrowd"] and i not in [pair[0] for pair in matched]:
                totals[t["category_id"]][3] += 1
        for j, (f, of_found) in enumerate(found):
            crowds = [p for t, p in true if t["iscrowd"] and t["category_id"] == f["category_id"]]
            excused = void | (crowds[-1] if crowds else set())
            if j not in [pair[1] for pair in matched] and len(of_found & excused) / len(of_found) <= 0.5:
                totals[f["category_id"]][2] += 1
    return totals


def test_panoptic_quality_is_the_plain_formula(dataset, data):
    evaluator = PanopticEvaluator(dataset)
    evaluator.reset()
    evaluator.process(*data)
    found = evaluator.evaluate()["panoptic"]
    totals = plain_quality(*data)
    assert all(tp and fp and fn for _, tp, fp, fn in totals.values())  # everything occurs
    pq = {c: iou / (tp + fp / 2 + fn / 2) for c, (iou, tp, fp, fn) in totals.items()}
    sq = {c: iou / tp for c, (iou, tp, fp, fn) in totals.items()}
    rq = {c: tp / (tp + fp / 2 + fn / 2) for c, (iou, tp, fp, fn) in totals.items()}
    assert found == pytest.approx(
        {
            "PQ": 25 * sum(pq.values()),
            "SQ": 25 * sum(sq.values()),
            "RQ": 25 * sum(rq.values()),
            "PQ_th": 50 * (pq[0] + pq[1]),
            "PQ_st": 50 * (pq[2] + pq[3]),
        }
    )
    assert 20 < found["PQ"] < 90


def test_the_truth_itself_is_perfect(dataset, data):
    inputs, _ = data
    for item in inputs:
        for segment in item["segments"]:
            segment["iscrowd"] = 0
    outputs = []
    for item in inputs:
        semantic = np.zeros(item["segment_ids"].shape, dtype=np.int64)
        for segment in item["segments"]:
            semantic[item["segment_ids"] == segment["id"]] = segment["category_id"]
        ids = torch.from_numpy(item["segment_ids"])
        outputs.append({"panoptic_seg": (ids, item["segments"]), "semantic": torch.from_numpy(semantic)})
    evaluator = PanopticEvaluator(dataset)
    evaluator.process(inputs, outputs)
    results = evaluator.evaluate()
    assert all(value == pytest.approx(100) for row in results.values() for value in row.values())


def test_mean_iou_is_the_plain_formula(dataset, data):
    inputs, outputs = data
    evaluator = SemanticEvaluator(dataset)
    for item, output in zip(inputs, outputs, strict=True):  # batch by batch
        evaluator.process([item], [output])
    (found,) = evaluator.evaluate().values()
    both, true, guessed, right, count = ([0] * 4, [0] * 4, [0] * 4, 0, 0)
    for item, output in zip(inputs, outputs, strict=True):
        category = {s["id"]: s["category_id"] for s in item["segments"]}
        for number, guess in zip(item["segment_ids"].ravel().tolist(), output["semantic"].flatten().tolist()):
            if number:
                true[category[number]] += 1
                guessed[guess] += 1
                both[guess] += guess == category[number]
                right, count = right + (guess == category[number]), count + 1
    ious = [both[c] / (true[c] + guessed[c] - both[c]) for c in range(4)]
    assert found == pytest.approx({"mIoU": 25 * sum(ious), "pACC": 100 * right / count})


def test_a_class_that_does_not_occur_has_no_iou(dataset):
    ids = np.array([[1, 1, 2, 2]], dtype=np.int32)
    segments = [{"id": 1, "category_id": 0, "iscrowd": 0}, {"id": 2, "category_id": 2, "iscrowd": 0}]
    item = {"image_id": 1, "file_name": "x.jpg", "segment_ids": ids, "segments": segments}
    evaluator = SemanticEvaluator(dataset)
    evaluator.process([item], [{"semantic": torch.tensor([[0, 0, 2, 3]])}])
    assert evaluator.evaluate()["semantic"] == pytest.approx({"mIoU": 75, "pACC": 75})


def test_files_in_cocos_results_format(dataset, data, tmp_path):
    evaluator = PanopticEvaluator(dataset, str(tmp_path))
    evaluator.process(*data)
    evaluator.evaluate()
    written = json.loads((tmp_path / "panoptic.json").read_text())["annotations"]
    assert [x["image_id"] for x in written] == list(range(40))
    for entry, output in zip(written, data[1], strict=True):
        ids, segments = output["panoptic_seg"]
        pixels = np.asarray(Image.open(tmp_path / "panoptic" / entry["file_name"])).astype(np.int64)
        assert np.array_equal(pixels[..., 0] + 256 * pixels[..., 1] + 256**2 * pixels[..., 2], ids.numpy())
        expected = [{"id": s["id"], "category_id": CATEGORY_IDS[s["category_id"]]} for s in segments]
        assert entry["segments_info"] == expected
