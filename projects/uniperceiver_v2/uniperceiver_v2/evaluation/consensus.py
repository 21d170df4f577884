"""CIDEr-D of single captions, as a reward in training. Evaluation has pycocoevalcap's, of a whole test set."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .caption_tokens import tokenize_plainly

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # of the penalty for another length, in words

NGram = tuple[str, ...]


@lru_cache(maxsize=2**16)
def _counts(caption: str) -> Counter[NGram]:
    """How often a caption has each n-gram."""
    words = tokenize_plainly(caption).split()
    return Counter(tuple(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1))


@dataclass(frozen=True)
class _Vector:
    """The weights of a caption's n-grams by their length, their norms, and its number of words."""

    weights: list[dict[NGram, float]]
    norms: list[float]
    words: int


class Consensus:
    """How much a caption has in common with the references of its image (Vedantam et al., CVPR 2015).

    Args:
        corpus: the captions of each image of a corpus, at least of one image. An n-gram weighs the less, the more of
            these images have it in their captions.
    """

    def __init__(self, corpus: Iterable[Sequence[str]]):
        self._images: Counter[NGram] = Counter()
        count = 0
        for count, captions in enumerate(corpus, start=1):  # noqa: B007
            self._images.update({gram for caption in captions for gram in _counts(caption)})
        self._log_count = math.log(count)

    def score(self, caption: str, references: Sequence[str]) -> float:
        """CIDEr-D of a caption, in 0..10."""
        own, total = self._vector(caption), 0.0
        for reference in map(self._vector, references):
            similarity = sum(
                sum(min(weight, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0) for gram, weight in ours.items())
                / (norm * their_norm or 1.0)
                for ours, theirs, norm, their_norm in zip(
                    own.weights, reference.weights, own.norms, reference.norms, strict=True
                )
            )
            total += similarity / LONGEST * math.exp(-((own.words - reference.words) ** 2) / (2 * SIGMA**2))
        return 10 * total / len(references)

    def _vector(self, caption: str) -> _Vector:
        weights: list[dict[NGram, float]] = [{} for _ in range(LONGEST)]
        words = 0
        for gram, count in _counts(caption).items():
            weights[len(gram) - 1][gram] = count * (self._log_count - math.log(max(1, self._images[gram])))
            words += count if len(gram) == 1 else 0
        return _Vector(weights, [math.sqrt(sum(x * x for x in part.values())) for part in weights], words)
