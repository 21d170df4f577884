"""Images as a search needs them, and the order in which it puts the best of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..evaluation.reranking import second_scores


@dataclass(frozen=True, eq=False)
class Gallery:
    """I images, encoded for retrieval alone. The sum of two galleries has the images of both.

    Attributes:
        model: the model that encoded them.
        names: the images' paths, or their places among those that were given.
        features: float32 [I,d] of length 1; rows of NaN for images that could not be read.
        tokens: for each image what a caption's likelihood depends on, float16 [T,d] on the CPU; empty for images that
            could not be read. None at all if the task of retrieval has no ``RERANK``.
        failures: {place: sentence} of images that could not be read.
        single: whether it was one image and no list.
    """

    model: Any = field(repr=False)
    names: tuple[str, ...]
    features: Tensor = field(repr=False)
    tokens: tuple[Tensor, ...] = field(repr=False)
    failures: dict[int, str] = field(default_factory=dict)
    single: bool = False

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: Gallery) -> Gallery:
        failures = {len(self) + place: sentence for place, sentence in other.failures.items()}
        features = torch.cat((self.features, other.features))
        names, tokens = self.names + other.names, self.tokens + other.tokens
        return Gallery(self.model, names, features, tokens, self.failures | failures)


def compared_again(
    cosines: Tensor,
    texts: Sequence[str],
    candidates: int,
    temperature: float,
    log_likelihoods: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The best candidates of each text and of each image by cosine, in the order of evaluation's second score.

    A side with a single candidate has no order. So one text is compared with its own best images alone, however many
    images there are. With one image, P(t) equals P(t | x), and the second score has the order of cosines.

    Args:
        cosines: [I,T], with rows of NaN for images that are no candidates.
        texts: T.
        candidates: K, of a text or an image at most; 0 compares nothing.
        temperature, log_likelihoods: as for :func:`~uniperceiver_v2.evaluation.reranking.second_scores`.

    Returns:
        places of images [T,K] and places of texts [I,K], best first. Rows of images that are no candidates mean
        nothing. (None, None) if nothing was compared.
    """
    readable = cosines.isfinite().all(dim=1).nonzero()[:, 0]
    if not candidates or len(readable) < 2:
        return None, None
    usable = cosines[readable]
    of_images = usable.topk(min(candidates, len(texts)) if len(texts) > 1 else 0, dim=1)
    of_texts = usable.T.topk(min(candidates, len(readable)), dim=1)

    def of_usable(pairs: Tensor) -> Tensor:
        return log_likelihoods(torch.stack((readable[pairs[:, 0]], pairs[:, 1]), dim=1))

    scores = second_scores(of_images, of_texts, texts, temperature, of_usable)
    best_texts, best_images = (
        found.indices.gather(1, score.argsort(dim=1, descending=True, stable=True))
        for found, score in zip((of_images, of_texts), scores, strict=True)
    )
    return readable[best_images], best_texts.new_zeros(len(cosines), best_texts.shape[1]).index_copy(
        0, readable, best_texts
    )
