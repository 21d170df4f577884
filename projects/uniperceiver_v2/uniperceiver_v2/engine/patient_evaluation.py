"""Evaluation on the first process, for which the others wait as long as it takes."""

from __future__ import annotations

import itertools
import time
from typing import Any

import torch.distributed as dist
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

_POLL = 0.1  # seconds between two reads of the store
_numbers = itertools.count()  # of evaluations: all processes evaluate the same datasets in the same order


class PatientEvaluator(DatasetEvaluator):
    """An evaluator whose metrics the first process computes.

    The others would go on to their next collective call, and wait there for no longer than ``PROCESSES.TIMEOUT``. Here
    they wait without a limit. If the first process ends or stops, the watch of the processes ends the run.

    Args:
        evaluator: the evaluator.
    """

    def __init__(self, evaluator: DatasetEvaluator):
        self._evaluator = evaluator

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: Any, outputs: Any) -> None:
        self._evaluator.process(inputs, outputs)

    def evaluate(self) -> Any:
        try:
            return self._evaluator.evaluate()
        finally:
            _meet()


def _meet() -> None:
    """Wait until the first process is here as well."""
    if comm.get_world_size() == 1:
        return
    store, key = dist.distributed_c10d._get_default_store(), f"evaluated/{next(_numbers)}"
    if comm.is_main_process():
        store.set(key, "")
    while not store.check([key]):
        time.sleep(_POLL)
