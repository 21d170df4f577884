"""Kinds of task, each described by one descriptor: its settings, model's side, data, evaluators, columns and pictures.

A kind's descriptor is in its file in ``tasks/``. ``KINDS`` has all descriptors by name. This file also answers two
questions that several packages have: which task of a configuration has a given name, and which task evaluates a given
dataset.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from .errors import UserError, nearest

# Records, and the mapper that turns one into a sample.
Data = tuple[Sequence[dict[str, Any]], Callable[[dict[str, Any]], dict[str, Any]]]
LARGEST_SQUARE = 2**13  # pixels, of the side that an image of a task is scaled to
KINDS: dict[str, TaskKind] = {}  # tables and documents list them in this order


def setting(
    default: Any,
    meaning: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    interval: bool = False,
) -> Any:
    """A field of a :class:`TaskSettings`.

    Args:
        default: its value if a configuration does not give one.
        meaning: a line for the documentation.
        above, at_least, at_most: the range of its value, or of each value in a list.
        interval: whether it is a list of two numbers, a smallest and a largest one.
    """
    metadata = {"meaning": meaning, "range": (above, at_least, at_most), "interval": interval}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The settings that a node of ``TASKS`` may hold, for every kind. In YAML the names are in capitals.

    A kind's own settings are further fields in a subclass.
    """

    kind: str = setting("", "one of the kinds below")
    datasets: list[str] = setting([], "registered names to train on; of several, the categories have to be the same")
    evaluates: list[str] = setting(
        [], "datasets of `DATASETS.TEST` that this task evaluates; to be said where several tasks are of their kind"
    )
    ims_per_batch: int = setting(
        16,
        "images (or texts) of a batch, over all ranks of a task group; `SOLVER.IMS_PER_BATCH` is not read",
        above=0,
        at_most=100_000,
    )
    sampling_ratio: float = setting(1.0, "s_k; the ratios of all tasks are scaled to sum to 1", above=0, at_most=1e12)
    loss_weight: float = setting(1.0, "w_k; of use with `AdamW` only, as normalisation cancels it", above=0)
    gradient_weight: float = setting(1.0, "ω_k, the norm of the task's gradient with `TaskBalancedAdamW`", above=0)

    @classmethod
    def defaults(cls, kind: str) -> dict[str, Any]:
        """A new node of this kind: every key in capitals, with its default."""
        return {f.name.upper(): kind if f.name == "kind" else _default(f) for f in fields(cls)}

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> TaskSettings:
        """The settings in a complete node of ``TASKS``."""
        return cls(**{f.name: copy.copy(node[f.name.upper()]) for f in fields(cls)})

    @classmethod
    def check(cls, node: Mapping[str, Any], prefix: str) -> None:
        """Check the values of a node.

        Raises:
            UserError: a value is out of its range. The message begins with ``prefix``, the path of the node.
        """
        for f in fields(cls):
            value, limits = node[f.name.upper()], f.metadata["range"]
            for number in value if isinstance(value, list | tuple) else [value]:
                if any(limit is not None for limit in limits) and not _within(number, *limits):
                    raise UserError(f"{prefix}.{f.name.upper()} must be {shown_range(f)}, not {number}")
            if f.metadata["interval"] and (len(value) != 2 or value[0] > value[1]):
                raise UserError(f"{prefix}.{f.name.upper()} is a smallest and a largest number, not {value}")


def shown_default(f: Field[Any]) -> str:
    """A setting's default as the documentation shows it. Empty if a configuration has to give the value."""
    default = _default(f)
    return f"`{default!r}`".replace("'", '"') if default != "" else ""


def shown_range(f: Field[Any]) -> str:
    """A setting's range in words, for example "above 0 and at most 1"."""
    limits = zip(("above", "at least", "at most"), f.metadata["range"])
    return " and ".join(f"{words} {limit:g}" for words, limit in limits if limit is not None)


def _default(f: Field[Any]) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def _within(value: float, above: float | None, at_least: float | None, at_most: float | None) -> bool:
    return (
        math.isfinite(value)
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
    )


@dataclass(frozen=True)
class ConfiguredTask:
    """A task of a configuration: its name under ``TASKS``, its kind, and its settings.

    If a configuration has no task of a kind, the kind itself takes the place of a task: with the kind's name and
    default settings.
    """

    name: str
    kind: TaskKind
    settings: Any  # the kind's subclass of TaskSettings


