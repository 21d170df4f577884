"""Accuracy and recall of phrase grounding at an IoU of 0.5."""

import torch
from torch import Tensor

from .gathering import GatheringEvaluator

IOU = 0.5
RANKS = (1, 5, 10)
THRESHOLD = 0.3  # a phrase whose best score is below means nothing


class GroundingEvaluator(GatheringEvaluator):
    """How often the best boxes of a phrase overlap what it means, in percent, over the phrases of all ranks.

    - ``Acc@0.5``: the best box has an IoU of at least 0.5 with a box of the phrase. It is RefCOCO's accuracy, where
      every phrase has one box, and the recall@1 of Flickr30k Entities.
    - ``R@5@0.5``, ``R@10@0.5``: one of the 5 or 10 best boxes has.
    - ``N-acc``, ``T-acc``: of the phrases that mean nothing, the share whose best score is below ``THRESHOLD``; of the
      others, the share whose best is not (as in GREC, He et al., 2023, who have a threshold, too).

    Where phrases have several boxes, any of them counts in the row "grounding" (the "any box" protocol). The row
    "grounding (merged boxes)" compares with the smallest box around all of them, as Plummer et al. (ICCV 2015) do and
    most results on Flickr30k Entities; Kamath et al. (MDETR, ICCV 2021) report both. The predictions are the same
    single boxes.

    Args:
        dataset_name: a registered dataset of images with phrases.
        output_folder: for ``results.json`` and ``predictions.json``, which has the phrases of every image with their
            boxes (x0, y0, x1, y1 in pixels), those found and their scores; None writes neither.
    """

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "image_id", "file_name", "phrases" and "phrase_boxes".
            outputs: with "instances": pred_boxes, scores and pred_classes, the place in "phrases"; best first.

        Raises:
            FloatingPointError: a box or a score is not finite.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            found = output["instances"]
            boxes, scores = found.pred_boxes.tensor.cpu().double(), found.scores.cpu().double()
            # NaN is greater than nothing: unseen, it would count as not found.
            if not (boxes.isfinite().all() and scores.isfinite().all()):
                raise FloatingPointError(f"a prediction for image {sample['image_id']} is not finite")
            phrases = []
            for index, (phrase, truth) in enumerate(zip(sample["phrases"], sample["phrase_boxes"], strict=True)):
                own = (found.pred_classes.cpu() == index).nonzero().flatten()[: max(RANKS)]
                phrases.append(
                    {
                        "phrase": phrase,
                        "boxes": truth.tolist(),
                        "found": boxes[own].tolist(),
                        "scores": scores[own].tolist(),
                    }
                )
            record = {"image_id": sample["image_id"], "file_name": sample["file_name"], "phrases": phrases}
            self._records.append(record)

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        self._write("predictions.json", [_readable(record) for record in records])
        phrases = [phrase for record in records for phrase in record["phrases"]]
        meaning = [phrase for phrase in phrases if phrase["boxes"]]
        results = {"grounding": _recalls(meaning, merged=False)}
        if any(len(phrase["boxes"]) > 1 for phrase in meaning):
            results["grounding (merged boxes)"] = _recalls(meaning, merged=True)
        if len(meaning) < len(phrases):
            nothing = [phrase for phrase in phrases if not phrase["boxes"]]
            results["grounding"]["N-acc"] = _percent([not _is_accepted(phrase) for phrase in nothing])
            results["grounding"]["T-acc"] = _percent([_is_accepted(phrase) for phrase in meaning])
        return results


def _recalls(phrases: list[dict], merged: bool) -> dict[str, float]:
    ranks = torch.tensor([_rank(phrase, merged) for phrase in phrases])
    names = {1: f"Acc@{IOU}", **{k: f"R@{k}@{IOU}" for k in RANKS[1:]}}
    return {name: _percent(ranks < k) for k, name in names.items()}


def _rank(phrase: dict, merged: bool) -> int:
    """The place, from 0, of the first box that is right; beyond all ranks if none is."""
    truth = torch.tensor(phrase["boxes"], dtype=torch.float64)
    if merged:
        truth = torch.cat((truth[:, :2].amin(0), truth[:, 2:].amax(0)))[None]
    found = torch.tensor(phrase["found"], dtype=torch.float64).reshape(-1, 4)
    right = (_ious(found, truth) >= IOU).any(1).nonzero().flatten()
    return int(right[0]) if len(right) else max(RANKS)


def _ious(a: Tensor, b: Tensor) -> Tensor:
    """IoU [M,N] of boxes a [M,4] and b [N,4], corners in float64: a prediction at the limit must not be rounded."""
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    overlap = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1] - overlap
    return overlap / union.clamp(min=torch.finfo(torch.float64).tiny)


def _is_accepted(phrase: dict) -> bool:
    return bool(phrase["scores"]) and phrase["scores"][0] >= THRESHOLD


def _percent(hits: list[bool] | Tensor) -> float:
    hits = torch.as_tensor(hits, dtype=torch.float64)
    return 100 * hits.mean().item()  # NaN where there is nothing


def _readable(record: dict) -> dict:
    rounded = [
        {
            **phrase,
            "boxes": [[round(value, 2) for value in box] for box in phrase["boxes"]],
            "found": [[round(value, 2) for value in box] for box in phrase["found"]],
            "scores": [round(value, 4) for value in phrase["scores"]],
        }
        for phrase in record["phrases"]
    ]
    return {**record, "phrases": rounded}
