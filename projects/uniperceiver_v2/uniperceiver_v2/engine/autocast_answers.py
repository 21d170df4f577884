"""Evaluation in half precision: TEST.AMP."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def answers_under_autocast(model: nn.Module, precision: torch.dtype | None) -> Iterator[None]:
    """A context in which the model's own calls, and nothing around them, compute under autocast.

    Evaluators compute their metrics from the answers, in the precision of their own.

    Args:
        precision: of operations where it is safe; None for no autocast.
    """
    if precision is None:
        yield
        return
    device = next(model.parameters()).device.type
    plain = vars(model).get("forward")
    model.forward = torch.autocast(device, dtype=precision)(model.forward)
    try:
        yield
    finally:
        if plain is None:
            del model.forward  # the method of the class is there again
        else:
            model.forward = plain
