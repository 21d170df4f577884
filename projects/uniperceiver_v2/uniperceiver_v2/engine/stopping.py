"""SIGTERM, SIGINT and SIGUSR1: a run that is asked to stop writes a checkpoint first."""

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

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # the last is that of a batch system before its time limit


class GracefulStop(HookBase):
    """Ends training after the iteration in which any rank got a signal, and saves a checkpoint of that iteration.

    The process ends by SystemExit with the shell's code for the signal, which is 128 + its number: 143 for SIGTERM, 130
    for SIGINT, 138 for SIGUSR1. All ranks have the same code. If an evaluation is running, it is finished first. A
    second SIGINT ends the process at once. After the last iteration the final checkpoint is written already, and
    signals have their usual effect again.

    Register this hook after all hooks with a state that belongs in the checkpoint.

    Args:
        task_trainer: tells all ranks in each iteration whether any of them was asked to stop.
        checkpointer: writes on the main process only.
    """

    def __init__(self, task_trainer: TaskTrainer, checkpointer: AtomicCheckpointer):
        self._task_trainer = task_trainer
        self._checkpointer = checkpointer
        self._signal = 0
        self._usual: dict[int, Any] = {}

    def install(self) -> None:
        """Handle signals from now on. Call it before the data workers start, as Ctrl-C reaches them too."""
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in the main thread only
            self._usual = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def uninstall(self) -> None:
        """Restore the handlers that were there before."""
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
        last = comm.is_main_process() and os.path.basename(self._checkpointer.get_checkpoint_file())
        exists = (
            comm.all_gather(last == self._checkpointer.file_name(name))[0] or iteration + 1 >= self.trainer.max_iter
        )
        if not exists:
            self._checkpointer.save(name, iteration=iteration)
        self._checkpointer.wait()
        logger.warning(
            "stopped by a signal after iteration %d; --resume goes on from the checkpoint in %s",
            iteration,
            self._checkpointer.save_dir,
        )
        # All ranks wait here for each other. If one ended earlier, the launcher would kill the first while it writes.
        raise SystemExit(128 + max(comm.all_gather(int(self._signal))))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal == signal.SIGINT:
            raise SystemExit(128 + number)
        self._signal = number
        self._task_trainer.stop_requested = True
