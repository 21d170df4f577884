"""The data of training in any format, as one list of records or as shards."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from ...errors import UserError
from .records import Records, load_dataset
from .shards import InShards, ShardRecords, is_in_shards
from .text_shards import TextShards
from .texts import load_captions, load_texts

S = TypeVar("S", bound=InShards)


def captioned_images(names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Records | ShardRecords:
    """The images of datasets with captions, joined for training.

    Args:
        names: registered datasets. Either all of them or none are in shards.
        tokenizer: the text encoder's tokenizer. It serves to log the number of captions that are too long.

    Raises:
        UserError: a dataset cannot be used, or some are in shards and others are not.
    """
    return _joined(names, partial(load_captions, tokenizer=tokenizer), ShardRecords)


def training_texts(names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Records | TextShards:
    """The texts of corpora, joined for training; see :func:`captioned_images`."""
    return _joined(names, partial(load_texts, tokenizer=tokenizer), TextShards)


def _joined(names: Sequence[str], load: Callable[[str], Records], shards: type[S]) -> Records | S:
    in_shards = [name for name in names if is_in_shards(name)]
    if not in_shards:
        return [record for name in names for record in load(name)]
    if len(in_shards) < len(names):
        other = next(name for name in names if name not in in_shards)
        raise UserError(
            f"datasets '{in_shards[0]}', which is in shards, and '{other}', which is not, cannot be of one task; "
            "give each a task of its own"
        )
    loaded = [load_dataset(name) for name in names]
    for name, its in zip(names, loaded):
        if not isinstance(its, shards):
            raise UserError(f"dataset '{name}' is not for this kind of task: its shards are of another format")
    return shards([shard for its in loaded for shard in its.shards])
