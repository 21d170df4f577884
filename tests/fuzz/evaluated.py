"""Evaluates made-up predictions on records, as inference would with a model's."""

from collections.abc import Callable, Sequence

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Boxes, Instances


def evaluate(evaluator: DatasetEvaluator, evaluator_type: str, records: Sequence[dict], classes: int) -> None:
    """All that an evaluator does, for a prediction of each record.

    Args:
        evaluator: of the records' dataset.
        evaluator_type: the dataset's.
        records: as they were loaded.
        classes: their number.
    """
    prediction_of = PREDICTIONS[evaluator_type]
    evaluator.reset()
    for record in records:
        sample, output = prediction_of(record, classes)
        evaluator.process([sample], [output])
    evaluator.evaluate()


def _found(record: dict, classes: int) -> tuple[dict, dict]:
    height, width = record["height"] or 32, record["width"] or 48  # inference knows them from the picture
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, : height // 2], masks[1, height // 2 :] = True, True
    boxes = Boxes(torch.tensor([[0.0, 0, width, height / 2], [0, height / 2, width, height]]))
    scores, chosen = torch.tensor([0.9, 0.2]), torch.tensor([0, classes - 1])
    found = Instances((height, width), pred_boxes=boxes, scores=scores, pred_classes=chosen, pred_masks=masks)
    return record, {"instances": found}


def _phrases(record: dict, classes: int) -> tuple[dict, dict]:
    table = torch.tensor([a["bbox"] for a in record["annotations"]], dtype=torch.float64).reshape(-1, 4)
    table[:, 2:] += table[:, :2]
    entries = record["phrases"]
    sample = {
        **record,
        "phrases": [entry["phrase"] for entry in entries],
        "phrase_boxes": [table[list(entry["objects"])] for entry in entries],
    }
    found, count = Instances((32, 48)), len(entries)
    found.pred_boxes = Boxes(torch.tensor([[1.0, 2, 11, 14]]).repeat(count, 1))
    found.scores, found.pred_classes = torch.full((count,), 0.5), torch.arange(count)
    return sample, {"instances": found}


# {evaluator_type: (record, number of classes) -> (sample, output)}, without captions, whose METEOR takes seconds.
PREDICTIONS: dict[str, Callable[[dict, int], tuple[dict, dict]]] = {
    "coco": _found,
    "lvis": _found,
    "grounding": _phrases,
    "imagenet": lambda record, classes: (record, {"scores": torch.arange(classes) / classes}),
    "corpus": lambda record, classes: (
        record,
        {"log_likelihoods": torch.tensor([-1.0, -2.0]), "correct": torch.tensor([True, False])},
    ),
}
