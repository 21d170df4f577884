"""The settings that Uni-Perceiver v2 adds to Detectron2's."""

from detectron2.config import CfgNode as CN


def add_uniperceiver_v2_config(cfg: CN) -> None:
    """Add this project's keys to ``cfg`` in place, beside Detectron2's own."""
    cfg.MODEL.UNIPERCEIVER_V2 = CN()
    cfg.TASKS = CN(new_allowed=True)
    cfg.TASKS.NAMES = []
