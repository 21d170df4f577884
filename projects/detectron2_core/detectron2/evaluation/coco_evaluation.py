"""COCO's metrics for boxes and masks, in percent."""

import contextlib
import io
import itertools
import json
import logging
import os
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.structures import BoxMode, Instances
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tabulate import tabulate

from .evaluator import DatasetEvaluator
from .fast_eval_api import COCOeval_opt

__all__ = ["COCOEvaluator", "instances_to_coco_json"]

# metric: (IoU threshold or None for the mean over all, area)
_METRICS = {
    "AP": (None, "all"),
    "AP50": (0.5, "all"),
    "AP75": (0.75, "all"),
    "APs": (None, "small"),
    "APm": (None, "medium"),
    "APl": (None, "large"),
}


class _InstanceEvaluator(DatasetEvaluator):
    """The common part of COCO's and LVIS's evaluators: collects instances, gathers them from all ranks, writes
    files."""

    _RESULTS_FILE: str  # the results JSON in output_dir
    _FIRST_ID: int  # the category id of class 0, if the metadata has no ids
    _METRIC_NAMES: tuple[str, ...]

    _do_evaluation: bool  # False for test sets without annotations

    def __init__(self, dataset_name: str, tasks, distributed: bool, output_dir: str | None):
        self._logger = logging.getLogger(__name__)
        if isinstance(tasks, CfgNode):
            self._logger.warning("%s takes no config any more: give `tasks`.", type(self).__name__)
            tasks = None
        self._tasks = tasks
        self._distributed = distributed
        self._output_dir = output_dir
        self._metadata = MetadataCatalog.get(dataset_name)
        self._predictions: list[dict] = []

    def reset(self):
        self._predictions = []

    def process(self, inputs: list[dict], outputs: list[dict]):
        """
        Args:
            inputs: samples with "image_id".
            outputs: predictions with "instances", see :func:`instances_to_coco_json`. Others are ignored.
        """
        for given, output in zip(inputs, outputs):
            if "instances" in output:
                instances = output["instances"].to(torch.device("cpu"))
                image_id = given["image_id"]
                converted = instances_to_coco_json(instances, image_id)
                self._predictions.append({"image_id": image_id, "instances": converted})

    def _gather(self) -> list[dict] | None:
        """The predictions of all ranks, also written to ``output_dir``. None on all ranks but the first."""
        predictions = self._predictions
        if self._distributed:
            comm.synchronize()
            predictions = list(itertools.chain(*comm.gather(predictions, dst=0)))
            if not comm.is_main_process():
                return None
        if not predictions:
            self._logger.warning("[%s] Did not receive valid predictions.", type(self).__name__)
        elif self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, "instances_predictions.pth")
            with PathManager.open(path, "wb") as file:
                torch.save(predictions, file)
        return predictions

    def _evaluate(self, metrics_of: Callable[[list[dict], str], dict[str, float]]) -> dict:
        """Metrics of each task.

        Args:
            metrics_of: (results, task) -> {metric: value}. There is at least one result.
        """
        predictions = self._gather()
        if not predictions:
            return {}
        results = self._in_dataset_ids(predictions)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return {}
        metrics = OrderedDict()
        for task in self._tasks_of(results):
            assert task in ("bbox", "segm"), f"Got unknown task: {task}!"
            if not results:  # neither API accepts an empty list
                self._logger.warning("No predictions from the model!")
                metrics[task] = dict.fromkeys(self._METRIC_NAMES, float("nan"))
                continue
            # Both APIs take a detection's area from its box if it has one. For masks it should be the mask's area.
            dropped = "bbox" if task == "segm" else None
            metrics[task] = metrics_of([{k: v for k, v in r.items() if k != dropped} for r in results], task)
        return metrics

    def _in_dataset_ids(self, predictions: list[dict]) -> list[dict]:
        """The detections of all images with the dataset's category ids. Writes them to the results JSON.

        They are copies, as ``evaluate`` may be called again.
        """
        to_index = self._metadata.get("thing_dataset_id_to_contiguous_id")
        id_of = None if to_index is None else {index: i for i, index in to_index.items()}
        results = []
        for result in itertools.chain.from_iterable(p["instances"] for p in predictions):
            category = result["category_id"]
            assert id_of is None or category in id_of, (
                f"A prediction has class={category}, but the dataset only has {len(id_of)} classes and "
                f"predicted class id should be in [0, {len(id_of) - 1}]."
            )
            dataset_id = category + self._FIRST_ID if id_of is None else id_of[category]
            results.append({**result, "category_id": dataset_id})
        if self._output_dir:
            path = os.path.join(self._output_dir, self._RESULTS_FILE)
            self._logger.info("Saving results to %s", path)
            with PathManager.open(path, "w") as file:
                json.dump(results, file)
        return results

    def _tasks_of(self, results: list[dict]) -> list[str]:
        if self._tasks:
            return sorted(self._tasks)
        return ["bbox", "segm"] if any("segmentation" in result for result in results) else ["bbox"]


