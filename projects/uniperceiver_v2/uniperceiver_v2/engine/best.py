"""The best checkpoint of a run by a metric, early stopping, and a limit on the number of checkpoints."""

from __future__ import annotations

import glob
import json
import logging
import math
import os
import re
from typing import TYPE_CHECKING

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint.parts import is_checkpoint, plain_values, remove_checkpoint
from ..errors import UserError, nearest

if TYPE_CHECKING:
    from ..checkpoint import AtomicCheckpointer

logger = logging.getLogger(__name__)

BEST = "model_best"
_PERIODIC = re.compile(r"model_(\d{7})(\.pth)?")


class StoppedEarly(BaseException):
    """Training ends early, as the metric has stopped improving. Not an ``Exception``, as nothing is wrong."""


class BestCheckpoint(HookBase):
    """Keeps the weights with the best value of a metric in ``model_best.pth``, and may end training.

    The file has the weights that were evaluated, so the averaged ones if weights are averaged, and the iteration of the
    evaluation. The last evaluation, after training, has the iteration ``SOLVER.MAX_ITER``. A value that is not finite
    never counts as better.

    Patience begins when the metric first moves. A metric that stays at its first value, such as an AP of 0 or the
    accuracy of a guess, has not shown yet that anything is learned, so such evaluations do not count.

    The hook has no state of its own. A resumed run reads the earlier values from metrics.json, which
    :class:`~uniperceiver_v2.engine.metrics.MetricsFile` restores to the checkpoint's iteration. So an interrupted and
    resumed run keeps the same weights, and ends at the same iteration, as an uninterrupted one.

    Register this hook on all ranks, after ``MetricsFile``.

    Args:
        checkpointer: saves on all processes, of which those that do not write help to gather what is divided.
        metrics_path: the file of metrics.
        metric: its name in that file, such as "boats_test/bbox/AP".
        mode: "max" if larger values are better, "min" if smaller ones are.
        eval_period: iterations between two evaluations.
        patience: training ends after so many evaluations in a row without a better value; 0 for never.
    """

    def __init__(
        self,
        checkpointer: AtomicCheckpointer,
        metrics_path: str,
        metric: str,
        *,
        mode: str = "max",
        eval_period: int,
        patience: int = 0,
    ):
        self._checkpointer = checkpointer
        self._metrics_path = metrics_path
        self._metric = metric
        self._sign = {"max": 1.0, "min": -1.0}[mode]
        self._eval_period = eval_period
        self._patience = patience
        self._best: tuple[float, int] | None = None  # value and iteration
        self._since = 0  # evaluations since the best one that count against patience
        self._has_moved = False  # whether the metric has had two values that differ

    def before_train(self) -> None:
        start = self.trainer.start_iter
        if start > 0:
            self._save_if(comm.is_main_process() and self._restore(start), start - 1)
        elif comm.is_main_process():
            self._move_earlier_file()
        self._end_if_over(start - 1, resumed=True)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._eval_period <= 0 or done % self._eval_period or done == self.trainer.max_iter:
            return
        better = comm.is_main_process() and self._count(self._evaluated(), self.trainer.iter)
        self._save_if(better, self.trainer.iter)
        self._end_if_over(self.trainer.iter, resumed=False)

    def after_train(self) -> None:
        last = self.trainer.max_iter
        if self.trainer.iter >= last:
            better = False
            try:
                better = comm.is_main_process() and self._count(self._evaluated(), last)
            except UserError as error:  # all other results are there
                logger.warning("%s", error)
            try:
                self._save_if(better, last)
            except UserError as error:
                logger.warning("%s", error)
            if comm.is_main_process() and self._best is not None:
                where = self._checkpointer.file_name(BEST)
                logger.info("the best %s is %.4g, of iteration %d, in %s", self._metric, *self._best, where)

    def _evaluated(self) -> float:
        """The value of this iteration's evaluation.

        Raises:
            UserError: the evaluation has no such metric.
        """
        latest = self.trainer.storage.latest()
        value, iteration = latest.get(self._metric, (math.nan, -1))
        if iteration == self.trainer.iter:
            return value
        names = [name for name, (_, when) in latest.items() if when == self.trainer.iter and name.count("/") >= 2]
        raise UserError(f"TEST.BEST_METRIC: no evaluation gives '{self._metric}'{nearest(self._metric, names)}")

    def _count(self, value: float, iteration: int) -> bool:
        """Take note of an evaluation. Whether it is the best so far."""
        finite = math.isfinite(value)
        better = finite and (self._best is None or self._sign * value > self._sign * self._best[0])
        self._has_moved |= finite and self._best is not None and value != self._best[0]
        if better:
            self._best, self._since = (value, iteration), 0
        elif self._has_moved or not finite:
            self._since += 1
        return better

    def _save_if(self, better: bool, iteration: int) -> None:
        """Save the weights if the main process says so. All processes may have a part of them."""
        if comm.all_gather(better)[0]:
            self._checkpointer.save_weights(BEST, iteration=iteration)

    def _restore(self, start: int) -> bool:
        """Count the values before ``start``. Whether the weights of the best one are still to be saved."""
        for iteration, value in self._earlier_values():
            if iteration < start:
                self._count(value, iteration)
        # The run may have ended between the row and the file.
        return self._best is not None and self._best[1] == start - 1 and self._saved_iteration() != start - 1

    def _earlier_values(self) -> list[tuple[int, float]]:
        if not os.path.exists(self._metrics_path):
            return []
        with open(self._metrics_path, encoding="utf-8") as file:
            rows = [json.loads(line) for line in file if line.strip()]
        return [(row["iteration"], row[self._metric]) for row in rows if self._metric in row]

    def _saved_iteration(self) -> int | None:
        path = os.path.join(self._checkpointer.save_dir, self._checkpointer.file_name(BEST))
        return plain_values(path).get("iteration") if is_checkpoint(path) else None

    def _move_earlier_file(self) -> None:
        for ending in (".pth", ""):  # a file, or a directory of parts
            path = os.path.join(self._checkpointer.save_dir, f"{BEST}{ending}")
            earlier = os.path.join(self._checkpointer.save_dir, f"{BEST}.previous{ending}")
            if is_checkpoint(path):
                remove_checkpoint(earlier)
                os.replace(path, earlier)

    def _end_if_over(self, iteration: int, resumed: bool) -> None:
        """End training after ``iteration`` if the metric has not improved for long enough."""
        over = self._patience > 0 and self._since >= self._patience and iteration + 1 < self.trainer.max_iter
        if not comm.all_gather(over)[0]:  # only the main process knows the results
            return
        self.trainer.iter = iteration  # the checkpoint's
        if comm.is_main_process():
            logger.warning(
                "%s has not improved in %d evaluations: training ends after iteration %d. Its best value is %s",
                self._metric,
                self._since,
                iteration,
                "not finite" if self._best is None else f"{self._best[0]:.4g}, of iteration {self._best[1]}",
            )
        # A run that is resumed after its end has this checkpoint, unless it was interrupted just here.
        if not comm.all_gather(resumed and comm.is_main_process() and self._is_final())[0]:
            self._checkpointer.save("model_final", iteration=iteration)  # of which each process may have a part
        comm.synchronize()
        raise StoppedEarly

    def _is_final(self) -> bool:
        """Whether the last checkpoint is the one that an ended run writes."""
        return os.path.basename(self._checkpointer.get_checkpoint_file()) == self._checkpointer.file_name("model_final")


