"""The parts that a sequence of the unified decoder is put together from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Attributes:
    """What a token is, whatever it says; all that a routed feed-forward network may know of it (Uni-Perceiver-MoE).

    Attributes:
        modality: of the token; "special" is <SPE>.
        role: whether its sequence is an input x or a target y.
    """

    modality: Literal["special", "image", "text"]
    role: Literal["input", "target"]


@dataclass
class Segment:
    """Consecutive tokens with the same attributes.

    Attributes:
        tokens: [B,T,d].
        valid: [B,T] bool, False at padding; None if all are valid.
        attributes: of all of them.
    """

    tokens: Tensor
    valid: Tensor | None
    attributes: Attributes
