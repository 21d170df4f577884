"""The transport from a loader's worker processes to the training process: packed batches, and errors as values."""

import io
import pickle
from collections.abc import Callable

import torch
from detectron2.structures import BitMasks

from ...errors import UserError
from ...transfer import send_ahead

Batch = list[dict]  # a model's input
Mapper = Callable[[dict], dict]  # turns a record into a sample


class UserErrorsAsValues:
    """A mapper that returns a :class:`UserError` instead of raising it. :func:`raise_user_errors` raises it later.

    If a worker raises an error, the main process gets the worker's traceback as its message. A returned error arrives
    unchanged.
    """

    def __init__(self, mapper: Mapper):
        self._mapper = mapper

    def __call__(self, record: dict) -> dict | UserError:
        try:
            return self._mapper(record)
        except UserError as error:
            return error


def raise_user_errors(samples: list[dict | UserError]) -> Batch:
    """The samples, unchanged, if none of them is a :class:`UserError`.

    Raises:
        UserError: the first one among them.
    """
    for sample in samples:
        if isinstance(sample, UserError):
            raise sample
    return samples


class _TensorPickler(pickle.Pickler):
    """Pickles tensors as NumPy arrays, which are pickled by their bytes."""

    def reducer_override(self, obj):
        if isinstance(obj, torch.Tensor):
            return torch.from_numpy, (obj.numpy(),)
        return NotImplemented


def pack(content) -> torch.Tensor:
    """Any object that can be pickled, as one tensor, uint8 [bytes].

    DataLoader needs a file descriptor for each tensor that it passes between processes. Batches of hundreds of images
    with their masks would soon reach the limit of open files. A packed batch is a single tensor.
    """
    buffer = io.BytesIO()
    _TensorPickler(buffer, protocol=5).dump(content)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8)


def unpack(packed: torch.Tensor):
    """The object that was given to :func:`pack`. Use it only for bytes from this program's own processes."""
    return pickle.loads(packed.numpy())


def send_batch(batch: Batch, device: torch.device) -> Batch:
    """The batch with its images, frames and masks on a device, in place. What the host needs, such as boxes, stays.

    The copies are made while the device computes; see :func:`~uniperceiver_v2.transfer.send_ahead`.
    """
    images = [(sample, key) for sample in batch for key in ("image", "frames") if key in sample]
    masked = [sample["instances"] for sample in batch if "instances" in sample and sample["instances"].has("gt_masks")]
    own = [*(sample[key] for sample, key in images), *(instances.gt_masks.tensor for instances in masked)]
    sent = send_ahead(own, device)
    for (sample, key), image in zip(images, sent):
        sample[key] = image
    for instances, masks in zip(masked, sent[len(images) :]):
        instances.gt_masks = BitMasks(masks)
    return batch
