"""Images with captions in any format, as one list of records or as shards."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from ...errors import UserError
from .records import Records, load_dataset
from .shards import ShardRecords, is_in_shards
from .texts import load_captions


def captioned_images(names: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Records | ShardRecords:
    """The images of datasets with captions, joined for training.

    Args:
        names: registered datasets. Either all of them or none are in shards.
        tokenizer: the text encoder's tokenizer. It serves to log the number of captions that are too long.

    Raises:
        UserError: a dataset cannot be used, or some are in shards and others are not.
    """
    in_shards = [name for name in names if is_in_shards(name)]
    if not in_shards:
        return [record for name in names for record in load_captions(name, tokenizer)]
    if len(in_shards) < len(names):
        other = next(name for name in names if name not in in_shards)
        raise UserError(
            f"datasets '{in_shards[0]}', which is in shards, and '{other}', which is not, cannot be of one task; "
            "give each a task of its own"
        )
    return ShardRecords([shard for name in names for shard in load_dataset(name).shards])
