"""What travels between a loader's worker processes and the training process: packed batches, and errors as values."""

import io
import pickle
from collections.abc import Callable

import torch

from ...errors import UserError

Batch = list[dict]  # what a model takes
Mapper = Callable[[dict], dict]  # from a record to a sample


class UserErrorsAsValues:
    """A mapper that gives a :class:`UserError` where it would raise one, to be raised by :func:`raise_user_errors`.

    What a worker raises reaches the main process with the worker's traceback as its message; what it gives
    arrives as it is.
    """

    def __init__(self, mapper: Mapper):
        self._mapper = mapper

    def __call__(self, record: dict) -> dict | UserError:
        try:
            return self._mapper(record)
        except UserError as error:
            return error


def raise_user_errors(samples: list[dict | UserError]) -> Batch:
    """The samples as they are, if none stands for a :class:`UserError`.

    Raises:
        UserError: the first one among them.
    """
    for sample in samples:
        if isinstance(sample, UserError):
            raise sample
    return samples


class _TensorPickler(pickle.Pickler):
    """Pickles tensors as NumPy arrays, by their bytes."""

    def reducer_override(self, obj):
        if isinstance(obj, torch.Tensor):
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented


def pack(content) -> torch.Tensor:
    """Anything that can be pickled as one tensor, uint8 [bytes].

    DataLoader passes each tensor between processes by a file descriptor of its own. Batches of hundreds of
    images with their masks would soon use up all that a process may open; packed, a batch is one.
    """
    buffer = io.BytesIO()
    _TensorPickler(buffer, protocol=5).dump(content)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def unpack(packed: torch.Tensor):
    """What :func:`pack` was given. Only for bytes from this program's own processes."""
    return pickle.loads(packed.numpy())
