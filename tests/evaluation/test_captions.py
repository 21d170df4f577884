"""The evaluator of captions with its baselines. It runs without Java, as the metrics have their own tests."""

import json
import math

import pytest
import torch

from uniperceiver_v2.evaluation import CaptionBaselines, CaptionEvaluator
from uniperceiver_v2.evaluation.caption_metrics import caption_metrics

COLOURS = ("red", "green", "blue", "white")
TRAINING = [[f"a {colour} dog", f"one dog, {colour}"] for colour in COLOURS]
ROWS = ["caption", "caption (random training caption)", "caption (nearest training image)"]


@pytest.fixture(autouse=True)
def without_java(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))


def baselines(seed=0):
    return CaptionBaselines(3 * torch.eye(4), TRAINING, seed)


def samples(count=12):
    """Image k shows a dog of colour k % 4 and is nearest to the training image of that colour. Ids are in descending
    order."""
    inputs, outputs = [], []
    for k in reversed(range(count)):
        colour = COLOURS[k % 4]
        references = [f"a {colour} dog", f"there is a {colour} dog"]
        inputs.append({"image_id": 100 + k, "file_name": f"{k}.png", "captions": references})
        feature = 0.1 * torch.rand(4) + torch.eye(4)[k % 4]
        caption = f"a {colour} dog" if k else "ein größer 犬"
        outputs.append({"caption": caption, "log_likelihood": -float(k), "image_feature": feature})
    return inputs, outputs


def test_results_and_files(tmp_path):
    inputs, outputs = samples()
    evaluator = CaptionEvaluator("dogs", str(tmp_path / "out"), baselines())
    evaluator.reset()
    for start in range(0, 12, 5):
        evaluator.process(inputs[start : start + 5], outputs[start : start + 5])
    results = evaluator.evaluate()
    assert list(results) == ROWS

    predictions = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [p["image_id"] for p in predictions] == list(range(100, 112))
    assert predictions[0]["caption"] == "ein größer 犬"
    assert predictions[3]["references"] == ["a white dog", "there is a white dog"]
    assert predictions[3]["log_likelihood"] == -3 and predictions[3]["file_name"] == "3.png"
    coco = json.loads((tmp_path / "out/coco_captions_results.json").read_text())
    assert coco == [{"image_id": p["image_id"], "caption": p["caption"]} for p in predictions]

    references = {p["image_id"]: p["references"] for p in predictions}
    expected = caption_metrics(references, {row: {p["image_id"]: p[row] for p in predictions} for row in ROWS})
    assert repr(results) == repr(expected), "NaN is not equal to itself"
    assert results[ROWS[0]]["Bleu_1"] > results[ROWS[2]]["Bleu_1"] > results[ROWS[1]]["Bleu_1"] > 0
    assert math.isnan(results["caption"]["METEOR"])
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert written["caption"]["METEOR"] is None
    assert written["caption"]["CIDEr"] == results["caption"]["CIDEr"]
    assert repr(evaluator.evaluate()) == repr(results)


def test_without_baselines_no_feature_is_needed():
    inputs, outputs = samples(3)
    for output in outputs:
        del output["image_feature"]
    evaluator = CaptionEvaluator("dogs")
    evaluator.process(inputs, outputs)
    assert list(evaluator.evaluate()) == ["caption"]
    evaluator.reset()
    assert evaluator.evaluate() == {}


def test_two_ranks_give_the_result_of_one(on_two_ranks, tmp_path):
    inputs, outputs = samples()
    alone = CaptionEvaluator("dogs", None, baselines())
    alone.process(inputs, outputs)
    first, second = on_two_ranks(lambda: CaptionEvaluator("dogs", str(tmp_path), baselines()), inputs, outputs)
    assert repr(first) == repr(alone.evaluate())
    assert second == {}
    assert len(json.loads((tmp_path / "coco_captions_results.json").read_text())) == 12


def test_the_nearest_image_is_that_of_the_highest_cosine():
    generator = torch.Generator().manual_seed(0)
    known, asked = torch.randn(50, 6, generator=generator), torch.randn(3000, 6, generator=generator)
    known *= torch.rand(50, 1, generator=generator) + 0.1  # the nearest by cosine, not by product
    found = CaptionBaselines(known, [[f"{i} a", f"{i} b"] for i in range(50)]).nearest(asked)
    cosines = (asked.double() @ known.double().T) / known.double().norm(dim=1)
    assert [int(text.split()[0]) for text in found] == cosines.argmax(dim=1).tolist()
    assert 1300 < sum(text.endswith("a") for text in found) < 1700


def test_random_captions_are_drawn_from_all_by_the_seed():
    drawn = baselines().random(4000)
    assert drawn == baselines().random(4000) != baselines(seed=1).random(4000)
    everything = [caption for captions in TRAINING for caption in captions]
    assert all(400 < drawn.count(caption) < 600 for caption in everything)


def test_baselines_need_captions_of_every_image():
    with pytest.raises(ValueError, match="2 features and captions of 4"):
        CaptionBaselines(torch.zeros(2, 3), TRAINING)
    with pytest.raises(ValueError, match="0 features"):
        CaptionBaselines(torch.zeros(0, 3), [])
    with pytest.raises(ValueError, match="training image 1 has no caption"):
        CaptionBaselines(torch.zeros(2, 3), [["a"], []])


def test_an_image_without_reference_is_refused():
    inputs, outputs = samples(1)
    inputs[0]["captions"] = []
    with pytest.raises(ValueError, match="image 100 has no caption"):
        CaptionEvaluator("dogs").process(inputs, outputs)
