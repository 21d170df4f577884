"""Training: the loop over tasks, averaged weights, progress."""

from .progress import TaskProgressPrinter
from .task_trainer import TaskTrainer
from .trainer import UniPerceiverTrainer
from .weight_averaging import WeightAveraging

__all__ = ["TaskProgressPrinter", "TaskTrainer", "UniPerceiverTrainer", "WeightAveraging"]
