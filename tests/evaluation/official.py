"""Figures that official scripts compute from the files of an evaluation, under the names of its results."""

import contextlib
import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import lvis.eval
import numpy as np
import pycocoevalcap.eval
import pytest
from lvis import LVIS, LVISEval, LVISResults
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

LVIS_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def differences(
    found: dict[str, float | None], expected: dict[str, float], tolerance: float = 1e-6
) -> dict[str, tuple[float | None, float]]:
    """The official figures that ours differ from: {name: (ours, official)}. What an official script cannot compute (-1
    or NaN) is null or negative in ours."""

    def is_none(value: float | None) -> bool:
        return value is None or math.isnan(value) or value < 0

    return {
        name: (found[name], value)
        for name, value in expected.items()
        if is_none(found[name]) != is_none(value) or (not is_none(value) and abs(found[name] - value) > tolerance)
    }


def coco_figures(json_file: str, results: Path, kind: str) -> dict[str, float]:
    """By pycocotools, of "bbox" or "segm"."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_file)
        evaluation = COCOeval(truth, truth.loadRes(_of_kind(results, kind)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), (100 * evaluation.stats[:6]).tolist()))


def lvis_figures(json_file: str, results: Path, kind: str) -> dict[str, float]:
    """By lvis, with NumPy's old name that it needs."""
    truth = LVIS(json_file)
    evaluation = LVISEval(truth, LVISResults(truth, _of_kind(results, kind), max_dets=300), kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lvis.eval, "np", _OldNumpy())
        evaluation.run()
    return {name: 100 * float(evaluation.get_results()[name]) for name in LVIS_METRICS}


def caption_figures(references: dict[int, list[str]], results: Path) -> dict[str, float]:
    """By pycocoevalcap's script for COCO, all but SPICE, whose models it would download."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.setattr(pycocoevalcap.eval, "Spice", _NoSpice)
        truth = COCO()
        entries = [(image, caption) for image, captions in references.items() for caption in captions]
        annotations = [{"id": n, "image_id": i, "caption": caption} for n, (i, caption) in enumerate(entries)]
        truth.dataset = {"images": [{"id": image} for image in references], "annotations": annotations}
        truth.createIndex()
        script = pycocoevalcap.eval.COCOEvalCap(truth, truth.loadRes(str(results)))
        script.evaluate()
    return {name: 100 * float(value) for name, value in script.eval.items() if name != "SPICE"}


def retrieval_figures(predictions: Path) -> dict[str, dict[str, float]]:
    """Recall in Karpathy's protocol, counted in the lists of the ten best. Right where no two candidates tie."""
    lists = read(predictions)
    owner = {caption["id"]: caption["image_id"] for caption in lists["captions"]}
    return {
        "text_retrieval": {
            f"R@{k}": _percent(any(owner[c] == x["image_id"] for c in x["best_captions"][:k]) for x in lists["images"])
            for k in (1, 5, 10)
        },
        "image_retrieval": {
            f"R@{k}": _percent(x["image_id"] in x["best_images"][:k] for x in lists["captions"]) for k in (1, 5, 10)
        },
    }


def classification_figures(predictions: Path) -> dict[str, float]:
    records = read(predictions)
    return {f"top{k}": _percent(r["label"] in r["classes"][:k] for r in records) for k in (1, 5)}


def refcoco_figures(predictions: Path) -> dict[str, float]:
    """The share of sentences whose best box has an IoU of 0.5 with the object's."""
    phrases = [phrase for record in read(predictions) for phrase in record["phrases"]]
    return {"Acc@0.5": _percent(_iou(p["found"][0], p["boxes"][0]) >= 0.5 for p in phrases)}


def _iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def _percent(hits) -> float:
    hits = list(hits)
    return 100 * sum(hits) / len(hits)


def _of_kind(results: Path, kind: str) -> list[dict]:
    """The detections of a file; for masks without boxes, from which the scripts would else take the areas."""
    return [{k: v for k, v in r.items() if kind == "bbox" or k != "bbox"} for r in copy.deepcopy(read(results))]


class _OldNumpy:
    float = float

    def __getattr__(self, name: str):
        return getattr(np, name)


class _NoSpice:
    def compute_score(self, references, candidates):
        return math.nan, [math.nan] * len(references)

    def method(self) -> str:
        return "SPICE"