class COCOEvaluator(_InstanceEvaluator):
    """AP of boxes and masks by COCO's rules, http://cocodataset.org/#detection-eval, from 0 to 100.

    A metric that cannot be computed is NaN, for example without ground truth of its area. With more than one category,
    "AP-<name>" is the AP of each category.

    Args:
        dataset_name: a dataset with "json_file" in its metadata. Any other registered dataset is first written to
            ``output_dir`` as a COCO JSON.
        tasks: a selection of "bbox" and "segm". None evaluates the types that the predictions have.
        distributed: whether predictions of all ranks are gathered and evaluated on the first. Otherwise each rank
            evaluates its own.
        output_dir: for "coco_instances_results.json" and "instances_predictions.pth". None writes no files.
        max_dets_per_image: the number of detections of an image and category that count, best first. None is 100.
        use_fast_impl: evaluate with faster-coco-eval, otherwise with pycocotools.
        kpt_oks_sigmas: upstream's argument; only its default is accepted, as keypoints need upstream.
        allow_cached_coco: reuse a JSON that was written earlier for a dataset without "json_file".

    Raises:
        ValueError: a JSON has to be written and there is no ``output_dir``.
    """

    _RESULTS_FILE = "coco_instances_results.json"
    _FIRST_ID = 0
    _METRIC_NAMES = tuple(_METRICS)

    def __init__(
        self,
        dataset_name: str,
        tasks=None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
        use_fast_impl: bool = True,
        kpt_oks_sigmas=(),
        allow_cached_coco: bool = True,
    ):
        super().__init__(dataset_name, tasks, distributed, output_dir)
        if kpt_oks_sigmas:
            raise NotImplementedError("detectron2-core has no keypoints: install upstream for them")
        self._use_fast_impl = use_fast_impl
        self._max_dets = [1, 10, 100 if max_dets_per_image is None else max_dets_per_image]
        if not hasattr(self._metadata, "json_file"):
            if output_dir is None:
                raise ValueError("output_dir must be provided to COCOEvaluator for datasets not in COCO format.")
            cache = os.path.join(output_dir, f"{dataset_name}_coco_format.json")
            convert_to_coco_json(dataset_name, cache, allow_cached=allow_cached_coco)
            self._metadata.json_file = cache
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = COCO(PathManager.get_local_path(self._metadata.json_file))
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def evaluate(self, img_ids: list[int] | None = None) -> dict:
        """
        Args:
            img_ids: evaluate on these images only.

        Returns:
            {"bbox": {"AP": ..., "AP50": ..., ...}, "segm": ...}. Empty without predictions, without ground truth, and
            on all ranks but the first.

        Raises:
            AssertionError: a predicted class is not a class of the dataset.
        """
        return self._evaluate(lambda results, task: self._evaluate_task(results, task, img_ids))

    def _evaluate_task(self, results: list[dict], task: str, img_ids: list[int] | None) -> dict[str, float]:
        detections = self._coco_api.loadRes(results)
        evaluation = (COCOeval_opt if self._use_fast_impl else COCOeval)(self._coco_api, detections, task)
        evaluation.params.maxDets = self._max_dets
        if img_ids is not None:
            evaluation.params.imgIds = img_ids
        evaluation.evaluate()
        evaluation.accumulate()
        if self._use_fast_impl or self._max_dets[-1] == 100:
            evaluation.summarize()  # pycocotools' table needs the limit of 100
        return self._derive_coco_results(evaluation, task, self._metadata.get("thing_classes"))

    def _derive_coco_results(self, coco_eval, iou_type: str, class_names: list[str] | None = None):
        """Metrics from the accumulated precisions [thresholds, recalls, categories, areas, limits]."""
        precision, params = coco_eval.eval["precision"], coco_eval.params
        metrics = {}
        for name, (threshold, area) in _METRICS.items():
            chosen = slice(None) if threshold is None else np.isclose(params.iouThrs, threshold)
            metrics[name] = _mean_ap(precision[chosen, :, :, params.areaRngLbl.index(area), -1])
        self._logger.info("Evaluation results for %s: \n%s", iou_type, create_small_table(metrics))
        if not np.isfinite(list(metrics.values())).all():
            self._logger.info("Some metrics cannot be computed and is shown as NaN.")
        if class_names is None or len(class_names) <= 1:
            return metrics

        assert len(class_names) == precision.shape[2]
        per_class = [(name, _mean_ap(precision[:, :, k, 0, -1])) for k, name in enumerate(class_names)]
        columns = min(6, len(per_class) * 2)
        cells = list(itertools.chain.from_iterable(per_class))
        table = tabulate(
            [cells[start : start + columns] for start in range(0, len(cells), columns)],
            tablefmt="pipe",
            floatfmt=".3f",
            headers=["category", "AP"] * (columns // 2),
            numalign="left",
        )
        self._logger.info("Per-category %s AP: \n%s", iou_type, table)
        return metrics | {f"AP-{name}": ap for name, ap in per_class}


def _mean_ap(precision: np.ndarray) -> float:
    """The mean, in percent, of all precisions that could be computed (COCO marks the others with -1), or NaN."""
    valid = precision[precision > -1]
    return float(valid.mean() * 100) if valid.size else float("nan")


def instances_to_coco_json(instances: Instances, img_id: int) -> list[dict]:
    """Detections of one image in COCO's results format.

    Args:
        instances: on the CPU, with ``pred_boxes`` (absolute XYXY), ``scores``, ``pred_classes`` and optionally
            ``pred_masks`` [N, H, W] of the image's size.
        img_id: the image's id in the annotations.

    Returns:
        One dict for each detection: "image_id", "category_id", "bbox" (XYWH), "score" and, with masks, "segmentation"
            as run-length encoding.
    """
    if len(instances) == 0:
        return []
    boxes = BoxMode.convert(instances.pred_boxes.tensor.numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
    columns = zip(boxes.tolist(), instances.scores.tolist(), instances.pred_classes.tolist())
    results = [
        {"image_id": img_id, "category_id": category, "bbox": box, "score": score} for box, score, category in columns
    ]
    if instances.has("pred_masks"):
        for result, mask in zip(results, instances.pred_masks):
            rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
            result["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode("utf-8")}
    return results
