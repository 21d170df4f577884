"""Average recall of class-agnostic proposals, by COCO's rules."""

import contextlib
import io

from detectron2.data import MetadataCatalog
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .gathering import GatheringEvaluator
from .ground_truth import make_usable

LIMITS = (10, 100, 300)  # the numbers of an image's best proposals that count


class ProposalEvaluator(GatheringEvaluator):
    """COCO's average recall in percent, of objects of all categories as if they were of one.

    ``AR@100`` is the share of objects that are among an image's best 100 proposals. It is a mean over the thresholds
    0.5, 0.55, ..., 0.95 of IoU. Crowds are no objects.

    Args:
        dataset_name: a registered dataset whose metadata has a "json_file" in COCO's instances format.
        output_folder: for ``results.json``, and for ``proposals.json`` in COCO's results format. None writes no files.
    """

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        super().__init__(dataset_name, output_folder)
        json_file = MetadataCatalog.get(dataset_name).json_file
        with contextlib.redirect_stdout(io.StringIO()):
            self._truth = COCO(json_file)
        self._has_masks = make_usable(self._truth, json_file)
        # pycocotools leaves out proposals of a category that is not there.
        self._category = min(self._truth.getCatIds())

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with "image_id".
            outputs: predictions with "instances".
        """
        for sample, output in zip(inputs, outputs, strict=True):
            found = instances_to_coco_json(output["instances"].to("cpu"), sample["image_id"])
            proposals = [{**proposal, "category_id": self._category} for proposal in found]
            self._records.append({"image_id": sample["image_id"], "proposals": proposals})

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        proposals = [proposal for record in records for proposal in record["proposals"]]
        self._write("proposals.json", proposals)
        kinds = ["bbox"]
        if self._has_masks and all("segmentation" in proposal for proposal in proposals):
            kinds.append("segm")
        return {kind: average_recall(self._truth, proposals, kind) for kind in kinds}


def average_recall(truth: COCO, proposals: list[dict], kind: str) -> dict[str, float]:
    """{"AR@10": ..., "AR@100": ..., "AR@300": ...} in percent, whatever the categories; NaN without objects.

    Args:
        truth: the objects.
        proposals: in COCO's results format, at least one, of categories of the truth.
        kind: "bbox" or "segm".
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(proposals), kind)
        evaluation.params.useCats = 0
        evaluation.params.maxDets = list(LIMITS)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    recall = evaluation.eval["recall"][:, 0, 0].mean(axis=0)  # [thresholds, categories, areas, limits]
    return {
        f"AR@{limit}": 100 * float(value) if value >= 0 else float("nan")
        for limit, value in zip(LIMITS, recall, strict=True)
    }
