"""Weights of others' files, without running code that stands in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import UserError
from ...reading import read_tensors
from ...reading.pickled_arrays import load_pickled_arrays


def read_source(path: Path) -> dict[str, Tensor]:
    """The tensors of a file or a directory by their keys.

    Args:
        path: a ``.pth``, ``.safetensors`` or Detectron2's ``.pkl``, or a directory in Hugging Face's form, of which
            safetensors come first.

    Raises:
        UserError: it is not there, is damaged, or holds code.
    """
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
        if not files:
            raise UserError(f"{path} has no weights: neither *.safetensors nor pytorch_model*.bin")
        return {key: value for file in files for key, value in read_source(file).items()}
    if not path.is_file():
        raise UserError(f"pre-trained weights not found: {path}")
    content = _read_pickle(path) if path.suffix == ".pkl" else read_tensors(str(path))
    content = content.get("model", content.get("state_dict", content))
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} does not hold tensors by their keys")
    return dict(content)


def _read_pickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = load_pickled_arrays(file)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not a dict of arrays")
        if "model" in content:
            return {"model": _tensors(content["model"])}
        blobs = _tensors(content.get("blobs", content))
        return {_key_of_blob(name): value for name, value in blobs.items() if not name.endswith("_momentum")}
    except Exception as error:  # a damaged pickle ends in whatever its first wrong byte leads to
        raise UserError(f"{path} cannot be read as a pickle of arrays: {error}; none of its code was run") from error


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(np.array(value)) for key, value in arrays.items() if key != "__author__"}


def _key_of_blob(name: str) -> str:
    """Detectron2's key of a blob of Caffe2's ResNets: "res2_0_branch2a_bn_s" is "res2.0.conv1.norm.weight"."""
    name = re.sub(r"^res_conv1|^conv1", "stem.conv1", name)
    name = re.sub(r"^res(\d)_(\d+)_", r"res\1.\2.", name)
    name = name.replace("branch1", "shortcut")
    name = re.sub(r"branch2([abc])", lambda match: f"conv{'abc'.index(match[1]) + 1}", name)
    name = re.sub(r"_bn_s$", ".norm.weight", re.sub(r"_bn_b$", ".norm.bias", name))
    return re.sub(r"^fc1000", "stem.fc", re.sub(r"_w$", ".weight", re.sub(r"_b$", ".bias", name)))
