"""Loading of Hugging Face models from local directories."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from ..checkpoint.adapters import Table, reason_for
from ..errors import UserError
from ..files import shipped
from ..reading import read_json, require_finite, require_undamaged

logger = logging.getLogger(__name__)

MOST_LAYERS = 2**10  # of a stage
MOST_GROWTH = 64  # letters that a tokenizer may replace one by
SHORTEST_TEXT = 3  # tokens that a text encoder has to read
# Fields that count layers. Others with "layer" in their names may be places, counted from the end by negative numbers.
_NUMBERS_OF_LAYERS = ("depths", "num_layers", "num_hidden_layers")


@contextlib.contextmanager
def explained_directory(problem: str, directory: Path | None = None) -> Iterator[None]:
    """A context that turns whatever transformers raises for bad fields or files into a :class:`UserError`.

    For example, a list with too few stages raises IndexError, sizes that do not fit together raise RuntimeError, and a
    list in place of an object raises AttributeError.

    Args:
        problem: the beginning of the message.
        directory: that is loaded. Without one, the fields of a configuration are at fault.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        # A panic of the tokenizers' Rust is no Exception. Whatever else is none, such as Ctrl-C, is not explained.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if directory is None:
            raise UserError(f"{problem}: {_reason(error)}") from error
        raise UserError(f"{problem} from {directory}: {_reason_in(error, directory)}") from error


def resolve_directory(path: str, key: str) -> Path:
    """Finds the directory of a model: in the working folder, else among the files that come with this code.

    The second place lets the committed configurations work from any folder.

    Args:
        path: the value of a setting.
        key: the setting's name, for the error message.
    Raises:
        UserError: the directory is in neither place, or it has no config.json.
    """
    for candidate in (Path(path).expanduser(), shipped(path)):
        if candidate.is_dir():
            if not (candidate / "config.json").is_file():
                raise UserError(f"{key}: {path!r} is no directory of a Hugging Face model, which has a config.json")
            return candidate
    raise UserError(f"{key}: no directory {path!r} (looked in {Path.cwd()} and {shipped('')})")


def load_config(directory: Path, **fields: Any) -> PretrainedConfig:
    """The configuration of a Hugging Face directory, of a kind that transformers itself knows.

    Args:
        directory: with a "config.json"; the Python files that its "auto_map" names are not run, nor does transformers
            ask on the terminal whether they may be.
        fields: that replace those of the file.

    Raises:
        UserError: a JSON file in it is damaged.
        Exception: of transformers, for :func:`explained_directory`: it knows no such configuration.
    """
    for path in sorted(directory.glob("*.json")):
        if not isinstance(content := read_json(str(path)), dict):
            raise UserError(f"{path} holds a {type(content).__name__}, not an object with keys")
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False, **fields)
    require_layers(config.to_dict())
    return config


