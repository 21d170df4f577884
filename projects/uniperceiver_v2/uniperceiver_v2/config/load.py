"""Reads a run's settings.

A YAML file (with ``_BASE_`` as in Detectron2) and ``KEY VALUE`` pairs describe a run. Each key is checked when it is
merged. A misspelled key ends the run at once, with a message that suggests the right key.
"""

import contextlib
import logging
import math
import os
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from ..data import register_custom_datasets
from ..errors import UserError, nearest
from ..files import shipped
from ..kinds import KINDS
from ..reading import is_remote, read_yaml
from .checks import check_config
from .defaults import add_uniperceiver_v2_config
from .unused import refuse_unused

logger = logging.getLogger(__name__)

_BASE = "_BASE_"
MOST_BASES = 100  # of a configuration, with those of its bases


def load_config(
    config_file: str | Mapping[str, Any] = "",
    overrides: Sequence[str] = (),
    *,
    training: bool = True,
    world_size: int = 1,
    datasets: bool = True,
) -> CN:
    """Read, merge and check the settings of a run, and register its ``DATASETS.CUSTOM``.

    Args:
        config_file: a YAML file, which may name another one as ``_BASE_``, or its content. Empty for the defaults.
        overrides: ``["KEY", "VALUE", ...]`` as on the command line.
        training: whether the tasks will be trained. Then there must be at least one task.
        world_size: the number of processes that share a task's batch.
        datasets: whether the datasets that are named have to be registered. A model can do without them.

    Returns:
        the frozen configuration. Each node of ``TASKS`` has the defaults of its kind for keys that are not given.

    Raises:
        UserError: a key, task, kind or dataset is unknown, or a value has the wrong type or is out of its range.
    """
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    named = "" if isinstance(config_file, Mapping) else config_file
    from_file = dict(config_file) if isinstance(config_file, Mapping) else _Files().read(named) if named else {}
    from_command_line = _nest(overrides)
    # A task's kind decides which keys it may have, in the file and on the command line. So kinds are found first.
    kinds = _task_kinds(_overlay(from_file, from_command_line).get("TASKS"))
    for name, kind in kinds.items():
        cfg.TASKS[name] = CN(task_defaults(name, kind))
    for settings, where in (
        (from_file, f"in {named or 'the given settings'}"),
        (from_command_line, "on the command line"),
    ):
        _merge(settings, cfg, (), where)
    refuse_unused(cfg)
    register_custom_datasets(cfg.DATASETS.CUSTOM)
    _fall_back_to_cpu(cfg)
    check_config(cfg, training=training, world_size=world_size, datasets=datasets)
    cfg.freeze()
    return cfg


def task_defaults(name: str, kind: str) -> dict[str, Any]:
    """All settings of a task of this kind with their defaults.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"TASKS.{name}.KIND: unknown kind of task '{kind}'{nearest(kind, KINDS)}")
    return KINDS[kind].settings.defaults(kind)


def find_config(path: str) -> str:
    """The file that a path of a configuration means: in the working folder, else among those that come with this code.

    A path that is in neither place stays as it is.
    """
    known = str(shipped(path)) if path else path
    return known if not os.path.isfile(path) and os.path.isfile(known) else path


class _Files:
    """Reads a configuration with the files that it names as ``_BASE_``, each once, however many name it."""

    def __init__(self) -> None:
        self._contents: dict[str, dict[str, Any]] = {}
        self._named = 0

    def read(self, path: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
        """The content of a file, merged over that of its bases. ``above`` are the files that lead to it.

        Raises:
            UserError: it cannot be read, or leads to itself or to more than ``MOST_BASES`` files.
        """
        path = find_config(path)
        name = path if is_remote(path) else os.path.abspath(path)
        if not (is_remote(path) or os.path.isfile(path)):
            if above:
                raise _unusable(above[-1], f"its {_BASE} {path} is not there")
            raise UserError(f"configuration file not found: {path}")
        if name in above:
            raise _unusable(above[-1], f"its {_BASE} leads back to {path}")
        if name not in self._contents:
            try:
                settings = read_yaml(path, "a configuration")
            except Exception as error:  # of whatever handler a user has registered for an address
                if isinstance(error, UserError) and not (above and is_remote(path)):
                    raise
                raise _unusable(*((above[-1], f"its {_BASE} {path}: {error}") if above else (path, error))) from error
            self._contents[name] = self._with_bases(settings, path, (*above, name))
        return self._contents[name]

    def _with_bases(self, settings: dict[str, Any], path: str, above: tuple[str, ...]) -> dict[str, Any]:
        bases = settings.pop(_BASE, [])
        merged: dict[str, Any] = {}
        for base in bases if isinstance(bases, list) else [bases]:
            if not isinstance(base, str):
                raise _unusable(path, f"its {_BASE} is {base!r}, not a path")
            self._named += 1
            if self._named > MOST_BASES:
                raise _unusable(path, f"with its {_BASE}, more than {MOST_BASES} files are named")
            base = base if is_remote(base) else os.path.join(os.path.dirname(path), os.path.expanduser(base))
            merged = _overlay(merged, self.read(base, above))
        return _overlay(merged, settings)


def _unusable(path: str, reason: object) -> UserError:
    return UserError(f"{path} cannot be read as a configuration: {reason}")


def _nest(overrides: Sequence[str]) -> dict[str, Any]:
    """``["A.B", "1", ...]`` as ``{"A": {"B": "1"}, ...}``."""
    for option in overrides:
        if option.startswith("--"):
            raise UserError(f"the option {option} must stand before the KEY VALUE pairs")
    if len(overrides) % 2:
        raise UserError(f"overrides are KEY VALUE pairs, but '{overrides[-1]}' has no value")
    nested: dict[str, Any] = {}
    for key, value in zip(overrides[0::2], overrides[1::2]):
        *parents, last = key.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise UserError(f"on the command line, '{key}' and a key above it are both given a value")
        node[last] = value
    return nested


def _overlay(base: Any, top: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(top, dict)):
        return top
    return {**base, **{key: _overlay(base.get(key), value) for key, value in top.items()}}


def _task_kinds(tasks: Any) -> dict[str, str]:
    """The KIND of each task's node."""
    if not isinstance(tasks, dict):
        return {}
    kinds = {}
    for name, node in tasks.items():
        if name == "NAMES" or not isinstance(node, dict):
            continue
        if "KIND" not in node:
            # Either a new task without a kind, or a misspelled name of an existing task.
            with_kind = [other for other, value in tasks.items() if isinstance(value, dict) and "KIND" in value]
            raise UserError(f"the task 'TASKS.{name}' has no KIND{nearest(name, with_kind)}")
        kinds[name] = str(node["KIND"])
    return kinds


