"""Settings: what this project adds to Detectron2's, how a run's are read, and how they are checked."""

from .. import tasks  # noqa: F401  (they register the kinds of task, whose settings these are)
from ..solver.build import sampling_ratios
from .defaults import add_uniperceiver_v2_config
from .load import load_config, task_defaults

__all__ = ["add_uniperceiver_v2_config", "load_config", "sampling_ratios", "task_defaults"]
