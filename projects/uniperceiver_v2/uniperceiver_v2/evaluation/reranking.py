"""Retrieval in two steps: the candidates of highest cosine are compared again by the likelihood of the caption.

Shapes: N images, M captions, K candidates of a query, P pairs of an image and a caption.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .retrieval_ranks import Retrieval

TIE = 1e-3
"""Scores that differ by less count as equal. They are logarithms of probabilities, which batches round differently."""


@dataclass(frozen=True)
class Reranking:
    """How the model that is evaluated compares candidates again.

    Attributes:
        candidates: the number of candidates of each query.
        temperature: τ of the likelihood cos/τ.
        log_likelihoods: (tokens [T,d] of N images, ids [T] of M captions, pairs [P,2] of an image and a caption) ->
            log P(caption | image) [P].
    """

    candidates: int
    temperature: float
    log_likelihoods: Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Tensor]


def rerank(
    captions: Retrieval,
    images: Retrieval,
    image_of: Tensor,
    texts: Sequence[str],
    temperature: float,
    log_likelihoods: Callable[[Tensor], Tensor],
) -> tuple[Retrieval, Retrieval]:
    """Sort the candidates in the lists of both directions by a second score. Others stay behind them.

    Args:
        captions, images: found by cosine, see :func:`~.retrieval_ranks.retrieve`.
        image_of: [M] the index of each caption's image.
        texts, temperature, log_likelihoods: as for :func:`second_scores`.

    Returns:
        (captions, images) with their scores in place of cosines. Recall is right for k up to K.
    """
    scores_of_captions, scores_of_images = second_scores(
        (captions.similarities, captions.best), (images.similarities, images.best), texts, temperature, log_likelihoods
    )
    own_image = torch.arange(len(captions.best))[:, None]
    return (
        _sorted(captions.best, scores_of_captions, image_of[captions.best] == own_image),
        _sorted(images.best, scores_of_images, images.best == image_of[:, None]),
    )


def second_scores(
    captions: tuple[Tensor, Tensor],
    images: tuple[Tensor, Tensor],
    texts: Sequence[str],
    temperature: float,
    log_likelihoods: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """The scores by which candidates are compared again, in both directions.

    The score of an image x and a caption t is cos(x, t) / τ + log P(t | x) - log P(t). A contrastive loss makes cos / τ
    an estimate of log P(x, t) / (P(x) P(t)) up to a constant (van den Oord et al., 2018). Captioning estimates the same
    by its likelihood. P(t) is the mean of P(t | x) over the images with which the caption is compared.

    Args:
        captions: (cosines, indices) [N,K] of each image's candidates, as ``topk`` gives them.
        images: (cosines, indices) [M,K] of each caption's candidates. K may be another one, and either may be 0.
        texts: the M captions. Equal ones are compared once.
        temperature: τ.
        log_likelihoods: pairs [P,2] of an image and a caption, sorted by image -> log P(caption | image) [P].

    Returns:
        float64 [N,K] and [M,K], in the candidates' order.
    """
    (cosines_of_captions, best_captions), (cosines_of_images, best_images) = captions, images
    places: dict[str, int] = {}
    text_of = torch.tensor([places.setdefault(text, len(places)) for text in texts])  # [M]
    first = torch.zeros(len(places), dtype=torch.long).scatter_reduce(
        0, text_of, torch.arange(len(texts)), "amin", include_self=False
    )
    own_image = torch.arange(len(best_captions))[:, None]
    keys_of = [own_image * len(places) + text_of[best_captions], best_images * len(places) + text_of[:, None]]
    keys = torch.cat([part.flatten() for part in keys_of]).unique()
    image, text = keys // len(places), keys % len(places)
    given = log_likelihoods(torch.stack((image, first[text]), dim=1)).double()
    gains = given - _log_means(given, text, len(places))[text]

    def scores(cosines_QK: Tensor, keys_QK: Tensor) -> Tensor:
        return cosines_QK.double() / temperature + gains[torch.searchsorted(keys, keys_QK.contiguous())]

    return scores(cosines_of_captions, keys_of[0]), scores(cosines_of_images, keys_of[1])


def _log_means(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """log of the mean of exp(values) of each group."""
    largest = values.new_full((groups,), -torch.inf).scatter_reduce(0, group, values, "amax")
    sums = values.new_zeros(groups).index_add(0, group, (values - largest[group]).exp())
    return largest + (sums / torch.bincount(group, minlength=groups)).log()


def _sorted(best: Tensor, scores: Tensor, right: Tensor) -> Retrieval:
    """The lists [Q,K] in the order of the scores. If no candidate is right, all K count as better than the right
    ones."""
    own = scores.masked_fill(~right, -torch.inf).amax(dim=1, keepdim=True)
    equal = (scores - own).abs() <= TIE
    scores_sorted, order = scores.sort(dim=1, descending=True, stable=True)
    return Retrieval(
        best.gather(1, order),
        scores_sorted,
        greater=(scores > own + TIE).sum(dim=1),
        equal=(equal & ~right).sum(dim=1),
        right=(equal & right).sum(dim=1),
    )
