"""Configuration: yacs nodes with upstream's keys, and ``configurable`` for building objects from them."""

from .config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

__all__ = ["CfgNode", "configurable", "get_cfg", "global_cfg", "set_global_cfg"]
