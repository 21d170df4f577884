"""The shared memory by which workers give batches to the training process."""

import logging
import os

logger = logging.getLogger(__name__)

_FOLDER = "/dev/shm"
_AHEAD = 2  # batches that a worker has ready: DataLoader's prefetch_factor


def warn_of_shared_memory(task: str, batch: int, workers: int) -> None:
    """Log a warning if a task's batches will not fit into the shared memory that is left. A container has 64 MB of it
    unless it is given more, and a worker that finds none is killed by SIGBUS.

    Args:
        task: its name.
        batch: the bytes of a batch. The first one stands for all.
        workers: their number. Each has some batches ready, and the training process has one.
    """
    try:
        found = os.statvfs(_FOLDER)
    except OSError:  # not a Linux
        return
    left, needed = found.f_bavail * found.f_frsize, (_AHEAD * workers + 1) * batch
    if needed > left + batch:  # the first batch is there already
        logger.warning(
            "task %s: %d workers need about %d MB of shared memory, and %s has %d MB left: give the container more "
            "(--shm-size, docs/training.md), or take fewer DATALOADER.NUM_WORKERS",
            task,
            workers,
            needed // 10**6,
            _FOLDER,
            left // 10**6,
        )
