"""Panoptic quality and mean IoU."""

import os

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from .gathering import GatheringEvaluator

_COUNTS = ("iou", "tp", "fp", "fn")  # of the segments of a category: sum of the IoUs of true positives, and numbers


class SemanticEvaluator(GatheringEvaluator):
    """Mean IoU and accuracy of pixels in percent, over the pixels of all ranks that have a class.

    - ``mIoU``: the mean over the classes that occur of (pixels where both have the class) / (pixels where either has).
    - ``pACC``: of the pixels, the share with the right class.

    Args:
        dataset_name: a registered dataset with "thing_classes", loaded before.
        output_folder: for ``results.json``. None writes no files.
    """

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with "image_id", "segment_ids" and "segments".
            outputs: predictions with "semantic" [H,W], the place of a class at each pixel.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            self._records.append(
                {"image_id": sample["image_id"], "pixels": self._pixels(sample, output["semantic"].cpu().numpy())}
            )

    def _pixels(self, sample: dict, found: np.ndarray) -> list[tuple[int, int, int]]:
        """(class, predicted class, number of pixels) of all pairs that occur."""
        classes = np.full(found.shape, -1, dtype=np.int64)
        for segment in sample["segments"]:
            classes[sample["segment_ids"] == segment["id"]] = segment["category_id"]
        pairs, numbers = np.unique(np.stack([classes, found])[:, classes >= 0], axis=1, return_counts=True)
        return [(int(true), int(guess), int(n)) for (true, guess), n in zip(pairs.T, numbers)]

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        count = len(MetadataCatalog.get(self._dataset_name).thing_classes)
        table = np.zeros((count, count))
        for true, guess, number in (entry for record in records for entry in record["pixels"]):
            table[true, guess] += number
        both, true = table.diagonal(), table.sum(1)
        occurring = true > 0
        ious = both[occurring] / (true + table.sum(0) - both)[occurring]
        return {"semantic": {"mIoU": 100 * _mean(ious), "pACC": 100 * float(both.sum() / max(table.sum(), 1))}}


class PanopticEvaluator(SemanticEvaluator):
    """Panoptic quality (Kirillov et al., CVPR 2019) in percent, and the mean IoU of the base class.

    ``PQ`` of a category is the sum of the IoUs of its true positives, divided by TP + FP / 2 + FN / 2. ``SQ`` is their
    mean IoU, ``RQ`` the same fraction without IoUs. They are means over the categories that occur; ``PQ_th`` and
    ``PQ_st`` those over things and over stuff. Pixels of no segment, and crowds, count as in COCO's own program.

    Args:
        dataset_name: a registered dataset with "thing_classes", "is_stuff" and "category_ids", loaded before.
        output_folder: for ``results.json``; for ``panoptic.json`` with the PNGs in ``panoptic/``, in COCO's results
            format. None writes no files.
    """

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with "image_id", "file_name", "segment_ids" and "segments".
            outputs: predictions with "semantic", and with "panoptic_seg": an id at each pixel [H,W], 0 for none, and
                {"id", "category_id"} of each segment.
        """
        super().process(inputs, outputs)
        for record, sample, output in zip(self._records[-len(inputs) :], inputs, outputs, strict=True):
            ids, segments = output["panoptic_seg"]
            ids = ids.cpu().numpy()
            record["counts"] = panoptic_counts(sample["segment_ids"], sample["segments"], ids, segments)
            record["file_name"] = os.path.splitext(os.path.basename(sample["file_name"]))[0] + ".png"
            record["segments_info"] = [{"id": s["id"], "category_id": s["category_id"]} for s in segments]
            if self._output_folder is not None:
                folder = os.path.join(self._output_folder, "panoptic")
                os.makedirs(folder, exist_ok=True)
                colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=2).astype(np.uint8)
                Image.fromarray(colours).save(os.path.join(folder, record["file_name"]))

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        metadata = MetadataCatalog.get(self._dataset_name)
        written = [
            {
                "image_id": record["image_id"],
                "file_name": record["file_name"],
                "segments_info": [
                    {**s, "category_id": metadata.category_ids[s["category_id"]]} for s in record["segments_info"]
                ],
            }
            for record in records
        ]
        self._write("panoptic.json", {"annotations": written})
        totals = np.zeros((len(metadata.thing_classes), len(_COUNTS)))
        for category, counts in (entry for record in records for entry in record["counts"].items()):
            totals[category] += counts
        iou, tp, fp, fn = totals.T
        of_all = tp + fp / 2 + fn / 2
        occurs, is_stuff = of_all > 0, np.array(metadata.is_stuff)
        with np.errstate(invalid="ignore"):
            pq, rq = iou / of_all, tp / of_all
        sq = np.divide(iou, tp, out=np.zeros_like(iou), where=tp > 0)
        found = {name: 100 * _mean(values[occurs]) for name, values in (("PQ", pq), ("SQ", sq), ("RQ", rq))}
        found |= {"PQ_th": 100 * _mean(pq[occurs & ~is_stuff]), "PQ_st": 100 * _mean(pq[occurs & is_stuff])}
        return {"panoptic": found, **super()._metrics(records)}


def panoptic_counts(
    true_ids: np.ndarray, true: list[dict], found_ids: np.ndarray, found: list[dict]
) -> dict[int, list[float]]:
    """Of an image, for each category that occurs: the sum of IoUs, and the numbers of true positives, false positives
    and false negatives.

    Args:
        true_ids, found_ids: [H,W], the id of a segment at each pixel, 0 for none.
        true, found: {"id", "category_id"} of each segment, of the true ones with "iscrowd" as well.
    """
    pairs, numbers = np.unique(np.stack([true_ids.ravel(), found_ids.ravel()]), axis=1, return_counts=True)
    common = {(int(t), int(f)): int(n) for (t, f), n in zip(pairs.T, numbers)}
    areas = [dict(zip(*(x.tolist() for x in np.unique(ids, return_counts=True)))) for ids in (true_ids, found_ids)]
    counts: dict[int, list[float]] = {s["category_id"]: [0.0, 0, 0, 0] for s in (*true, *found)}
    matched_true, matched_found = set(), set()
    for t in true:
        for f in found:
            both = common.get((t["id"], f["id"]), 0)
            if t["iscrowd"] or t["category_id"] != f["category_id"] or not both:
                continue
            # Pixels of no true segment are not held against a prediction.
            union = areas[0][t["id"]] + areas[1][f["id"]] - both - common.get((0, f["id"]), 0)
            if both / union > 0.5:  # and so with one segment at most
                counts[t["category_id"]][0] += both / union
                counts[t["category_id"]][1] += 1
                matched_true.add(t["id"])
                matched_found.add(f["id"])
    for t in true:
        counts[t["category_id"]][3] += not t["iscrowd"] and t["id"] not in matched_true
    for f in found:
        if f["id"] in matched_found:
            continue
        # A prediction that lies mostly on nothing or on a crowd of its category does not count.
        crowds = [t["id"] for t in true if t["iscrowd"] and t["category_id"] == f["category_id"]]
        excused = sum(common.get((i, f["id"]), 0) for i in (0, *crowds[-1:]))
        counts[f["category_id"]][2] += excused / areas[1][f["id"]] <= 0.5
    return {category: row for category, row in counts.items() if any(row)}


def _mean(values) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
