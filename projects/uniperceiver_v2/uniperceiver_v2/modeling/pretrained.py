"""Loading of Hugging Face models from local directories."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from ..checkpoint.adapters import Table, reason_for
from ..errors import UserError
from ..files import shipped

logger = logging.getLogger(__name__)

# The exceptions of transformers for bad fields or files. For example, a list with too few stages raises IndexError,
# sizes that do not fit together raise RuntimeError, and a truncated weight file raises SafetensorError.
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
    """Finds a directory: in the working folder, else among the files that come with this code.

    The second place lets the committed configurations work from any folder.

    Args:
        path: the value of a setting.
        key: the setting's name, for the error message.
    Raises:
        UserError: the directory is in neither place.
    """
    for candidate in (Path(path).expanduser(), shipped(path)):
        if candidate.is_dir():
            return candidate
    raise UserError(f"{key}: no directory {path!r} (looked in {Path.cwd()} and {shipped('')})")


def load_config(directory: Path, **fields: Any) -> PretrainedConfig:
    """The configuration of a Hugging Face directory, of a kind that transformers itself knows.

    Args:
        directory: with a "config.json"; the Python files that its "auto_map" names are not run, nor does transformers
            ask on the terminal whether they may be.
        fields: that replace those of the file.

    Raises:
        LOADING_ERRORS: there is no such configuration; :func:`reason_of` words them.
    """
    return AutoConfig.from_pretrained(directory, trust_remote_code=False, **fields)


def reason_of(error: Exception, directory: Path) -> str:
    """Why a directory cannot be loaded: transformers' own words, but where it would have run code of the directory."""
    if "trust_remote_code" not in str(error):  # an argument that our users cannot give
        return str(error)
    asking = [path for path in sorted(directory.glob("*.json")) if b"auto_map" in path.read_bytes()]
    named = ", ".join(map(str, asking)) or str(directory)
    return f"{named} asks for code of its own (auto_map), which is never run; a model that transformers knows is needed"


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a Hugging Face directory.

    The tokenizer follows RoBERTa's conventions: it puts one token before a text (`<s>`) and one behind it (`</s>`), and
    it has tokens for padding and masking. Its `model_max_length` is the longest text, in tokens, for the text encoder
    in the same directory.

    Raises:
        UserError: no tokenizer can be loaded, or it breaks a convention.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        frame = tokenizer("")["input_ids"]
        if (directory / "config.json").is_file():
            longest = longest_text(load_config(directory))
            tokenizer.model_max_length = min(tokenizer.model_max_length, longest)
    except LOADING_ERRORS as error:
        raise UserError(f"no tokenizer can be loaded from {directory}: {reason_of(error, directory)}") from error
    # Where config.json is there but the tokenizer's files are not, transformers returns a tokenizer without words.
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
    """The longest text for a text encoder of this configuration, in tokens, special ones included.

    Raises:
        ValueError: the configuration is not that of a text encoder.
    """
    if not hasattr(config, "max_position_embeddings"):
        raise ValueError(f"{config.model_type!r} is no text encoder, it has no max_position_embeddings")
    # RoBERTa's first position is the padding index + 1.
    return config.max_position_embeddings - config.pad_token_id - 1


def has_weights(directory: Path) -> bool:
    """Whether a Hugging Face model directory has weight files."""
    return any(directory.glob("*.safetensors")) or any(directory.glob("pytorch_model*.bin"))


# Keys of a file that a model without its head does not have, and keys of a model that a file with a head does not have.
_SKIPPED = {
    "classifier.**": "the classifier",
    "layernorm.*": "the norm before the classifier",
    "lm_head.**": "the head of its pre-training",
    "cls.**": "the head of its pre-training",
    "**pooler.**": "nothing reads it",
    "pooler.**": "nothing reads it",
}
_KEPT = {
    "hidden_states_norms.**": "a norm of each map, which the classifier does not have: it starts as the identity",
    "**.num_batches_tracked": "a count that nothing reads",
}


def load_weights(model_class: Any, directory: Path, **arguments: Any) -> nn.Module:
    """`model_class.from_pretrained(directory, **arguments)` in float32, with a check that the weights fit.

    The log has a table of what became of the keys. Some may be left out: for example, a backbone has a norm behind each
    stage, and the classifier that it was trained in has none.

    Raises:
        UserError: a key of the file or of the model is not accounted for, or a shape differs.
    """
    model, report = model_class.from_pretrained(
        directory, **arguments, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
    )
    table, wrong = Table(f"{type(model).__name__} of Hugging Face"), []
    for key, found, expected in sorted(report["mismatched_keys"]):
        wrong.append(f"{key}: {list(found)} in the file, {list(expected)} in the model")
    for entries, keys, reasons, problem in (
        (table.skipped, report["unexpected_keys"], _SKIPPED, "not in the model"),
        (table.kept, report["missing_keys"], _KEPT, "not in the file"),
    ):
        for key in sorted(keys):
            reason = reason_for(key, reasons)
            wrong += [f"{key}: {problem}"] if reason is None else []
            entries.append((key, "", reason or ""))
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"the weights in {directory} are of another architecture: {'; '.join(wrong[:3])}{more}")
    table.loaded = [("", key, "") for key in sorted(model.state_dict().keys() - set(report["missing_keys"]))]
    logger.info("%s\n%s", directory, table)
    return model
