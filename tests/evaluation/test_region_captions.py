"""Captions of regions: the metrics are those of captions over regions, and chance is another region's caption."""

import json

import pytest
import torch

from uniperceiver_v2.evaluation import RegionCaptionEvaluator
from uniperceiver_v2.evaluation.caption_metrics import caption_metrics

REFERENCES = [
    [["a red seven", "a large red seven at the top"], ["a blue two"]],
    [["a white zero", "a small white zero"]],
    [["a green nine in the middle"]],
]
CAPTIONS = [["a red seven", "a blue three"], ["a white zero at the top"], ["a green nine"]]


def process(evaluator, order):
    for image_id in order:
        references = REFERENCES[image_id]
        item = {"image_id": image_id, "file_name": f"{image_id}.png", "references": references}
        item["regions"] = torch.rand(len(references), 4)
        scores = [-1.5] * len(references)
        evaluator.process([item], [{"captions": CAPTIONS[image_id], "log_likelihoods": scores}])


def test_metrics_and_files(tmp_path, few_paraphrases):
    evaluator = RegionCaptionEvaluator("any", str(tmp_path))
    process(evaluator, (2, 0, 1))
    results = evaluator.evaluate()
    references = dict(enumerate(region for image in REFERENCES for region in image))
    captions = dict(enumerate(caption for image in CAPTIONS for caption in image))
    others = {0: "a white zero", 1: "a green nine in the middle", 2: "a red seven", 3: "a blue two"}
    names = ("region caption", "region caption (another region's)")
    expected = caption_metrics(references, dict(zip(names, (captions, others), strict=True)))
    for name in names:
        for metric in ("Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr"):
            assert results[name][metric] == pytest.approx(expected[name][metric])
    assert results[names[0]]["CIDEr"] > results[names[1]]["CIDEr"]
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert [x["image_id"] for x in written] == [0, 1, 2]
    assert [region["caption"] for region in written[0]["regions"]] == CAPTIONS[0]
    assert written[0]["regions"][0]["references"] == REFERENCES[0][0] and len(written[0]["regions"][0]["box"]) == 4
