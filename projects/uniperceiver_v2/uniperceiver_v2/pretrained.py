"""Directories of Hugging Face models that a configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from .errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]

# What transformers raises for fields or files that do not make a model: IndexError for lists of too few stages,
# RuntimeError for sizes that do not fit together, SafetensorError for weights cut short.
LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    RuntimeError,
    StrictDataclassError,
    SafetensorError,
)


def resolve_directory(path: str, key: str) -> Path:
    """The directory that the configuration's `key` names: relative to the working folder, else to the repository, so
    that the committed configurations work from any folder.

    Raises:
        UserError: neither exists.
    """
    for candidate in (Path(path).expanduser(), REPOSITORY / path):
        if candidate.is_dir():
            return candidate
    raise UserError(f"{key}: no directory {path!r} (looked in {Path.cwd()} and {REPOSITORY})")


def has_weights(directory: Path) -> bool:
    """Whether a Hugging Face model directory holds weights beside its configuration."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("pytorch_model*.bin"))


def load_weights(model_class: Any, directory: Path, **arguments: Any) -> nn.Module:
    """`model_class.from_pretrained(directory, **arguments)` in float32, refusing other weights.

    A few parameters may be missing and stay random, as a backbone's norms behind each stage, which no classifier has.

    Raises:
        UserError: a weight has another shape, or the directory has none of the model's weights.
    """
    model, report = model_class.from_pretrained(
        directory, **arguments, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    different = [
        f"{key}: {list(found)} in the file, {list(expected)} in the model"
        for key, found, expected in sorted(report["mismatched_keys"])
    ]
    if {name for name, _ in model.named_parameters()} <= set(report["missing_keys"]):
        different = [f"{key}: not in the file" for key in sorted(report["missing_keys"])]
    if different:
        more = f" and {len(different) - 3} more" if len(different) > 3 else ""
        raise UserError(f"the weights in {directory} are of another architecture: {'; '.join(different[:3])}{more}")
    return model
