"""Training: the loop over tasks, averaged weights, progress."""

from .pretrained_parts import load_pretrained_parts
from .processes import add_process_arguments, run_in_processes, world_size
from .progress import TaskProgressPrinter
from .sharding import whole_model
from .task_trainer import TaskTrainer
from .trainer import UniPerceiverTrainer
from .weight_averaging import WeightAveraging

__all__ = [
    "TaskProgressPrinter",
    "TaskTrainer",
    "UniPerceiverTrainer",
    "WeightAveraging",
    "add_process_arguments",
    "load_pretrained_parts",
    "run_in_processes",
    "whole_model",
    "world_size",
]
