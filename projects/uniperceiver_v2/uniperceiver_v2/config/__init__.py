"""The settings of a run: this project's keys beside Detectron2's, how they are read, and how they are checked."""

from .. import tasks  # noqa: F401  (registers the kinds of task with their settings)
from ..solver.build import sampling_ratios
from .defaults import add_uniperceiver_v2_config
from .flat import flat_settings
from .load import find_config, load_config, task_defaults

__all__ = [
    "add_uniperceiver_v2_config",
    "find_config",
    "flat_settings",
    "load_config",
    "sampling_ratios",
    "task_defaults",
]
