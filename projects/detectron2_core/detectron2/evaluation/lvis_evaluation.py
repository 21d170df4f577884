"""LVIS's metrics for boxes and masks, in percent."""

import types
from collections import OrderedDict

import numpy as np
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from lvis import LVIS, LVISEval, LVISResults

from .coco_evaluation import _InstanceEvaluator

__all__ = ["LVISEvaluator"]

_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")


class _NumpyWithFloat:
    """NumPy, with the ``np.float`` that it had until 1.24."""

    float = float

    def __getattr__(self, name: str):
        return getattr(np, name)


def _see_numpy_with_float(function: types.FunctionType) -> types.FunctionType:
    """A copy of a function for which the module-level name ``np`` means :class:`_NumpyWithFloat`."""
    names = {**function.__globals__, "np": _NumpyWithFloat()}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


class _LVISEval(LVISEval):
    """lvis 0.5.3's evaluation on today's NumPy, with neither of the two modules changed."""

    accumulate = _see_numpy_with_float(LVISEval.accumulate)


class LVISEvaluator(_InstanceEvaluator):
    """AP of boxes and masks by LVIS's rules, from 0 to 100; -100 is what cannot be computed.

    APr, APc and APf are those of rare, common and frequent categories.

    Args:
        dataset_name: with "json_file" in its metadata. Without "thing_dataset_id_to_contiguous_id" in it,
            class k is the category of id k + 1.
        tasks: of "bbox" and "segm"; None takes what the predictions have.
        distributed: gather predictions of all ranks and evaluate on the first; else each its own.
        output_dir: for "lvis_instances_results.json" and "instances_predictions.pth"; None writes neither.
        max_dets_per_image: how many detections of an image count, best first; None is LVIS's 300.
    """

    results_file = "lvis_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        tasks=None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ):
        super().__init__(dataset_name, tasks, distributed, output_dir)
        self._max_dets_per_image = 300 if max_dets_per_image is None else max_dets_per_image
        self._lvis_api = LVIS(PathManager.get_local_path(self._metadata.json_file))
        # Test sets come without annotations: their results are evaluated elsewhere.
        self._do_evaluation = len(self._lvis_api.get_ann_ids()) > 0

    def evaluate(self) -> dict:
        """
        Returns:
            {"bbox": {"AP": ..., "APr": ..., ...}, "segm": ...}; empty without predictions, without ground
            truth and on other ranks than the first.

        Raises:
            AssertionError: a predicted class is none of the dataset's.
        """
        predictions = self._gather()
        if not predictions:
            return {}
        results = self._in_dataset_ids(predictions, first_id=1)
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return {}
        return OrderedDict((task, self._evaluate_task(results, task)) for task in self._tasks_of(results))

    def _evaluate_task(self, results: list[dict], task: str) -> dict[str, float]:
        if not results:  # which LVISResults cannot take
            self._logger.warning("No predictions from the model!")
            return dict.fromkeys(_METRICS, float("nan"))
        # LVIS takes a detection's area from its box if there is one, from its mask otherwise.
        dropped = "bbox" if task == "segm" else None
        results = [{k: v for k, v in result.items() if k != dropped} for result in results]
        self._logger.info("Evaluating with max detections per image = %d", self._max_dets_per_image)
        detections = LVISResults(self._lvis_api, results, max_dets=self._max_dets_per_image)
        evaluation = _LVISEval(self._lvis_api, detections, task)
        evaluation.run()
        evaluation.print_results()
        found = evaluation.get_results()
        metrics = {name: float(found[name] * 100) for name in _METRICS}
        self._logger.info("Evaluation results for %s: \n%s", task, create_small_table(metrics))
        return metrics
