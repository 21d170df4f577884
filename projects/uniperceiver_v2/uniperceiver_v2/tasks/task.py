"""The model's side of a task: losses and predictions from inputs and candidates.

There are no task heads, so a task holds settings and no weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import Tensor

from ..data import load_dataset
from ..data.datasets.records import candidate_names, own_category_ids
from ..errors import UserError
from ..kinds import LARGEST_SQUARE, TaskSettings, kind_of_dataset, setting
from ..measured import measure
from ..modeling.model import UniPerceiver


@dataclass(frozen=True, kw_only=True)
class CaptionedImageSettings(TaskSettings):
    """Sizes of images with captions. They are never mirrored, as captions say left and right."""

    image_size: int = setting(
        0,
        "side in pixels of the square that images are made; 0: detection's sizes, without crops",
        at_least=0,
        at_most=LARGEST_SQUARE,
    )
    crop_scale: list[float] = setting(
        [0.5, 1.0],
        "smallest and largest share of an image's area that a random crop to such a square takes in training",
        above=0,
        at_most=1,
        interval=True,
    )
    test_size: int = setting(
        0,
        "side of the square that whole images are scaled to in evaluation; 0: `IMAGE_SIZE`",
        at_least=0,
        at_most=LARGEST_SQUARE,
    )

    @property
    def training_sizes(self) -> dict[str, Any]:
        """Arguments of the mappers of training."""
        return {"square": self.image_size, "crop_scale": self.crop_scale}

    @property
    def test_sizes(self) -> dict[str, Any]:
        """Arguments of the mappers of evaluation."""
        return {"square": self.test_size or self.image_size}


class Task(ABC):
    """One task of a model.

    Args:
        settings: an instance of its kind's :class:`~uniperceiver_v2.kinds.TaskSettings`.
    """

    def __init__(self, settings: Any):
        self.settings = settings

    @classmethod
    def from_config(cls, cfg: CfgNode, settings: Any) -> Task:
        """The task of a configuration. Subclasses read further settings from ``cfg`` if they need them."""
        return cls(settings)

    @abstractmethod
    def losses(self, model: UniPerceiver, inputs: Sequence[Any]) -> dict[str, Tensor]:
        """The losses of a batch, scalars that are weighted against each other.

        With several ranks, the mean of the ranks' losses must be the loss of the whole batch (see ``ranks``). A rank's
        collective calls must not depend on its share of the batch, as all ranks have to make the same calls.
        """

    def loss_count(self, inputs: Sequence[Any]) -> int:
        """The number of things over which the losses of a batch are means. These are images by default. It may be 0.

        The trainer weights a part of a batch with max(1, its count) / max(1, the count of all parts). Both counts are
        summed over ranks. A part with a count of 0 has a weight, too: its losses are divided by 1 and still teach the
        background.
        """
        return len(inputs)

    @abstractmethod
    def predict(self, model: UniPerceiver, inputs: Sequence[Any]) -> list[dict]:
        """A prediction for each input."""


class NamingTask(Task):
    """A task whose candidates are names that an input gives, or else the names of the task's own data.

    Args:
        settings: with a ``prompt``.
        named_by: registered datasets whose class names may serve, the first that has some.
    """

    def __init__(self, settings: Any, named_by: Sequence[str] = ()):
        super().__init__(settings)
        self._named_by = tuple(named_by)
        self._labels: tuple[str, ...] | None = None
        # The ids of the labels in the files that they come from, if these are a user's own dataset. May be set.
        self.category_ids: tuple[int | str, ...] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the task's own classes, in the order of its datasets' labels. May be set.

        They are the metadata's. A dataset that learns its classes from its files, such as folders, is loaded for them.

        Raises:
            UserError: no dataset of the task has names here.
        """
        if self._labels is None:
            self._labels, self.category_ids = _names_of(self._named_by)
        return self._labels

    @labels.setter
    def labels(self, names: Sequence[str]) -> None:
        self._labels, self.category_ids = tuple(names), None

    def texts_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """The candidate texts: each name, put into the prompt."""
        return prompted(self.settings.prompt, tuple(names))

    def names_of(self, inputs: Sequence[Any]) -> tuple[str, ...]:
        """The names that a batch chooses from: those in its first input, or else the task's own."""
        if not inputs[0].get("candidates") and (self._labels or self._named_by):
            return self.labels
        return candidate_texts("{}", inputs)

    def candidates_of(self, inputs: Sequence[Any]) -> tuple[str, ...]:
        """The candidate texts of a batch: its names, each put into the prompt."""
        return self.texts_of(self.names_of(inputs))


def naming_datasets(cfg: CfgNode, kind: str, settings: Any) -> tuple[str, ...]:
    """The registered datasets that know the names of a task: those that it trains on or evaluates, then the tested
    ones of its kind."""
    names = (*settings.datasets, *settings.evaluates, *cfg.DATASETS.TEST)
    registered = [name for name in dict.fromkeys(names) if name in DatasetCatalog]
    own = {*settings.datasets, *settings.evaluates}
    return tuple(x for x in registered if x in own or getattr(kind_of_dataset(x), "name", None) == kind)


def _names_of(datasets: Sequence[str]) -> tuple[tuple[str, ...], tuple[int | str, ...] | None]:
    """The names of the first dataset that has some, and the ids of the user's own categories."""
    for name in datasets:
        try:
            return candidate_names(name), own_category_ids(name)
        except UserError:  # no names without its files
            continue
    for name in datasets:
        load_dataset(name)
        return candidate_names(name), own_category_ids(name)
    raise UserError("no labels are known: give the names to choose from")


def candidate_texts(prompt: str, inputs: Sequence[Any]) -> tuple[str, ...]:
    """The candidate texts of a batch: the names in its first input, each put into the prompt.

    Raises:
        ValueError: the input has no names.
    """
    names = inputs[0].get("candidates")
    if not names:
        raise ValueError('an input needs "candidates", the names to choose from')
    return prompted(prompt, tuple(names))


@lru_cache(maxsize=64)
def prompted(prompt: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Each name put into a prompt."""
    return tuple(prompt.format(name) for name in names)


def log_accuracy(name: str, hits: Tensor, count: Tensor | int) -> None:
    """Measure the share of ``hits`` among ``count``, or nothing if ``count`` is 0."""
    measure(name, hits / count)
