"""Samplers for several ranks without communication: each rank takes its part of one seeded sequence.

They ignore DataLoader workers. :class:`detectron2.data.ToIterableDataset` divides indices among workers.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator

import torch
from detectron2.utils import comm
from torch.utils.data.sampler import Sampler

__all__ = [
    "InferenceSampler",
    "RepeatFactorTrainingSampler",
    "TrainingSampler",
]


class _InfiniteSampler(Sampler):
    """An endless sequence of epochs. Rank r of n takes the elements r, r + n, r + 2n, ..."""

    def __init__(self, shuffle: bool, seed: int | None):
        self._shuffle = shuffle
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def _epoch(self, generator: torch.Generator) -> torch.Tensor:
        """One epoch's dataset indices [E], before shuffling."""
        raise NotImplementedError

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        while True:
            indices = self._epoch(generator)
            if self._shuffle:
                indices = indices[torch.randperm(len(indices), generator=generator)]
            yield from indices.tolist()

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)


class TrainingSampler(_InfiniteSampler):
    """Endless shuffled epochs of a dataset. Over all ranks together, an epoch has each index once.

    Args:
        size: the number of elements of the dataset.
        shuffle: False keeps the order.
        seed: the same on all ranks. With None a seed is drawn and shared, a collective call that all ranks must make.

    Raises:
        TypeError: ``size`` is not an int.
        ValueError: ``size`` is not positive.
    """

    def __init__(self, size: int, shuffle: bool = True, seed: int | None = None):
        if not isinstance(size, int):
            raise TypeError(f"TrainingSampler(size=) expects an int. Got type {type(size)}.")
        if size <= 0:
            raise ValueError(f"TrainingSampler(size=) expects a positive int. Got {size}.")
        self._size = size
        super().__init__(shuffle, seed)

    def _epoch(self, generator):
        return torch.arange(self._size)


class RepeatFactorTrainingSampler(_InfiniteSampler):
    """:class:`TrainingSampler` in which element i comes ``repeat_factors[i]`` times an epoch on average.

    Args:
        repeat_factors: [N] float. A factor's fraction is the probability of one more repeat in an epoch.
        shuffle, seed: as in :class:`TrainingSampler`.
    """

    def __init__(self, repeat_factors: torch.Tensor, *, shuffle: bool = True, seed: int | None = None):
        super().__init__(shuffle, seed)
        self._whole = torch.trunc(repeat_factors)
        self._fraction = repeat_factors - self._whole

    @staticmethod
    def repeat_factors_from_category_frequency(
        dataset_dicts: list[dict], repeat_thresh: float, sqrt: bool = True
    ) -> torch.Tensor:
        """Factors [N] that repeat images of rare categories (LVIS paper, appendix B.2).

        Let f(c) be the share of images with category c. An image's factor is the largest ``max(1, sqrt(repeat_thresh /
        f(c)))`` among its categories, or 1 for an image without annotations.

        Args:
            dataset_dicts: records with "annotations".
            repeat_thresh: categories that are less frequent than this are repeated.
            sqrt: False omits the square root.
        """
        categories = [{ann["category_id"] for ann in record["annotations"]} for record in dataset_dicts]
        images_with = Counter(itertools.chain.from_iterable(categories))
        factor_of = {}
        for category, count in images_with.items():
            ratio = repeat_thresh / (count / len(dataset_dicts))
            factor_of[category] = max(1.0, math.sqrt(ratio) if sqrt else ratio)
        factors = [max((factor_of[c] for c in present), default=1.0) for present in categories]
        return torch.tensor(factors, dtype=torch.float32)

    def _epoch(self, generator):
        extra = torch.rand(len(self._fraction), generator=generator) < self._fraction
        repeats = (self._whole + extra.float()).to(torch.int64)
        return torch.repeat_interleave(torch.arange(len(repeats)), repeats)


class InferenceSampler(Sampler):
    """Every index exactly once. Each rank has a contiguous block, and the sizes of blocks differ by at most one.

    Args:
        size: the number of elements of the dataset, at least 1.
    """

    def __init__(self, size: int):
        assert size > 0
        rank, world_size = comm.get_rank(), comm.get_world_size()
        share, left = divmod(size, world_size)
        begin = rank * share + min(rank, left)
        self._local_indices = range(begin, begin + share + (rank < left))

    def __iter__(self) -> Iterator[int]:
        yield from self._local_indices

    def __len__(self) -> int:
        return len(self._local_indices)
