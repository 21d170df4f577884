"""Recall at k: whether a right candidate is among the k most similar ones.

Queries are images that search captions, or captions that search images.

Shapes: N images, M captions, d dimensions, Q queries (N or M), K ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 1e-6
"""Cosines that differ by less count as equal. Rounding in float32 alone can make those of equal captions differ so."""

_CHUNK_ELEMENTS = 40 * 2**20  # similarities held at a time: 160 MiB


@dataclass(frozen=True)
class Retrieval:
    """The result of all queries in one direction.

    Attributes:
        best: [Q, up to ``keep``] indices of the most similar candidates, best first.
        similarities: [Q, up to ``keep``] their cosines, or the scores by which they were compared again.
        greater: [Q] the number of candidates that are more similar than the best right candidate, ``keep`` at most.
        equal: [Q] the number of wrong candidates that are as similar as the best right candidate.
        right: [Q] the number of right candidates that are as similar as the best one, which is counted too.
    """

    best: Tensor
    similarities: Tensor
    greater: Tensor
    equal: Tensor
    right: Tensor

    def recall(self, k: int) -> float:
        """R@k in percent: the mean probability that a right candidate is among the k best, with random order of
        ties."""
        return 100 * hit_probability(k, self.greater, self.equal, self.right).mean().item()


def hit_probability(k: int, greater: Tensor, equal: Tensor, right: Tensor) -> Tensor:
    """The probability that a right candidate is among the first k, if ties are broken at random.

    Args:
        k: the number of ranks.
        greater, equal, right: integers [Q], g, e and r in the formula; see :class:`Retrieval`.

    Returns:
        float64 [Q]: 1 - C(e, m) / C(e + r, m), where m = k - g is the number of ranks that the e + r ties share. With r
        = 1 this is clamp((k - g) / (e + 1), 0, 1).
    """
    ranks = (k - greater).clamp(min=0)
    miss = torch.ones(len(greater), dtype=torch.float64)
    for i in range(k):  # the probability that the first i + 1 of the ties are all wrong
        wrong = (equal - i).clamp(min=0) / (equal + right - i).clamp(min=1)
        miss = torch.where(i < ranks, miss * wrong, miss)
    return 1 - miss


def retrieve(
    images_ND: Tensor, captions_MD: Tensor, image_of: Tensor, keep: int = 10, chunk: int | None = None
) -> tuple[Retrieval, Retrieval]:
    """Search every image's captions among all captions, and every caption's image among all images.

    Both directions use the same matrix of similarities between images and captions, which is computed for a chunk of
    images at a time.

    Args:
        images_ND, captions_MD: float32 features of length 1, on the CPU.
        image_of: [M] the index of each caption's image; every image has at least one caption.
        keep: the number of candidates kept for a query. Recall is right for k up to ``keep``.
        chunk: the number of images in a chunk; by default as many as fit into 160 MiB of similarities.

    Returns:
        (captions found by images, images found by captions).
    """
    chunk = chunk or max(_CHUNK_ELEMENTS // len(captions_MD), keep)
    own_M = _own_similarities(images_ND, captions_MD, image_of, chunk)
    best_own_N = own_M.new_zeros(len(images_ND)).scatter_reduce(0, image_of, own_M, "amax", include_self=False)
    tied = (own_M >= best_own_N[image_of] - TIE).long()
    right_N = torch.zeros_like(best_own_N, dtype=torch.long).scatter_add(0, image_of, tied)

    by_image, by_caption = [], None
    # Allocated once: new memory for every chunk would cost a fifth of the matrix product's time.
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
    """The best of two lists of (values, indices), each [Q, up to ``keep``]; the result has at most ``keep``."""
    values, indices = (torch.cat(pair, dim=1) for pair in zip(known, found))
    values, places = values.topk(min(keep, values.shape[1]), dim=1)
    return values, indices.gather(1, places)


def _compare(
    queries: Tensor, candidates: Tensor, values_QK: Tensor, best_QK: Tensor, own_Q: Tensor, right_Q: Tensor, chunk: int
) -> Retrieval:
    """Count the candidates that are more similar than the best right one, and those that are as similar. ``own_Q`` is
    the similarity of the best right one."""
    greater = (values_QK > own_Q[:, None] + TIE).sum(dim=1)
    near = (values_QK >= own_Q[:, None] - TIE).sum(dim=1)  # greater or equal
    # If the kept list ends with a tie, more ties may follow after it. Then all candidates have to be counted.
    beyond = (greater < near) & (near == values_QK.shape[1]) & (near < len(candidates))
    for some in beyond.nonzero()[:, 0].split(chunk):
        similarities = queries[some] @ candidates.T
        near[some] = (similarities >= own_Q[some, None] - TIE).sum(dim=1)
    equal = (near - greater - right_Q).clamp(min=0)
    return Retrieval(best_QK, values_QK, greater, equal, right_Q)
