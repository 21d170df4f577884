"""Captions and corpora: loads texts, cleans them, and encodes them as tokens."""

import logging
from collections.abc import Iterable, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...errors import UserError
from ...modeling.pretrained import load_tokenizer, resolve_directory, token_ids
from ...reading import remedy_of, source_of
from .records import Records, load_dataset

logger = logging.getLogger(__name__)


def build_tokenizer(cfg: CfgNode) -> PreTrainedTokenizerBase:
    """The text encoder's tokenizer.

    Raises:
        UserError: the configuration does not have the directory of a tokenizer.
    """
    key = "MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH"
    return load_tokenizer(resolve_directory(cfg.MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH, key))


def encode(tokenizer: PreTrainedTokenizerBase, text: str, max_length: int | None = None) -> Tensor:
    """Token ids int64 [T] of a text, with ``<s>`` and ``</s>`` around it.

    Special tokens in the text have no special meaning. For example "<s>", which in HTML means strike-through, is
    encoded
    as its characters.

    Args:
        tokenizer: the text encoder's tokenizer.
        text: the text.
        max_length: the largest T, by default the text encoder's. A longer text is cut, and still ends with ``</s>``.

    Raises:
        UserError: the tokenizer fails.
    """
    encoded = token_ids(tokenizer, text, truncation=True, max_length=max_length or tokenizer.model_max_length)
    return torch.tensor(encoded["input_ids"], dtype=torch.int64)


def load_captions(name: str, tokenizer: PreTrainedTokenizerBase) -> Records:
    """The records of a dataset of images with captions. Each has at least one caption in "captions".

    White space is replaced by single blanks. Empty captions and images without captions are left out. The log has the
    number of those, and the number of captions that will be cut to the text encoder's length.

    Raises:
        UserError: as :func:`load_dataset`. Also if a caption is not a string, or no image has a caption.
    """
    loaded = load_dataset(name)
    records = []
    empty = 0
    for record in loaded:
        captions = [tidy(caption) for caption in _captions_of(record, name)]
        kept = [caption for caption in captions if caption]
        empty += len(captions) - len(kept)
        if kept:
            records.append({**record, "captions": kept})
    if not records:
        raise UserError(
            f"{source_of(name)} of dataset '{name}': none of its {len(loaded)} images has a caption{remedy_of(name)}"
        )
    _log_count(name, empty, "captions are empty and left out")
    _log_count(name, len(loaded) - len(records), f"of {len(loaded)} images have no caption and are left out")
    _log_cut(name, (caption for record in records for caption in record["captions"]), tokenizer, "captions")
    return records


def load_texts(name: str, tokenizer: PreTrainedTokenizerBase) -> Records:
    """The records {"text_id", "text"} of a corpus, without empty texts.

    White space is replaced by single blanks. The log has the numbers of texts that are left out and that will be cut to
    the text encoder's length.

    Raises:
        UserError: as :func:`load_dataset`. Also if a text is not a string, or all texts are empty.
    """
    loaded = load_dataset(name)
    records = []
    for record in loaded:
        if not isinstance(record.get("text"), str) or "text_id" not in record:
            raise UserError(
                f'dataset \'{name}\': a record needs a string as "text" and a "text_id", not {record}{remedy_of(name)}'
            )
        text = tidy(record["text"])
        if text:
            records.append({**record, "text": text})
    if not records:
        raise UserError(f"dataset '{name}': all of its {len(loaded)} texts are empty{remedy_of(name)}")
    _log_count(name, len(loaded) - len(records), "texts are empty and left out")
    _log_cut(name, (record["text"] for record in records), tokenizer, "texts")
    return records


def _captions_of(record: dict, name: str) -> Sequence[str]:
    captions = record.get("captions")
    if isinstance(captions, list | tuple) and all(isinstance(caption, str) for caption in captions):
        return captions
    raise UserError(
        f"dataset '{name}': \"captions\" of image {record.get('file_name')} is {captions!r}, not a list of strings"
        f"{remedy_of(name)}"
    )


def tidy(text: str) -> str:
    """The text with single blanks as white space, without blanks around it, and without invalid characters."""
    # JSON can contain single surrogates, which are not characters and cannot be encoded.
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def _log_cut(name: str, texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    longest = tokenizer.model_max_length
    # A token has at least one byte, and three tokens are <s>, </s> and a blank in front. So most texts fit without a
    # check.
    perhaps = (text for text in texts if len(text.encode()) > longest - 3)
    cut = sum(len(encode(tokenizer, text, max_length=longest + 1)) > longest for text in perhaps)
    _log_count(name, cut, f"{what} are longer than the text encoder's {longest} tokens and cut")


def _log_count(name: str, count: int, what: str) -> None:
    if count:
        logger.warning("dataset '%s': %d %s", name, count, what)
