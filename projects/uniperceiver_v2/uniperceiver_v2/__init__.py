"""Uni-Perceiver v2: one set of weights that detects, segments, classifies, captions, retrieves and models language."""

from .config import add_uniperceiver_v2_config

__all__ = ["add_uniperceiver_v2_config"]