def _merge(settings: dict[str, Any], node: CN, path: tuple[str, ...], where: str) -> None:
    for key, value in settings.items():
        full_key = ".".join((*path, str(key)))
        if key not in node:
            if node.is_new_allowed() and path != ("TASKS",):
                node[key] = _new(value, full_key, where)
                continue
            raise UserError(f"unknown configuration key '{full_key}' {where}{_nearest_key(str(key), node, path)}")
        if isinstance(node[key], CN) != isinstance(value, dict):
            expected = "a section of keys" if isinstance(node[key], CN) else "a value, not a section"
            raise UserError(f"configuration key '{full_key}' {where} expects {expected}")
        if isinstance(value, dict):
            _merge(value, node[key], (*path, str(key)), where)
        else:
            node[key] = _coerce(value, node[key], full_key, where)


def _new(value: Any, full_key: str, where: str) -> Any:
    """A value of a section that takes any keys, with the sections below it."""
    if isinstance(value, dict):
        node = CN(new_allowed=True)
        for key, part in value.items():
            node[key] = _new(part, f"{full_key}.{key}", where)
        return node
    if not isinstance(value, str | int | float | bool | list | tuple | None):
        raise UserError(f"configuration key '{full_key}' {where} cannot be a {type(value).__name__}: {value!r:.200}")
    return value


def _nearest_key(key: str, node: CN, path: tuple[str, ...]) -> str:
    """A hint with the closest key of the same section. Without a close one, a hint with the same name in another
    section."""
    hint = nearest(key, [str(name) for name in node])
    if "did you mean" in hint:
        prefix = "".join(f"{part}." for part in path)
        return hint.replace("did you mean '", f"did you mean '{prefix}")
    defaults = get_cfg()
    add_uniperceiver_v2_config(defaults)
    elsewhere = [full_key for full_key in _leaves(defaults) if full_key.rsplit(".", 1)[-1] == key]
    return f"; did you mean '{elsewhere[0]}'?" if elsewhere else hint


def _leaves(node: CN, path: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield path + key
        if isinstance(value, CN):
            yield from _leaves(value, f"{path}{key}.")


def _coerce(value: Any, default: Any, full_key: str, where: str) -> Any:
    """``value`` as the type of ``default``. Follows yacs, with two more rules: an integer is accepted where a float
    is expected, and a text that looks like a number stays a text where a text is expected."""
    if isinstance(value, str) and not isinstance(default, str):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = literal_eval(value)
    _require_plain(value, full_key, where)
    if isinstance(default, list | tuple) and isinstance(value, list | tuple):
        if default and all(_is_number(item) for item in default):
            for item in value:
                if not _is_number(item):
                    raise UserError(f"configuration key '{full_key}' {where} is a list of numbers; one is {item!r:.80}")
        return type(default)(value)
    if isinstance(value, type(default)) and not (isinstance(value, bool) and not isinstance(default, bool)):
        return value
    if default is None:
        return value
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    raise UserError(
        f"configuration key '{full_key}' {where} expects {type(default).__name__}, such as {default!r}, "
        f"not {value!r:.200}"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_plain(value: Any, full_key: str, where: str) -> None:
    """
    Raises:
        UserError: a number is NaN, infinite or larger than 64 bits hold, or a text cannot be written to a file.
    """
    for item in value if isinstance(value, list | tuple) else [value]:
        wrong = (isinstance(item, float) and not math.isfinite(item)) or (
            isinstance(item, int) and not -(2**63) <= item < 2**63
        )
        if wrong:
            raise UserError(f"configuration key '{full_key}' {where} needs a finite number, of 64 bits at most")
        if isinstance(item, str) and ("\0" in item or item != item.encode("utf-8", "ignore").decode()):
            raise UserError(f"configuration key '{full_key}' {where} has a character that no file can hold: {item!r}")


def _fall_back_to_cpu(cfg: CN) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.info("no CUDA device is available: MODEL.DEVICE is set to cpu")
        cfg.MODEL.DEVICE = "cpu"
