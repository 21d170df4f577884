"""Segments, the parts of a sequence in the unified decoder, and the attributes of their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Route = list[tuple[int, Tensor]]  # numbers of experts, each with the weight of its output


@dataclass(frozen=True)
class TaskModalities:
    """The modalities of a task's inputs x and targets y.

    Attributes:
        inputs: a non-empty subset of {"image", "text"}.
        targets: the same.
    Raises:
        ValueError: a set is empty or has another modality.
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
    """The kind of a token, whatever its content. The router of the Conditional MoE sees nothing else of a token
    (Uni-Perceiver-MoE).

    Attributes:
        modality: of the token; <SPE> is "special".
        role: whether the token's sequence is an input x or a target y.
        task: the modalities of the token's task.
        causal: whether attention is causal: the token sees itself and earlier tokens only.
    """

    modality: Literal["special", "image", "text"]
    role: Literal["input", "target"]
    task: TaskModalities
    causal: bool = False

    ENCODING_LENGTH = 8

    def encoding(self) -> tuple[int, ...]:
        """Eight bits that identify the attributes.

        They say: the token is of an image; of a text (<SPE> is neither); the task's inputs have images; have texts; the
        task's targets have images; have texts; the token is causal; the token's sequence is a target.
        """
        modalities = ({self.modality}, self.task.inputs, self.task.targets)
        known = [name in group for group in modalities for name in ("image", "text")]
        return tuple(int(bit) for bit in (*known, self.causal, self.role == "target"))


Routes = Mapping[Attributes, Route]


def attribute_classes(tasks: Iterable[TaskModalities]) -> list[Attributes]:
    """The distinct attributes of all tokens in these tasks.

    Inputs and targets begin with <SPE>. Text is causal if its input has images too, as in captioning. Other text is
    read whole.
    """
    classes = []
    for task in tasks:
        for role, modalities in (("input", task.inputs), ("target", task.targets)):
            classes.append(Attributes("special", role, task))
            for modality in sorted(modalities):
                classes.append(Attributes(modality, role, task, modality == "text" and "image" in modalities))
    return list(dict.fromkeys(classes))


class SegmentLayout(Sequence):
    """(number of tokens, attributes) of each segment of a sequence.

    It is a class because torch.compile inspects lists, and would compile a graph for each list of lengths.

    Args:
        segments: the pairs, in the order of the sequence.
        routes: the experts for each class of attributes, for each layer; None if the decoder has none.
    """

    def __init__(self, segments: Iterable[tuple[int, Attributes]], routes: Sequence[Routes] | None = None):
        self._segments = tuple(segments)
        self.routes = routes

    def __getitem__(self, index: int) -> tuple[int, Attributes]:
        return self._segments[index]

    def __len__(self) -> int:
        return len(self._segments)


@dataclass
class Segment:
    """Consecutive tokens with the same attributes.

    Attributes:
        tokens: [B,T,d].
        valid: [B,T] bool, False at padding; None if there is no padding.
        attributes: of all T tokens.
    """

    tokens: Tensor
    valid: Tensor | None
    attributes: Attributes

    def select(self, rows: Tensor) -> Segment:
        """The segment of the rows [B'] of the batch. A row may occur several times."""
        return Segment(self.tokens[rows], None if self.valid is None else self.valid[rows], self.attributes)
