"""LVIS's metrics for boxes and masks, in percent."""

import functools
import types

import numpy as np
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from .coco_evaluation import _InstanceEvaluator

__all__ = ["LVISEvaluator"]


class _NumpyWithFloat:
    """NumPy with the name ``np.float``, which NumPy 1.24 removed."""

    float = float

    def __getattr__(self, name: str):
        return getattr(np, name)


def _see_numpy_with_float(function: types.FunctionType) -> types.FunctionType:
    """A copy of a function in which the global name ``np`` is :class:`_NumpyWithFloat`."""
    names = {**function.__globals__, "np": _NumpyWithFloat()}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@functools.cache
def _evaluation_class() -> type:
    """lvis 0.5.3's evaluation for NumPy 1.24 and later. The modules lvis and NumPy are not changed."""
    # Imported here, as lvis imports matplotlib, which takes 0.4 s.
    from lvis import LVISEval

    return type("_LVISEval", (LVISEval,), {"accumulate": _see_numpy_with_float(LVISEval.accumulate)})


class LVISEvaluator(_InstanceEvaluator):
    """AP of boxes and masks by LVIS's rules, from 0 to 100. A metric that cannot be computed is -100.

    APr, APc and APf are the AP of rare, common and frequent categories.

    Args:
        dataset_name: a dataset with "json_file" in its metadata. Without "thing_dataset_id_to_contiguous_id" in the
            metadata, class k is the category with the id k + 1.
        tasks: a selection of "bbox" and "segm". None evaluates the types that the predictions have.
        distributed: whether predictions of all ranks are gathered and evaluated on the first. Otherwise each rank
            evaluates its own.
        output_dir: for "lvis_instances_results.json" and "instances_predictions.pth". None writes no files.
        max_dets_per_image: the number of detections of an image that count, best first. None is LVIS's 300.
    """

    _RESULTS_FILE = "lvis_instances_results.json"
    _FIRST_ID = 1
    _METRIC_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf")

    def __init__(
        self,
        dataset_name: str,
        tasks=None,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        max_dets_per_image: int | None = None,
    ):
        from lvis import LVIS

        super().__init__(dataset_name, tasks, distributed, output_dir)
        self._max_dets_per_image = 300 if max_dets_per_image is None else max_dets_per_image
        self._lvis_api = LVIS(PathManager.get_local_path(self._metadata.json_file))
        self._do_evaluation = len(self._lvis_api.get_ann_ids()) > 0

    def evaluate(self) -> dict:
        """
        Returns:
            {"bbox": {"AP": ..., "APr": ..., ...}, "segm": ...}. Empty without predictions, without ground truth, and on
            all ranks but the first.

        Raises:
            AssertionError: a predicted class is not a class of the dataset.
        """
        return self._evaluate(self._evaluate_task)

    def _evaluate_task(self, results: list[dict], task: str) -> dict[str, float]:
        from lvis import LVISResults

        self._logger.info("Evaluating with max detections per image = %d", self._max_dets_per_image)
        detections = LVISResults(self._lvis_api, results, max_dets=self._max_dets_per_image)
        evaluation = _evaluation_class()(self._lvis_api, detections, task)
        evaluation.run()
        evaluation.print_results()
        found = evaluation.get_results()
        metrics = {name: float(found[name] * 100) for name in self._METRIC_NAMES}
        self._logger.info("Evaluation results for %s: \n%s", task, create_small_table(metrics))
        return metrics
