"""The files of a run, read when they are needed."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
from typing import Any, TypeGuard

from detectron2.data import MetadataCatalog

from ..data import load_dataset, register_custom_datasets
from ..errors import UserError
from ..evaluation import kind_of_metrics
from ..kinds import TaskKind, kind_of_dataset
from ..reading import read_file, read_json, read_yaml

logger = logging.getLogger(__name__)


class Missing(Exception):
    """Something that a part of the page needs is not there. The message says what, as the end of a sentence."""


class Run:
    """A run by its OUTPUT_DIR.

    Args:
        path: the folder.

    Raises:
        UserError: there is no such folder, or it has no file of a run.
    """

    def __init__(self, path: str):
        if not os.path.isdir(path):
            raise UserError(f"there is no run in {path}: no such folder")
        self.path = path
        self.name = os.path.basename(os.path.abspath(path))
        if not any(os.path.exists(self.file(name)) for name in ("config.yaml", "metrics.json", "results.json")):
            raise UserError(f"there is no run in {path}: it has no config.yaml, metrics.json or results.json")

    def file(self, *parts: str) -> str:
        """A path in the run's folder."""
        return os.path.join(self.path, *parts)

    def json(self, *parts: str) -> Any:
        """The content of a JSON file of the run.

        Raises:
            Missing: it does not exist or is no JSON.
        """
        try:
            return read_json(self.file(*parts))
        except FileNotFoundError:
            raise Missing(f"the run has no file {os.path.join(*parts)}") from None
        except (OSError, UserError) as error:
            raise Missing(str(error)) from error

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """config.yaml as it was written, in nested dicts. Empty if it cannot be read."""
        try:
            return read_yaml(self.file("config.yaml"))
        except (OSError, UserError) as error:
            logger.warning("%s", error)
            return {}

    @functools.cached_property
    def tasks(self) -> dict[str, dict[str, Any]]:
        """The trained tasks with their settings, as far as config.yaml has them."""
        nodes = self.settings.get("TASKS") or {}
        return {name: nodes.get(name) or {} for name in nodes.get("NAMES") or []}

    @functools.cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.json. A line that was not written completely is left out."""
        try:
            lines = read_file(self.file("metrics.json")).splitlines()
        except (OSError, ValueError, UserError):
            return []
        rows = []
        for line in lines:
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and isinstance(row.get("iteration"), int):
                rows.append(row)
        return rows

    @functools.cached_property
    def results(self) -> dict[str, dict[str, dict[str, float | None]]]:
        """{dataset: {row: {metric: value}}} of the last evaluation: results.json, and for a dataset that is not there
        the file of its evaluator."""
        found = _of_tables(self._json_or_nothing("results.json"))
        for dataset in self._folders():
            if dataset not in found and (table := self._json_or_nothing("inference", dataset, "results.json")):
                found |= _of_tables({dataset: table})
        return found

    def _json_or_nothing(self, *parts: str) -> Any:
        try:
            return self.json(*parts)
        except Missing:
            return None

    @functools.cached_property
    def datasets(self) -> list[str]:
        """The tested datasets: those of config.yaml in its order, then others that have results or files."""
        named = (self.settings.get("DATASETS") or {}).get("TEST") or []
        return list(dict.fromkeys([*named, *self.results, *self._folders()]))

    def _folders(self) -> list[str]:
        folder = self.file("inference")
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()) if os.path.isdir(folder) else []

    def evaluation(self, dataset: str) -> Evaluation:
        """The last evaluation of a dataset."""
        return Evaluation(self, dataset)


def _of_tables(content: Any) -> dict[str, dict[str, dict[str, float | None]]]:
    """The entries of a file that are tables of results: {row: {metric: value}}."""
    entries = content.items() if isinstance(content, dict) else ()
    return {
        dataset: table
        for dataset, table in entries
        if isinstance(table, dict) and table and all(isinstance(metrics, dict) for metrics in table.values())
    }


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of a run's file can be drawn: a number that is finite."""
    return isinstance(value, int | float) and math.isfinite(value)


class Evaluation:
    """The evaluation of one dataset in a run.

    Attributes:
        run, dataset: which.
        results: {row: {metric: value}}, empty if there are none.
    """

    def __init__(self, run: Run, dataset: str):
        self.run = run
        self.dataset = dataset
        self.results = run.results.get(dataset) or {}
        self._files: dict[str, Any] = {}

    @functools.cached_property
    def kind(self) -> TaskKind | None:
        """By the dataset's registration. Without one, by its metrics. None if neither tells."""
        self._register()
        kinds = [kind_of_metrics(metrics) for metrics in self.results.values()]
        return kind_of_dataset(self.dataset) or next((kind for kind in kinds if kind is not None), None)

    def _register(self) -> None:
        """Register the dataset as the run's settings describe it. Another run may have another one of its name."""
        node = ((self.run.settings.get("DATASETS") or {}).get("CUSTOM") or {}).get(self.dataset)
        if node is not None:
            try:
                register_custom_datasets({self.dataset: node})
            except UserError as error:
                logger.warning("%s: %s", self.run.file("config.yaml"), error)

    def json(self, file_name: str) -> Any:
        """A file of the evaluator, which is read once.

        Raises:
            Missing: it does not exist or is no JSON.
        """
        if file_name not in self._files:
            self._files[file_name] = self.run.json("inference", self.dataset, file_name)
        return self._files[file_name]

    def has(self, file_name: str) -> bool:
        """Whether the evaluator wrote this file."""
        return os.path.exists(self.run.file("inference", self.dataset, file_name))

    @functools.cached_property
    def records(self) -> dict[Any, dict[str, Any]]:
        """The dataset's records by "image_id" or "text_id".

        Raises:
            Missing: the dataset cannot be read on this machine.
        """
        self._register()
        try:
            records = load_dataset(self.dataset)
        except UserError as error:
            raise Missing(f"the dataset's annotations cannot be read ({error})") from error
        return {record.get("image_id", record.get("text_id", place)): record for place, record in enumerate(records)}

    @functools.cached_property
    def names(self) -> list[str]:
        """The names of the dataset's categories.

        Raises:
            Missing: they are not known.
        """
        self.records  # fills the metadata  # noqa: B018
        names = MetadataCatalog.get(self.dataset).get("thing_classes")
        if names is None:
            raise Missing("the names of the dataset's categories are not known")
        return list(names)

    def file_name(self, record: dict[str, Any]) -> str:
        """Where the image of an evaluator's record is now. Paths in a run's files may be relative to another folder
        than today's; then the dataset's own record has it."""
        if os.path.exists(record["file_name"]):
            return record["file_name"]
        try:
            return self.records[record["image_id"]]["file_name"]
        except (Missing, KeyError):
            return record["file_name"]
