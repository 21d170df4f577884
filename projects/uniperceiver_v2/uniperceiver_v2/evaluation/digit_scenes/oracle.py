"""What retrieval would reach by knowing all that captions say: many a caption is true of several scenes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..retrieval_ranks import hit_probability
from .claims import Claim, Group
from .facts import Scene
from .parser import parse


def scenes_of_captions(captions: Sequence[str], scenes: Sequence[Scene]) -> dict[str, set[int]]:
    """The indices of the scenes that each caption is true of; none for one that is not of the language."""
    showing: dict[Group, set[int]] = {}

    def where(claim: Claim) -> set[int]:
        possible = set(range(len(scenes)))  # few are left where all that it speaks of is there
        for group in claim.subjects():
            if group not in showing:
                showing[group] = {index for index, scene in enumerate(scenes) if group.among(scene)}
            possible &= showing[group]
        return {index for index in possible if claim.holds(scenes[index])}

    claims = {caption: parse(caption) for caption in captions}
    return {caption: set() if claim is None else where(claim) for caption, claim in claims.items()}


def oracle_recall(
    captions: Sequence[Sequence[str]], scenes: Sequence[Scene], ranks: Sequence[int]
) -> dict[str, dict[str, float]]:
    """R@k in percent where the similarity of a caption and an image is what can be known: 0 if the caption is not true
    of the scene, and else 1/n for a caption that is true of n scenes, the probability that it was written of this one.
    Equals stand in random order, as in :class:`~uniperceiver_v2.evaluation.RetrievalEvaluator`.

    Args:
        captions: of each of the N images, at least one; they count as true of it.
        scenes: of the N images.
        ranks: k.

    Returns:
        "text_retrieval" and "image_retrieval", each {"R@k": value}.
    """
    found = scenes_of_captions([caption for own in captions for caption in own], scenes)
    written = [(image, found[caption] | {image}) for image, own in enumerate(captions) for caption in own]
    own: list[list[int]] = [[] for _ in scenes]  # n of each image's own captions, and of others that are true of it
    others: list[list[int]] = [[] for _ in scenes]
    for image, true_of in written:
        for index in true_of:
            (own if index == image else others)[index].append(len(true_of))
    best = [min(numbers) for numbers in own]
    return {
        "text_retrieval": _recall(
            ranks,
            greater=[sum(n < first for n in numbers) for first, numbers in zip(best, others)],
            equal=[numbers.count(first) for first, numbers in zip(best, others)],
            right=[numbers.count(first) for first, numbers in zip(best, own)],
        ),
        "image_retrieval": _recall(
            ranks,
            greater=[0] * len(written),
            equal=[len(true_of) - 1 for _, true_of in written],
            right=[1] * len(written),
        ),
    }


def _recall(ranks: Sequence[int], greater: list[int], equal: list[int], right: list[int]) -> dict[str, float]:
    counts = [torch.tensor(counts) for counts in (greater, equal, right)]
    return {f"R@{k}": 100 * hit_probability(k, *counts).mean().item() for k in ranks}