class KeptCheckpoints(HookBase):
    """Deletes the oldest of the run's periodic checkpoints, ``model_<iteration>.pth``, when there are more than
    ``count``.

    Others are never deleted: neither ``model_final.pth``, ``model_best.pth`` and the last checkpoint, nor those of
    later iterations, which an earlier run has left. Register this hook on the main process, after the one that writes
    checkpoints.

    Args:
        checkpointer: whose folder to look at.
        count: at least 1.
    """

    def __init__(self, checkpointer: AtomicCheckpointer, count: int):
        self._checkpointer = checkpointer
        self._count = count
        self._seen = -1  # a run that was killed may have left one too many

    def after_step(self) -> None:
        written = self._checkpointer.times_written
        if written != self._seen:  # a look at the folder asks a file server for each checkpoint
            self._seen = written
            self._remove_oldest()

    def _remove_oldest(self) -> None:
        folder = self._checkpointer.save_dir
        found: dict[int, list[str]] = {}
        for path in glob.glob(os.path.join(glob.escape(folder), "model_*")):
            match = _PERIODIC.fullmatch(os.path.basename(path))
            if match and int(match.group(1)) <= self.trainer.iter and is_checkpoint(path):
                found.setdefault(int(match.group(1)), []).append(path)
        if len(found) <= self._count:
            return
        last = os.path.basename(self._checkpointer.get_checkpoint_file())
        for iteration in sorted(found)[: -self._count]:
            for path in found[iteration]:
                if os.path.basename(path) != last:
                    remove_checkpoint(path)
