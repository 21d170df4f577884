"""Whether the right captions of an image, and the right image of a caption, are among the k most similar.

Shapes: N images, M captions, d dimensions, Q queries (one or the other), K ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 1e-6
"""Cosines this near are equal: rounding alone moves float32's as far, also between two copies of one caption."""

_CHUNK_ELEMENTS = 40 * 2**20  # similarities held at a time: 160 MiB


@dataclass(frozen=True)
class Retrieval:
    """What one kind of query found.

    Attributes:
        best: [Q, up to ``keep``] the most similar candidates' indices, best first.
        similarities: the same shape, their cosines.
        greater: [Q] how many candidates are more similar than the best right one, counted to ``keep`` at most.
        equal: [Q] how many wrong candidates are as similar as it.
        right: [Q] how many right ones are, itself included.
    """

    best: Tensor
    similarities: Tensor
    greater: Tensor
    equal: Tensor
    right: Tensor

    def recall(self, k: int) -> float:
        """R@k in percent: the probability that a right candidate is among the k best, equals in random order."""
        return 100 * hit_probability(k, self.greater, self.equal, self.right).mean().item()


def hit_probability(k: int, greater: Tensor, equal: Tensor, right: Tensor) -> Tensor:
    """The probability of a right candidate among the first k, if equals stand in random order.

    Args:
        k: ranks that count.
        greater, equal, right: integers [Q], see :class:`Retrieval`.

    Returns:
        float64 [Q]: 1 - C(e, m) / C(e + r, m), m = k - g the ranks left to e + r equals. With r = 1 that is
        clamp((k - g) / (e + 1), 0, 1).
    """
    ranks = (k - greater).clamp(min=0)
    miss = torch.ones(len(greater), dtype=torch.float64)
    for i in range(k):  # all of the first i + 1 equals are wrong
        wrong = (equal - i).clamp(min=0) / (equal + right - i).clamp(min=1)
        miss = torch.where(i < ranks, miss * wrong, miss)
    return 1 - miss


def retrieve(
    images_ND: Tensor, captions_MD: Tensor, image_of: Tensor, keep: int = 10, chunk: int | None = None
) -> tuple[Retrieval, Retrieval]:
    """Search every image's captions among all captions, and every caption's image among all images.

    One matrix product of all images with all captions, a chunk of images at a time: both directions read the
    same similarities.

    Args:
        images_ND, captions_MD: float32 features of length 1, on the CPU.
        image_of: [M] the index of each caption's image; every image has at least one.
        keep: candidates kept for a query; ranks up to it are right.
        chunk: images whose similarities are held at a time; by default as many as fit 160 MiB.

    Returns:
        (captions found by images, images found by captions).
    """
    chunk = chunk or max(_CHUNK_ELEMENTS // len(captions_MD), keep)
    own_M = _own_similarities(images_ND, captions_MD, image_of, chunk)
    best_own_N = own_M.new_zeros(len(images_ND)).scatter_reduce(0, image_of, own_M, "amax", include_self=False)
    tied = (own_M >= best_own_N[image_of] - TIE).long()
    right_N = torch.zeros_like(best_own_N, dtype=torch.long).scatter_add(0, image_of, tied)

    by_image, by_caption = [], None
    # Made once: new memory for every chunk would cost a fifth of the product.
    buffer = images_ND.new_empty(min(chunk, len(images_ND)), len(captions_MD))
    for start in range(0, len(images_ND), chunk):
        part = images_ND[start : start + chunk]
        similarities = torch.mm(part, captions_MD.T, out=buffer[: len(part)])
        by_image.append(similarities.topk(min(keep, similarities.shape[1]), dim=1))
        values, indices = similarities.topk(min(keep, len(similarities)), dim=0)
        found = values.T, indices.T + start
        by_caption = found if by_caption is None else _best(by_caption, found, keep)
    values_NK, best_NK = (torch.cat(parts) for parts in zip(*by_image))
    return (
        _compare(images_ND, captions_MD, values_NK, best_NK, best_own_N, right_N, chunk),
        _compare(captions_MD, images_ND, *by_caption, own_M, torch.ones_like(image_of), chunk),
    )


def _own_similarities(images_ND: Tensor, captions_MD: Tensor, image_of: Tensor, chunk: int) -> Tensor:
    parts = zip(captions_MD.split(chunk), image_of.split(chunk))
    return torch.cat([(captions * images_ND[owners]).sum(dim=1) for captions, owners in parts])


def _best(known: Sequence[Tensor], found: Sequence[Tensor], keep: int) -> tuple[Tensor, Tensor]:
    """The best of two lists of (values, indices), each [Q, up to ``keep``]."""
    values, indices = (torch.cat(pair, dim=1) for pair in zip(known, found))
    values, places = values.topk(min(keep, values.shape[1]), dim=1)
    return values, indices.gather(1, places)


def _compare(
    queries: Tensor, candidates: Tensor, values_QK: Tensor, best_QK: Tensor, own_Q: Tensor, right_Q: Tensor, chunk: int
) -> Retrieval:
    """Count the candidates above and beside the best right one, whose similarity is ``own_Q``."""
    greater = (values_QK > own_Q[:, None] + TIE).sum(dim=1)
    near = (values_QK >= own_Q[:, None] - TIE).sum(dim=1)  # greater or equal
    # All of them are in the list, unless it ends with one: then all candidates have to be counted.
    beyond = (greater < near) & (near == values_QK.shape[1]) & (near < len(candidates))
    for some in beyond.nonzero()[:, 0].split(chunk):
        similarities = queries[some] @ candidates.T
        near[some] = (similarities >= own_Q[some, None] - TIE).sum(dim=1)
    equal = (near - greater - right_Q).clamp(min=0)
    return Retrieval(best_QK, values_QK, greater, equal, right_Q)
