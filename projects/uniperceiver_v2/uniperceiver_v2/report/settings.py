"""The settings of runs: what differs from the defaults, and what differs between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from detectron2.config import get_cfg

from ..config import add_uniperceiver_v2_config, flat_settings, task_defaults
from ..errors import UserError
from .blocks import Block, Code, Note, Table
from .run import Missing, Run

_ABSENT = object()


def settings_blocks(run: Run) -> list[Block]:
    """What differs from the defaults, then everything.

    Raises:
        Missing: the run has no config.yaml that can be read.
    """
    if not run.settings:
        raise Missing("the run has no config.yaml that can be read")
    chosen, defaults = flat_settings(run.settings), default_settings(run.settings)
    rows = [
        [key, _shown(value), _default(key, defaults)]
        for key, value in chosen.items()
        if key not in defaults or _plain(value) != _plain(defaults[key])
    ]
    if not rows:
        return [Note("All settings have their defaults.")]
    title = f"{len(rows)} settings that differ from their defaults"
    return [
        Table(["setting", "this run", "default"], rows, texts=3, folded=title),
        Code(f"All {len(chosen)} settings", yaml.safe_dump(run.settings, sort_keys=True, allow_unicode=True)),
    ]


def differing_settings(runs: Sequence[Run]) -> Table | Note:
    """The settings that are not the same in all runs."""
    flat = [flat_settings(run.settings) for run in runs]
    keys = [key for key in sorted(set().union(*flat)) if key != "OUTPUT_DIR"]
    rows = []
    for key in keys:
        values = [settings.get(key, _ABSENT) for settings in flat]
        if any(_plain(value) != _plain(values[0]) for value in values[1:]):
            rows.append([key, *("" if value is _ABSENT else _shown(value) for value in values)])
    if not rows:
        return Note("The runs have the same settings.")
    return Table(["setting", *(run.name for run in runs)], rows, texts=len(runs) + 1)


def default_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults by full keys, of Detectron2, of this project, and of the kinds of the tasks that a run has."""
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    defaults = flat_settings(cfg)
    for name, node in (settings.get("TASKS") or {}).items():
        if isinstance(node, dict) and "KIND" in node:
            try:
                own = task_defaults(name, node["KIND"])
            except UserError:  # a kind that another program registered
                continue
            # What a task cannot do without is no difference from a default.
            needed = {key: node.get(key) for key in ("KIND", "DATASETS")}
            defaults |= flat_settings({**own, **needed}, f"TASKS.{name}.")
    return defaults


def _default(key: str, defaults: Mapping[str, Any]) -> str:
    if key in defaults:
        return _shown(defaults[key])
    # Below an empty section every key is free, as in that of a backbone's configuration.
    parts = key.split(".")
    is_free = any(defaults.get(".".join(parts[:length])) == {} for length in range(1, len(parts)))
    return "" if is_free else "no such setting today"


def _plain(value: Any) -> Any:
    """Lists and tuples are the same in YAML, and so are 1 and 1.0 to whoever reads them."""
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return "(empty)" if value == "" or value == {} else str(value)
