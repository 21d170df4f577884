"""Lets lvis 0.5.3 run with NumPy 1.24 and later, with any version of Detectron2."""

import importlib

import numpy as np


class _NumpyWithFloat:
    """NumPy with the name ``np.float``, which NumPy 1.24 removed."""

    float = float

    def __getattr__(self, name: str):
        return getattr(np, name)


def repair_lvis() -> None:
    """Make ``np.float`` mean ``float`` inside the module ``lvis.eval``, and nowhere else."""
    module = importlib.import_module("lvis.eval")
    if module.np is np:
        module.np = _NumpyWithFloat()
