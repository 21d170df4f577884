"""Describes this machine and its software for bug reports: ``python -m detectron2.utils.collect_env``."""

from __future__ import annotations

import importlib
import os
import sys
from collections import defaultdict

import torch
from tabulate import tabulate

__all__ = ["collect_env_info"]

_LIBRARIES = {
    "numpy": "numpy",
    "Pillow": "PIL",
    "torchvision": "torchvision",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "cv2": "cv2",
}


def collect_env_info() -> str:
    """A table of versions, paths and GPUs, and the build settings of PyTorch."""
    import detectron2

    rows = [
        ("sys.platform", sys.platform),
        ("Python", sys.version.replace("\n", "")),
        ("detectron2", f"{detectron2.__version__} @{os.path.dirname(detectron2.__file__)}"),
        ("DETECTRON2_ENV_MODULE", os.environ.get("DETECTRON2_ENV_MODULE", "<not set>")),
        ("PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"),
        ("PyTorch debug build", torch.version.debug),
    ]
    rows += [(title, _version(module)) for title, module in _LIBRARIES.items()]
    return tabulate(rows + _gpus()) + "\n" + torch.__config__.show()


def _version(module: str) -> str:
    try:
        return importlib.import_module(module).__version__
    except ImportError:
        return "not found"


def _gpus() -> list[tuple[str, str]]:
    if not torch.cuda.is_available():
        return [("GPU available", "No: torch.cuda.is_available() == False")]
    numbers = defaultdict(list)
    for index in range(torch.cuda.device_count()):
        capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
        numbers[f"{torch.cuda.get_device_name(index)} (arch={capability})"].append(str(index))
    return [("GPU available", "Yes")] + [(f"GPU {','.join(which)}", name) for name, which in numbers.items()]


if __name__ == "__main__":
    print(collect_env_info())
