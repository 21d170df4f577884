"""Uni-Perceiver v2: one set of weights for every task that picks the most likely of its candidates."""

from typing import TYPE_CHECKING, Any

from . import data, meta_arch  # they fill Detectron2's registries and catalogs
from .config import add_uniperceiver_v2_config

if TYPE_CHECKING:
    from .predictor import Predictor

__all__ = ["Predictor", "add_uniperceiver_v2_config", "data", "meta_arch"]


def __getattr__(name: str) -> Any:
    if name == "Predictor":  # training does not need it
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
