"""Uni-Perceiver v2: one set of weights for every task that picks the most likely of its candidates."""

from . import data, meta_arch  # they fill Detectron2's registries and catalogs
from .config import add_uniperceiver_v2_config

__all__ = ["add_uniperceiver_v2_config", "data", "meta_arch"]