def require_layers(fields: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: a field of a configuration asks for more than MOST_LAYERS layers, as 2^31 of them would take days to
            build, until memory ends it. Or it asks for fewer than none.
    """
    for key, value in fields.items():
        if isinstance(value, Mapping):
            require_layers(value)
        elif "layer" in str(key) or "depth" in str(key):  # such as num_hidden_layers and depths
            for number in value if isinstance(value, list | tuple) else [value]:
                if isinstance(number, int) and number > MOST_LAYERS:
                    raise ValueError(f"{key} has {number} layers, which are more than {MOST_LAYERS}")
                if isinstance(number, int) and number < 0 and key in _NUMBERS_OF_LAYERS:
                    raise ValueError(f"{key} has {number} layers")


def _reason_in(error: Exception, directory: Path) -> str:
    """Why a directory cannot be loaded: transformers' own words, but where it would have run code of the directory."""
    if "trust_remote_code" not in str(error):  # an argument that our users cannot give
        return _reason(error)
    asking = [path for path in sorted(directory.glob("*.json")) if b"auto_map" in path.read_bytes()]
    named = ", ".join(map(str, asking)) or str(directory)
    return f"{named} asks for code of its own (auto_map), which is never run; a model that transformers knows is needed"


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if " " in text else f"{type(error).__name__}: {text}"


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a Hugging Face directory.

    The tokenizer follows RoBERTa's conventions: it puts one token before a text (`<s>`) and one behind it (`</s>`), and
    it has tokens for padding and masking. Its `model_max_length` is the longest text, in tokens, for the text encoder
    in the same directory.

    Raises:
        UserError: no tokenizer can be loaded, or it breaks a convention.
    """
    with explained_directory("no tokenizer can be loaded", directory):
        config = load_config(directory) if (directory / "config.json").is_file() else None
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        _require_little_growth(tokenizer)
        frame, special = tokenizer("")["input_ids"], tokenizer.all_special_ids
        if config is not None:
            tokenizer.model_max_length = min(tokenizer.model_max_length, longest_text(config))
    # Where config.json is there but the tokenizer's files are not, transformers returns a tokenizer without words.
    if len(tokenizer) <= len(special):
        raise UserError(f"no tokenizer can be loaded from {directory}: it has no files of a tokenizer with words")
    if tokenizer.model_max_length < SHORTEST_TEXT:
        raise UserError(
            f"the tokenizer in {directory} reads {tokenizer.model_max_length} tokens at most (model_max_length, or "
            f"max_position_embeddings in config.json): {SHORTEST_TEXT} are needed, for a word and what frames it"
        )
    if len(frame) != 2 or tokenizer.pad_token_id is None or tokenizer.mask_token_id is None:
        raise UserError(
            f"the tokenizer in {directory} does not mark texts as RoBERTa's does: it frames a text with "
            f"{tokenizer.convert_ids_to_tokens(frame)} (expected: one token before it, one behind), its token for "
            f"padding is {tokenizer.pad_token!r}, for masking {tokenizer.mask_token!r}"
        )
    return tokenizer


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: str | list[str], **options: Any) -> Any:
    """What a tokenizer makes of texts. A text may spell a special token out, which is then read as letters.

    Raises:
        UserError: it fails, as one without a token for an unknown word does.
    """
    with explained_directory("a text cannot be read by the tokenizer", Path(tokenizer.name_or_path)):
        return tokenizer(texts, split_special_tokens=True, **options)


def _require_little_growth(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raises:
        ValueError: the tokenizer replaces letters by others, whose number may become more than MOST_GROWTH times as
            large. A thousand for each, twice, would make gigabytes of a few words.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for part in ("normalizer", "decoder"):
        steps = getattr(backend, part, None)
        if steps is not None and (growth := _growth_by(json.loads(steps.__getstate__()))) > MOST_GROWTH:
            raise ValueError(f"its {part} may make {growth} letters of one, which are more than {MOST_GROWTH}")


def _growth_by(step: Any) -> int:
    """How many letters the replacements in a step, and the steps in it, make of one at most."""
    if isinstance(step, list):
        return math.prod(map(_growth_by, step))
    if not isinstance(step, Mapping):
        return 1
    growth = 1
    if step.get("type") == "Replace":
        between = bool(step["content"]) and not step["pattern"].get("String")  # an expression may match there
        growth = max(1, len(step["content"]) + between)
    elif step.get("type") == "Prepend":
        growth = 1 + len(step["prepend"])
    return growth * math.prod(map(_growth_by, step.values()))


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
        UserError: a file is damaged, a key of it or of the model is not accounted for, a shape differs, or a weight is
            not finite.
    """
    for path in sorted(directory.glob("pytorch_model*.bin")):
        require_undamaged(str(path))
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
    try:
        require_finite(model.state_dict())
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error
    table.loaded = [("", key, "") for key in sorted(model.state_dict().keys() - set(report["missing_keys"]))]
    logger.info("%s\n%s", directory, table)
    return model
