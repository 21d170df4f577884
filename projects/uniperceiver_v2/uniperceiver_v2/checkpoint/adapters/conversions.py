"""Conversions that several adapters share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .table import Rule

_BY_SCALE = ("sampling_offsets", "attention_weights")


def part_of(number: int, parts: int = 3) -> Callable[[Tensor], Tensor]:
    """Takes one of several projections that stand in one tensor, one below the other."""
    return lambda value: value.chunk(parts)[number]


def packed_attention(
    source: str, target: str, names: tuple[str, str] = ("in_proj_weight", "in_proj_bias")
) -> list[Rule]:
    """Rules from an attention with one tensor for queries, keys and values to one with three."""
    return [
        Rule(f"{source}.{name}", f"{target}.{projection}.{kind}", "one third of it", part_of(number))
        for name, kind in zip(names, ("weight", "bias"), strict=True)
        for number, projection in enumerate(("q_proj", "k_proj", "v_proj"))
    ]


def deformable_attention(source: str, target: str, heads: int, levels: int, reverse: bool) -> list[Rule]:
    """Rules of a deformable attention.

    Args:
        reverse: whether the source has its scales from the coarsest on, and ours from the finest.
    """
    if not reverse:
        return [Rule(f"{source}.**", f"{target}.**")]

    def reversed_scales(value: Tensor) -> Tensor:
        """Of rows [heads · levels · points (· 2), ...]."""
        return value.unflatten(0, (heads, levels, -1)).flip(1).flatten(0, 2)

    how = "its scales in reverse, ours begin with the finest"
    return [
        *(Rule(f"{source}.{name}.*", f"{target}.{name}.*", how, reversed_scales) for name in _BY_SCALE),
        *(Rule(f"{source}.{name}.*", f"{target}.{name}.*") for name in ("value_proj", "output_proj")),
    ]


def swapped_coordinates(value: Tensor) -> Tensor:
    """Columns for (y, x, w, h) to columns for (x, y, w, h), of an equal number for each."""
    y, x, w, h = value.chunk(4, dim=1)
    return torch.cat((x, y, w, h), dim=1)
