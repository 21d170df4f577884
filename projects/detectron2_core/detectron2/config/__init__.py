"""Configuration: yacs nodes with upstream's keys, and ``configurable``, which builds objects from them."""

from .config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]
