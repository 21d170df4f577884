"""Detectron2's documented API, as far as Uni-Perceiver v2 uses it (see the README beside this package)."""

from .utils.env import setup_environment

setup_environment()

__version__ = "0.6"
