"""Wrappers that turn lists and samplers into PyTorch datasets."""

import contextlib
import copy
import itertools
import logging
import pickle
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.utils.serialize import PicklableWrapper
from torch.utils import data
from torch.utils.data.sampler import Sampler

__all__ = ["AspectRatioGroupedDataset", "DatasetFromList", "MapDataset", "ToIterableDataset"]

logger = logging.getLogger(__name__)


def _this_workers_share(indices: Iterable[int], chunk_size: int) -> Iterator[int]:
    """The indices for the current DataLoader worker. Workers take chunks of indices in turn.

    A chunk is a batch. So one worker makes a whole batch, and the order of batches does not depend on the number of
    workers.
    """
    worker = data.get_worker_info()
    if worker is None or worker.num_workers == 1:
        yield from indices
        return
    for position, index in enumerate(indices):
        if position // chunk_size % worker.num_workers == worker.id:
            yield index


class _MapIterableDataset(data.IterableDataset):
    """:class:`MapDataset` for an iterable dataset. Elements that are mapped to None are left out."""

    def __init__(self, dataset, map_func):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)

    def __len__(self):
        return len(self._dataset)

    def __iter__(self):
        return (x for x in map(self._map_func, self._dataset) if x is not None)


class MapDataset(data.Dataset):
    """Applies a function to the elements of a dataset.

    The function may return None, for example for an unreadable image. Then a map-style dataset tries another, random
    element, and an iterable dataset continues with the next one. For an iterable dataset the result is iterable.
    """

    def __new__(cls, dataset, map_func):
        if isinstance(dataset, data.IterableDataset):
            return _MapIterableDataset(dataset, map_func)
        return super().__new__(cls)

    def __getnewargs__(self):  # pickle calls __new__, which needs its arguments
        return self._dataset, self._map_func

    def __init__(self, dataset, map_func: Callable[[Any], Any]):
        self._dataset = dataset
        self._map_func = PicklableWrapper(map_func)  # so that lambdas can be pickled
        self._rng = random.Random(42)
        self._candidates = set(range(len(dataset)))

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, idx):
        current = int(idx)
        for attempt in itertools.count(1):
            mapped = self._map_func(self._dataset[current])
            if mapped is not None:
                self._candidates.add(current)
                return mapped
            self._candidates.discard(current)
            current = self._rng.choice(sorted(self._candidates))
            if attempt >= 3:
                logger.warning("Failed to apply `_map_func` for idx: %s, retry count: %s", idx, attempt)


class _TorchSerializedList:
    """A read-only list of pickled items in one byte tensor.

    Worker processes share a tensor. A list of dicts would be copied into every forked worker, page by page, as
    reference counts change.
    """

    def __init__(self, lst: list):
        logger.info("Serializing %d elements to byte tensors and concatenating them all ...", len(lst))
        pickled = [np.frombuffer(pickle.dumps(item, protocol=-1), dtype=np.uint8) for item in lst]
        sizes = np.asarray([len(item) for item in pickled], dtype=np.int64)
        self._ends = torch.from_numpy(np.cumsum(sizes))
        self._bytes = torch.from_numpy(np.concatenate(pickled))
        logger.info("Serialized dataset takes %.2f MiB", len(self._bytes) / 1024**2)

    def __len__(self):
        return len(self._ends)

    def __getitem__(self, idx):
        start = 0 if idx == 0 else self._ends[idx - 1].item()
        return pickle.loads(memoryview(self._bytes[start : self._ends[idx].item()].numpy()))


_serialize_method: Callable[[list], Any] = _TorchSerializedList


@contextlib.contextmanager
def set_default_dataset_from_list_serialize_method(new: Callable[[list], Any]):
    """A context in which ``DatasetFromList(serialize=True)`` stores its list with ``new``."""
    global _serialize_method
    previous, _serialize_method = _serialize_method, new
    try:
        yield
    finally:
        _serialize_method = previous


class DatasetFromList(data.Dataset):
    """A list as a PyTorch dataset.

    Args:
        lst: the elements.
        copy: return deep copies, so that changes to them do not change the list.
        serialize: whether the list is kept pickled in memory that worker processes share. A callable does the pickling.
    """

    def __init__(self, lst: list, copy: bool = True, serialize: bool | Callable[[list], Any] = True):
        if not isinstance(serialize, bool) and not callable(serialize):
            raise TypeError(f"Unsupported type for argument `serialize`: {serialize}")
        self._copy = copy
        self._serialize = serialize is not False
        if self._serialize:
            lst = serialize(lst) if callable(serialize) else _serialize_method(lst)
        self._lst = lst

    def __len__(self):
        return len(self._lst)

    def __getitem__(self, idx):
        # Unpickling returns a new object each time.
        if self._copy and not self._serialize:
            return copy.deepcopy(self._lst[idx])
        return self._lst[idx]


class ToIterableDataset(data.IterableDataset):
    """The elements of a map-style dataset in the order of a sampler, as an iterable dataset.

    Args:
        dataset: has ``__getitem__``.
        sampler: gives indices. Every worker iterates over all of them, so this should be cheap.
        shard_sampler: let each DataLoader worker take its own share of the indices. Use False only if the sampler does
            this itself.
        shard_chunk_size: the number of consecutive indices for one worker. With the batch size, the order of batches
            does not depend on the number of workers.
    """

    def __init__(
        self,
        dataset: data.Dataset,
        sampler: Sampler,
        shard_sampler: bool = True,
        shard_chunk_size: int = 1,
    ):
        assert not isinstance(dataset, data.IterableDataset), dataset
        assert isinstance(sampler, Sampler), sampler
        self.dataset = dataset
        self.sampler = sampler
        self.shard_sampler = shard_sampler
        self.shard_chunk_size = shard_chunk_size

    def __iter__(self):
        indices = self.sampler
        if self.shard_sampler:
            indices = _this_workers_share(indices, self.shard_chunk_size)
        for index in indices:
            yield self.dataset[index]

    def __len__(self):
        return len(self.sampler)


class AspectRatioGroupedDataset(data.IterableDataset):
    """Batches of images that are all wider than high, or all not wider than high, which need less padding.

    Args:
        dataset: gives dicts with "width" and "height".
        batch_size: the length of the batches. Elements that do not fill a batch are kept back.
    """

    def __init__(self, dataset: Iterable[dict], batch_size: int):
        self.dataset = dataset
        self.batch_size = batch_size
        self._buckets: dict[bool, list[dict]] = {True: [], False: []}

    def __iter__(self):
        for element in self.dataset:
            wide = element["width"] > element["height"]
            self._buckets[wide].append(element)
            if len(self._buckets[wide]) == self.batch_size:
                # Emptied before the yield, as code after a yield may never run.
                batch, self._buckets[wide] = self._buckets[wide], []
                yield batch
