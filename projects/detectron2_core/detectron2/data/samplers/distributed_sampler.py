"""Index streams that ranks share without talking: each takes its part of one seeded sequence.

None of them looks at DataLoader workers; :class:`detectron2.data.ToIterableDataset` splits among those.
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
    """An endless stream of epochs, of which rank r of n takes the elements r, r + n, r + 2n, ..."""

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
    """Endless shuffled passes over a dataset, no index twice within one pass, over all ranks together.

    Args:
        size: number of elements of the dataset.
        shuffle: else in order.
        seed: the same on all ranks; None draws one and shares it, for which all ranks must call.

    Raises:
        TypeError: ``size`` is no int.
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
        repeat_factors: [N] float; a factor's fraction is the chance of one more repeat in an epoch.
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
        """Factors [N] that show images of rare categories more often (LVIS paper, appendix B.2).

        With f(c) the share of images that have category c, an image's factor is the largest
        ``max(1, sqrt(repeat_thresh / f(c)))`` among its categories, 1 for an image without any.

        Args:
            dataset_dicts: with "annotations".
            repeat_thresh: categories less frequent than this are repeated.
            sqrt: False leaves the square root out.
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
    """Every index exactly once, a contiguous block to each rank, sizes differing by at most one.

    Args:
        size: number of elements of the dataset, at least 1.
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
