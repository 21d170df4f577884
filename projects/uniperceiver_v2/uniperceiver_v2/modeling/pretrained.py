"""Directories of Hugging Face models that a configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from ..errors import UserError

REPOSITORY = Path(__file__).resolve().parents[4]

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


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory, with RoBERTa's conventions: it puts one token before and one behind a
    text (`<s>`, `</s>`) and has tokens for padding and masking. Its `model_max_length` is the most tokens that the text
    encoder of the directory takes.

    Raises:
        UserError: there is no such tokenizer.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
        frame = tokenizer("")["input_ids"]
        if (directory / "config.json").is_file():
            longest = longest_text(AutoConfig.from_pretrained(directory))
            tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    except LOADING_ERRORS as error:
        raise UserError(f"no tokenizer can be loaded from {directory}: {error}") from error
    # Beside a model's configuration, transformers makes a tokenizer without words out of missing files.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise UserError(f"no tokenizer can be loaded from {directory}: it has no files of a tokenizer with words")
    if len(frame) != 2 or tokenizer.pad_token_id is None or tokenizer.mask_token_id is None:
        raise UserError(
            f"the tokenizer in {directory} does not mark texts as RoBERTa's does: it frames a text with "
            f"{tokenizer.convert_ids_to_tokens(frame)} (expected: one token before it, one behind), its token for "
            f"padding is {tokenizer.pad_token!r}, for masking {tokenizer.mask_token!r}"
        )
    return tokenizer


def longest_text(config: PretrainedConfig) -> int:
    """The most tokens, special ones included, that a text encoder of this configuration takes.

    Raises:
        ValueError: it is no text encoder's.
    """
    if not hasattr(config, "max_position_embeddings"):
        raise ValueError(f"{config.model_type!r} is no text encoder, it has no max_position_embeddings")
    # RoBERTa counts positions from behind the padding index.
    return config.max_position_embeddings - config.pad_token_id - 1


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
