"""Accuracy and recall of grounding against formulas written out plainly."""

import json
import math
import random

import pytest
import torch
from detectron2.structures import Boxes, Instances

from uniperceiver_v2.evaluation import GroundingEvaluator, format_results_table


def plain_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def plain_recall(phrases, k, merged):
    """Of (boxes of the phrase, boxes found), in percent."""
    hits = 0
    for truth, found in phrases:
        if merged:
            truth = [
                [min(b[0] for b in truth), min(b[1] for b in truth), max(b[2] for b in truth), max(b[3] for b in truth)]
            ]
        hits += any(plain_iou(f, t) >= 0.5 for f in found[:k] for t in truth)
    return 100 * hits / len(phrases)


def prediction(per_phrase):
    """An output of the model: [(box, score)] of each phrase, best first."""
    found = Instances((100, 100))
    pairs = [(index, box, score) for index, own in enumerate(per_phrase) for box, score in own]
    found.pred_boxes = Boxes(torch.tensor([box for _, box, _ in pairs], dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.tensor([score for *_, score in pairs])
    found.pred_classes = torch.tensor([index for index, *_ in pairs], dtype=torch.int64)
    return {"instances": found}


def sample(image_id, boxes):
    phrases = tuple(f"phrase {i}" for i in range(len(boxes)))
    tables = [torch.tensor(b, dtype=torch.float64).reshape(-1, 4) for b in boxes]
    return {"image_id": image_id, "file_name": f"{image_id}.png", "phrases": phrases, "phrase_boxes": tables}


def random_box(rng):
    x, y = rng.randrange(0, 60), rng.randrange(0, 60)
    return [x, y, x + rng.randrange(8, 40), y + rng.randrange(8, 40)]


def jittered(rng, box, by):
    return [value + rng.randrange(-by, by + 1) for value in box]


@pytest.fixture
def data():
    """Inputs and outputs of 30 images in which a phrase means none to three boxes."""
    rng = random.Random(3)
    inputs, outputs = [], []
    for image_id in range(30):
        boxes = [[random_box(rng) for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))] for _ in range(rng.randrange(1, 6))]
        ranked = []
        for own in boxes:
            found = [
                jittered(rng, rng.choice(own), 3) if own and rng.random() < 0.3 else random_box(rng) for _ in range(12)
            ]
            ranked.append(
                [(box, score) for box, score in zip(found, sorted((rng.random() for _ in found), reverse=True))]
            )
        inputs.append(sample(image_id, boxes))
        outputs.append(prediction(ranked))
    return inputs, outputs


def expected_of(inputs, outputs):
    phrases, best = [], {True: [], False: []}
    for item, output in zip(inputs, outputs):
        found = output["instances"]
        for index, truth in enumerate(item["phrase_boxes"]):
            own = (found.pred_classes == index).nonzero().flatten().tolist()
            boxes = [found.pred_boxes.tensor[i].tolist() for i in own]
            best[len(truth) > 0].append(found.scores[own[0]].item() >= 0.3)
            if len(truth):
                phrases.append((truth.tolist(), boxes))
    recalls = {
        merged: {
            name: pytest.approx(plain_recall(phrases, k, merged))
            for name, k in (("Acc@0.5", 1), ("R@5@0.5", 5), ("R@10@0.5", 10))
        }
        for merged in (False, True)
    }
    shares = {
        "N-acc": pytest.approx(100 - 100 * sum(best[False]) / len(best[False])),
        "T-acc": pytest.approx(100 * sum(best[True]) / len(best[True])),
    }
    return {"grounding": recalls[False] | shares, "grounding (merged boxes)": recalls[True]}


def test_equals_the_plain_formula(data, tmp_path):
    inputs, outputs = data
    evaluator = GroundingEvaluator("anything", str(tmp_path))
    evaluator.reset()
    for start in range(0, 30, 7):
        evaluator.process(inputs[start : start + 7], outputs[start : start + 7])
    results = evaluator.evaluate()
    assert results == expected_of(inputs, outputs)
    row = results["grounding"]
    assert 10 < row["Acc@0.5"] < row["R@5@0.5"] < row["R@10@0.5"] < 100
    assert results["grounding (merged boxes)"]["Acc@0.5"] != row["Acc@0.5"]
    assert json.loads((tmp_path / "results.json").read_text()) == results
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert [record["image_id"] for record in written] == list(range(30))
    first = written[0]["phrases"][0]
    assert first.keys() == {"phrase", "boxes", "found", "scores"} and len(first["found"]) == len(first["scores"]) == 10
    assert "Acc@0.5 | R@5@0.5 | R@10@0.5 |" in format_results_table({"phrases": results})


def test_two_ranks_evaluate_as_one(data, on_two_ranks):
    inputs, outputs = data
    first, second = on_two_ranks(lambda: GroundingEvaluator("anything", None), inputs, outputs)
    assert first == expected_of(inputs, outputs) and second == {}


def evaluate(inputs, outputs):
    evaluator = GroundingEvaluator("anything", None)
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate()


def test_half_an_overlap_is_enough_and_less_is_not():
    truth = [[0, 0, 20, 10]]
    for found, right in (([0, 0, 10, 10], 100), ([0, 0, 9.99, 10], 0)):
        assert evaluate([sample(1, [truth])], [prediction([[(found, 0.9)]])])["grounding"]["Acc@0.5"] == right


def test_any_box_counts_and_a_merged_one_is_around_all():
    truth = [[0, 0, 10, 10], [30, 0, 40, 10]]
    one, around = [0, 0, 10, 10], [0, 0, 40, 10]
    results = evaluate([sample(1, [truth, truth])], [prediction([[(one, 0.9)], [(around, 0.9)]])])
    assert results["grounding"]["Acc@0.5"] == results["grounding (merged boxes)"]["Acc@0.5"] == 50
    only_one = evaluate([sample(1, [truth])], [prediction([[(one, 0.9)]])])
    assert (only_one["grounding"]["Acc@0.5"], only_one["grounding (merged boxes)"]["Acc@0.5"]) == (100, 0)


def test_where_each_phrase_has_one_box_there_is_one_row():
    results = evaluate([sample(1, [[[0, 0, 10, 10]]])], [prediction([[([50, 50, 60, 60], 0.9), ([0, 0, 9, 9], 0.1)]])])
    assert results == {"grounding": {"Acc@0.5": 0, "R@5@0.5": 100, "R@10@0.5": 100}}


def test_phrases_of_nothing_alone():
    results = evaluate([sample(1, [[], []])], [prediction([[([0, 0, 9, 9], 0.2)], [([0, 0, 9, 9], 0.4)]])])
    assert results["grounding"]["N-acc"] == 50
    assert math.isnan(results["grounding"]["Acc@0.5"])


@pytest.mark.parametrize("what", ["box", "score"])
def test_what_is_not_finite_is_no_miss(what):
    box, score = ([math.nan, 0, 9, 9], 0.4) if what == "box" else ([0, 0, 9, 9], math.nan)
    with pytest.raises(FloatingPointError, match="image 7"):
        evaluate([sample(7, [[[0, 0, 9, 9]]])], [prediction([[(box, score)]])])
