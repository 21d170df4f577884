"""Seeds, versions, and settings of the process that are made when the package is imported."""

import importlib
import importlib.util
import logging
import os
import random
from datetime import datetime

import numpy as np
import torch

__all__ = ["TORCH_VERSION", "seed_all_rng", "setup_custom_environment", "setup_environment"]

TORCH_VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""PyTorch's (major, minor)."""

_environment_is_set_up = False


def seed_all_rng(seed: int | None = None) -> None:
    """Seeds the global generators of Python, NumPy and torch (all devices).

    Args:
        seed: with None, a seed is made from the process id, the clock and the operating system's random numbers, and
            logged.
    """
    if seed is None:
        clock = int(datetime.now().strftime("%S%f"))
        seed = os.getpid() + clock + int.from_bytes(os.urandom(2), "big")
        logging.getLogger(__name__).info("Using a generated random seed %d", seed)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed)


def setup_environment() -> None:
    """Prepares the process, on the first call only.

    OpenCL is disabled in OpenCV, as it conflicts with CUDA. If the environment variable ``DETECTRON2_ENV_MODULE`` names
    a Python file or module, its ``setup_environment()`` is called.
    """
    global _environment_is_set_up
    if _environment_is_set_up:
        return
    _environment_is_set_up = True

    os.environ["OPENCV_OPENCL_RUNTIME"] = "disabled"
    import cv2  # reads the variable when it is first imported

    cv2.ocl.setUseOpenCL(False)
    custom_module = os.environ.get("DETECTRON2_ENV_MODULE")
    if custom_module:
        setup_custom_environment(custom_module)


def setup_custom_environment(custom_module: str) -> None:
    """Imports a module by its name or by the path of its .py file, and calls its ``setup_environment()``.

    Raises:
        AssertionError: the module has no such function.
    """
    if custom_module.endswith(".py"):
        spec = importlib.util.spec_from_file_location("detectron2.utils.env.custom_module", custom_module)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        module = importlib.import_module(custom_module)
    function = getattr(module, "setup_environment", None)
    assert callable(function), f"{custom_module} has no function 'setup_environment'"
    function()
