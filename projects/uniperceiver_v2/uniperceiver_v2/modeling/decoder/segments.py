"""The parts that a sequence of the unified decoder is put together from, and what may be known of their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class TaskModalities:
    """Which modalities a task maps to which.

    Attributes:
        inputs: of its x, of "image" and "text".
        targets: of its y, the same.
    Raises:
        ValueError: no modality, or another one.
    """

    inputs: frozenset[str]
    targets: frozenset[str]

    def __post_init__(self):
        for name in ("inputs", "targets"):
            modalities = frozenset(getattr(self, name))
            if not modalities or modalities - {"image", "text"}:
                raise ValueError(f"{name} of a task are of 'image' and 'text', not {sorted(modalities)}")
            object.__setattr__(self, name, modalities)


IMAGE_TO_TEXT = TaskModalities(frozenset({"image"}), frozenset({"text"}))  # detection, classification, retrieval
IMAGE_TEXT_TO_TEXT = TaskModalities(frozenset({"image", "text"}), frozenset({"text"}))  # captioning
TEXT_TO_TEXT = TaskModalities(frozenset({"text"}), frozenset({"text"}))  # language modelling


@dataclass(frozen=True)
class Attributes:
    """What a token is, whatever it says; all that a routed feed-forward network may know of it (Uni-Perceiver-MoE).

    Attributes:
        modality: of the token; "special" is <SPE>.
        role: whether its sequence is an input x or a target y.
        task: the modalities of its task.
        causal: whether it sees only what stands before it.
    """

    modality: Literal["special", "image", "text"]
    role: Literal["input", "target"]
    task: TaskModalities
    causal: bool = False

    ENCODING_LENGTH = 8

    def encoding(self) -> tuple[int, ...]:
        """Eight times 0 or 1, different for different attributes: the token is of an image, of a text (neither:
        <SPE>), its task's inputs hold images, texts, its task's targets hold images, texts, the token is causal, its
        sequence is a target."""
        modalities = ({self.modality}, self.task.inputs, self.task.targets)
        known = [name in group for group in modalities for name in ("image", "text")]
        return tuple(int(bit) for bit in (*known, self.causal, self.role == "target"))


def attribute_classes(tasks: Iterable[TaskModalities]) -> list[Attributes]:
    """All attributes that tokens of these tasks may have, each once.

    Inputs and targets open with <SPE>. Text of an input that holds images as well is causal, as in captioning; any
    other is read whole.
    """
    classes = []
    for task in tasks:
        for role, modalities in (("input", task.inputs), ("target", task.targets)):
            classes.append(Attributes("special", role, task))
            for modality in sorted(modalities):
                classes.append(Attributes(modality, role, task, modality == "text" and "image" in modalities))
    return list(dict.fromkeys(classes))


class SegmentLayout(Sequence):
    """(number of tokens, their attributes) of consecutive segments. A class of its own, as torch.compile looks into
    lists and would make a graph for each list of lengths.

    Args:
        segments: of one sequence, in order.
    """

    def __init__(self, segments: Iterable[tuple[int, Attributes]]):
        self._segments = tuple(segments)

    def __getitem__(self, index: int) -> tuple[int, Attributes]:
        return self._segments[index]

    def __len__(self) -> int:
        return len(self._segments)


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

    def select(self, rows: Tensor) -> Segment:
        """Rows [B'] of the batch, any number of times each."""
        return Segment(self.tokens[rows], None if self.valid is None else self.valid[rows], self.attributes)
