"""SIGTERM and SIGINT: a run that is asked to stop leaves a checkpoint to go on from."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from detectron2.engine import HookBase
from detectron2.utils import comm

if TYPE_CHECKING:
    from ..checkpoint import AtomicCheckpointer
    from .task_trainer import TaskTrainer

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulStop(HookBase):
    """Ends training after the iteration in which any rank got a signal, with a checkpoint of that iteration.

    The process ends by SystemExit with the shell's code for the signal, 128 + its number: 143 for SIGTERM, 130 for
    SIGINT. An evaluation that runs is finished first; a second SIGINT ends the process at once. After the last
    iteration, whose checkpoint is written by then, signals mean what they usually do. To be registered after the hooks
    whose state belongs into the checkpoint.

    Args:
        task_trainer: lets all ranks know in each iteration whether one of them was asked to stop.
        checkpointer: writes on the main process alone.
    """

    def __init__(self, task_trainer: TaskTrainer, checkpointer: AtomicCheckpointer):
        self._task_trainer = task_trainer
        self._checkpointer = checkpointer
        self._signal = 0
        self._usual: dict[int, Any] = {}

    def install(self) -> None:
        """Handle signals from now on; to be called before the data's workers start, which Ctrl-C reaches as well."""
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._usual = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def uninstall(self) -> None:
        """Leave signals to whoever handled them before."""
        for number, handler in self._usual.items():
            signal.signal(number, handler)
        self._usual = {}

    def after_train(self) -> None:
        self.uninstall()

    def after_step(self) -> None:
        if not self._task_trainer.stop_agreed:
            return
        iteration = self.trainer.iter
        name = f"model_{iteration:07d}"
        last = os.path.basename(self._checkpointer.get_checkpoint_file())
        if last != f"{name}.pth" and iteration + 1 < self.trainer.max_iter:  # else the periodic checkpointer was here
            self._checkpointer.save(name, iteration=iteration)
        logger.warning(
            "stopped by a signal after iteration %d; --resume goes on from the checkpoint in %s",
            iteration,
            self._checkpointer.save_dir,
        )
        comm.synchronize()  # no rank may leave while the first one writes: its launcher would kill that one
        raise SystemExit(128 + (self._signal or signal.SIGTERM))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise SystemExit(128 + number)
        self._signal = number
        self._task_trainer.stop_requested = True
