"""Runs a model over a dataset and gives its outputs to evaluators."""

import datetime
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import ExitStack, contextmanager

import torch
from detectron2.utils.comm import get_world_size, is_main_process
from detectron2.utils.logger import log_every_n_seconds
from torch import nn

__all__ = ["DatasetEvaluator", "DatasetEvaluators", "inference_context", "inference_on_dataset"]

logger = logging.getLogger(__name__)


class DatasetEvaluator:
    """Base class of evaluators. It gets inputs and outputs batch by batch, and returns metrics at the end."""

    def reset(self):
        """Forget all outputs, before a new evaluation."""

    def process(self, inputs, outputs):
        """
        Args:
            inputs (list): the inputs of the model.
            outputs (list): the model's outputs, one for each of ``inputs``.
        """

    def evaluate(self):
        """The metrics of all outputs: {task: {metric: value}}. None on ranks without results."""


class DatasetEvaluators(DatasetEvaluator):
    """Several evaluators as one. Two evaluators must not return results for the same task."""

    def __init__(self, evaluators: list[DatasetEvaluator]):
        self._evaluators = evaluators

    def reset(self):
        for evaluator in self._evaluators:
            evaluator.reset()

    def process(self, inputs, outputs):
        for evaluator in self._evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self):
        results = OrderedDict()
        for evaluator in self._evaluators:
            result = evaluator.evaluate()  # called on all ranks, as evaluators may communicate
            if not is_main_process() or result is None:
                continue
            for task, metrics in result.items():
                assert task not in results, f"Different evaluators produce results with the same key {task}"
                results[task] = metrics
        return results


class _Stopwatch:
    """Seconds spent on data, on the model and on evaluators since the end of the warm-up."""

    def __init__(self, total: int):
        self.total = total
        self.warmup = min(5, total - 1)
        self.done = 0
        self._restart()

    def _restart(self):
        self.seconds = dict.fromkeys(("data", "compute", "eval"), 0.0)
        self.start = self._last = time.perf_counter()

    def lap(self, kind: str) -> None:
        """Add the time since the last call to ``kind``."""
        now = time.perf_counter()
        self.seconds[kind] += now - self._last
        self._last = now

    def finish_iteration(self) -> None:
        self.done += 1
        if self.done == self.warmup:
            self._restart()  # the first batches are slower, as they allocate memory and fill caches

    @property
    def counted(self) -> int:
        return max(self.done - self.warmup, 1)

    def report(self) -> str:
        per_iteration = {kind: seconds / self.counted for kind, seconds in self.seconds.items()}
        overall = (time.perf_counter() - self.start) / self.counted
        eta = datetime.timedelta(seconds=int(overall * (self.total - self.done)))
        return (
            f"Inference done {self.done}/{self.total}. Dataloading: {per_iteration['data']:.4f} s/iter. "
            f"Inference: {per_iteration['compute']:.4f} s/iter. Eval: {per_iteration['eval']:.4f} s/iter. "
            f"Total: {overall:.4f} s/iter. ETA={eta}"
        )


def inference_on_dataset(
    model: Callable,
    data_loader,
    evaluator: DatasetEvaluator | list[DatasetEvaluator] | None,
    callbacks: dict[str, Callable[[], None]] | None = None,
) -> dict:
    """Run a model over a loader without gradients and evaluate its outputs.

    Args:
        model: called with each batch. A module is in eval mode during this.
        data_loader: a loader with a length.
        evaluator: an evaluator or a list of them. None only measures speed.
        callbacks: functions without arguments, by "on_start", "before_inference", "after_inference", "on_end".

    Returns:
        The evaluator's results, or an empty dict if they are None.
    """
    if evaluator is None or isinstance(evaluator, MutableSequence):
        evaluator = DatasetEvaluators(evaluator or [])
    evaluator.reset()

    def callback(name: str) -> None:
        if callbacks and name in callbacks:
            callbacks[name]()

    total = len(data_loader)
    logger.info("Start inference on %d batches", total)
    with ExitStack() as stack:
        if isinstance(model, nn.Module):
            stack.enter_context(inference_context(model))
        stack.enter_context(torch.no_grad())
        watch = _Stopwatch(total)
        callback("on_start")
        for inputs in data_loader:
            watch.lap("data")
            callback("before_inference")
            outputs = model(inputs)
            callback("after_inference")
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # kernels still run after the call
            watch.lap("compute")
            evaluator.process(inputs, outputs)
            watch.lap("eval")
            watch.finish_iteration()
            if watch.done > watch.warmup:
                log_every_n_seconds(logging.INFO, watch.report(), n=5)
        callback("on_end")

    seconds, compute = time.perf_counter() - watch.start, watch.seconds["compute"]
    for label, spent in (("time", seconds), ("pure compute time", compute)):
        logger.info(
            "Total inference %s: %s (%.6f s / iter per device, on %d devices)",
            label,
            datetime.timedelta(seconds=int(spent)),
            spent / watch.counted,
            get_world_size(),
        )
    results = evaluator.evaluate()
    return {} if results is None else results


@contextmanager
def inference_context(model: nn.Module) -> Iterator[None]:
    """A context in which a module is in eval mode. Afterwards it has its earlier mode again."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
