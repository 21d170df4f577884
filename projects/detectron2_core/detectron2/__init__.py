"""The part of Detectron2's documented API that Uni-Perceiver v2 uses (see the README beside this package)."""

from .utils.env import setup_environment

setup_environment()

__version__ = "0.6"
