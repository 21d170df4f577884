"""Settings: what this project adds to Detectron2's, how a run's are read, and how they are checked."""

from .load import TASK_SETTINGS, add_uniperceiver_v2_config, load_config, sampling_ratios, task_defaults

__all__ = ["TASK_SETTINGS", "add_uniperceiver_v2_config", "load_config", "sampling_ratios", "task_defaults"]