def _nothing(*_: Any) -> None:
    """The default of a kind's optional functions."""


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """A kind of task.

    Attributes:
        name: the value of ``KIND`` in a task's node.
        settings: the class of the settings in a task's node.
        task: the model's side of the task, a subclass of :class:`~uniperceiver_v2.tasks.Task`.
        training_data: (cfg, task) -> the records to train on, and the mapper that turns a record into a sample.
        test_data: (cfg, dataset, task) -> the same for a test dataset that the task evaluates.
        evaluators: {``evaluator_type`` of a dataset: (dataset, folder for files) -> evaluator}. Two kinds must not have
            the same type, since it decides which kind evaluates a dataset.
        columns: {metric in the table of results: its number of decimals}.
        titles: {name of a row in an evaluator's results: its title in the table}, for titles that differ from the name.
        before_evaluation: (cfg, model, evaluators of this kind) -> None, called on all ranks before an evaluation.
        draw: (cfg, model, dataset) -> None, called on the main process after a run's last evaluation.
        picture: (dataset, prediction) -> arguments with which :func:`~uniperceiver_v2.visualization.scene_picture`
            shows a prediction in TensorBoard's pictures. None if predictions of this kind cannot be drawn on an image.
    """

    name: str
    settings: type[TaskSettings]
    task: type
    training_data: Callable[[CfgNode, ConfiguredTask], Data]
    test_data: Callable[[CfgNode, str, ConfiguredTask], Data]
    evaluators: Mapping[str, Callable[[str, str], DatasetEvaluator]]
    columns: Mapping[str, int]
    titles: Mapping[str, str] = field(default_factory=dict)
    before_evaluation: Callable[[CfgNode, Any, Sequence[DatasetEvaluator]], None] = _nothing
    draw: Callable[[CfgNode, Any, str], None] = _nothing
    picture: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None

    def task_of(self, name: str, node: Mapping[str, Any] | None = None) -> ConfiguredTask:
        """A task of this kind with the settings of a complete node. Without a node it has the kind's defaults."""
        return ConfiguredTask(name, self, self.settings.of(self.settings.defaults(self.name) if node is None else node))


def register_kind(kind: TaskKind) -> TaskKind:
    """Add a kind of task to ``KINDS``.

    Raises:
        ValueError: another kind has the same name, or evaluates datasets of the same type.
    """
    if kind.name in KINDS:
        raise ValueError(f"there is a kind of task {kind.name!r} already")
    for other in KINDS.values():
        if shared := set(kind.evaluators) & set(other.evaluators):
            raise ValueError(f"the kinds {other.name!r} and {kind.name!r} both evaluate {', '.join(sorted(shared))}")
    KINDS[kind.name] = kind
    return kind


def configured_task(cfg: CfgNode, name: str) -> ConfiguredTask:
    """The task ``TASKS.<name>``."""
    node = cfg.TASKS[name]
    return KINDS[node.KIND].task_of(name, node)


def kind_of_dataset(dataset_name: str) -> TaskKind | None:
    """The kind of task that evaluates a registered dataset, by the ``evaluator_type`` in its metadata. None if there
    is none."""
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    return next((kind for kind in KINDS.values() if evaluator_type in kind.evaluators), None)


def evaluated_kind(dataset_name: str) -> TaskKind:
    """The kind of task that evaluates a registered dataset, see :func:`kind_of_dataset`.

    Raises:
        UserError: no kind evaluates the dataset.
    """
    kind = kind_of_dataset(dataset_name)
    if kind is None:
        evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
        known = nearest(str(evaluator_type), (name for kind in KINDS.values() for name in kind.evaluators))
        raise UserError(
            f"dataset '{dataset_name}' has evaluator_type {evaluator_type!r} and cannot be evaluated{known}"
        )
    return kind


def evaluating_task(cfg: CfgNode, dataset_name: str) -> ConfiguredTask:
    """The task that evaluates a dataset. It gives the settings of the evaluation, such as the prompt and the image
    size.

    The first of these rules that gives a task decides:

    1. The task with the dataset in its ``EVALUATES``. It need not be trained.
    2. The only task of the dataset's kind in ``TASKS.NAMES``.
    3. The kind itself with its defaults, if ``TASKS.NAMES`` has no task of the kind.

    Raises:
        UserError: no kind evaluates the dataset, several tasks may evaluate it, or the task with the dataset in its
            ``EVALUATES`` is of another kind.
    """
    kind = evaluated_kind(dataset_name)
    said = [name for name, node in cfg.TASKS.items() if name != "NAMES" and dataset_name in node.EVALUATES]
    possible = said or [name for name in cfg.TASKS.NAMES if kind.name == cfg.TASKS[name].KIND]
    if len(possible) > 1:
        how = (
            "name it in the EVALUATES of one of them only"
            if said
            else f"say which one does by, for example, TASKS.{possible[0]}.EVALUATES \"['{dataset_name}']\""
        )
        raise UserError(f"the tasks {', '.join(possible)} could all evaluate dataset '{dataset_name}'; {how}")
    if not possible:
        return kind.task_of(kind.name)
    task = configured_task(cfg, possible[0])
    if task.kind is not kind:
        raise UserError(
            f"TASKS.{task.name}.EVALUATES: '{dataset_name}' is a dataset of {kind.name}, not of {task.kind.name}"
        )
    return task
