"""What a loaded model has learned, in a sentence for people."""

from __future__ import annotations

from ..errors import UserError
from ..kinds import KINDS, configured_task
from .api import Predictor

NAMES_SHOWN = 12


def trained_kinds(predictor: Predictor) -> tuple[str, ...]:
    """The kinds of task that the model was trained on, in the order of ``KINDS``."""
    names = predictor.cfg.TASKS.NAMES
    trained = {configured_task(predictor.cfg, name).kind.name for name in names}
    return tuple(kind for kind in KINDS if kind in trained)


def learned(predictor: Predictor) -> str:
    """The trained kinds of task, with the names that objects and images have. Example:

    "The model has learned detection (zero, one, two), captioning. It knows images like those of its training only."
    """
    kinds: list[str] = []
    for kind in trained_kinds(predictor):
        names = _names(predictor, kind) if kind in ("detection", "classification") else ""
        same = bool(names) and any(f"({names})" in told for told in kinds)
        kinds.append(kind.replace("_", " ") + (f" ({'the same' if same else names})" if names else ""))
    if not kinds:
        return "The settings name no task that the model was trained on: its answers may mean nothing."
    return f"The model has learned {', '.join(kinds)}. It knows images like those of its training only."


def _names(predictor: Predictor, kind: str) -> str:
    try:
        labels = predictor.labels(kind)
    except UserError:  # its data is not here
        return ""
    more = len(labels) - NAMES_SHOWN
    return ", ".join(labels[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
