"""The model's side of a task: how inputs and candidates become losses and predictions. There are no task heads, so a
task holds settings and no weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage
from torch import Tensor

from ..modeling.model import UniPerceiver


class Task(ABC):
    """One task of a model.

    Args:
        settings: its kind's :class:`~uniperceiver_v2.kinds.TaskSettings`.
    """

    def __init__(self, settings: Any):
        self.settings = settings

    @classmethod
    def from_config(cls, cfg: CfgNode, settings: Any) -> Task:
        """The task of a configuration. Subclasses take what else they need from ``cfg``."""
        return cls(settings)

    @abstractmethod
    def losses(self, model: UniPerceiver, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """The losses of a batch, weighed against each other, each a scalar.

        With several ranks a rank's losses are such that their mean over ranks is that of the whole batch (see `ranks`).
        Whether collective calls are made must not depend on what this rank's share holds.
        """

    def loss_count(self, inputs: Sequence[Any]) -> int:
        """How many things the losses of a batch are means over: images, unless a task says otherwise. It may be 0.

        A part of a batch then counts max(1, its count) / max(1, the count of all parts), both summed over ranks, of the
        whole: as losses divide by no less than one thing, parts with none teach the background all the same.
        """
        return len(inputs)

    @abstractmethod
    def predict(self, model: UniPerceiver, inputs: Sequence[Any]) -> list[dict]:
        """A prediction for each input."""


def candidate_texts(prompt: str, inputs: Sequence[Any]) -> tuple[str, ...]:
    """The candidate texts of a batch: the names of its first input, put into a prompt.

    Raises:
        ValueError: the input has none.
    """
    names = inputs[0].get("candidates")
    if not names:
        raise ValueError('an input needs "candidates", the names to choose from')
    return _prompted(prompt, tuple(names))


@lru_cache(maxsize=64)
def _prompted(prompt: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(prompt.format(name) for name in names)


def log_accuracy(name: str, hits: Tensor, count: Tensor | int) -> None:
    """Puts the share of `hits` among `count` into the event storage, in one wait for the device; nothing if there was
    nothing to hit."""
    accuracy = (hits / count).item()
    if not math.isnan(accuracy):
        get_event_storage().put_scalar(name, accuracy)
