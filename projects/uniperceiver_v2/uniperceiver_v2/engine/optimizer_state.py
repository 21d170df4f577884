"""What an optimizer has loaded from a checkpoint: whether it fits, which PyTorch does not notice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..shards import divided_like

_LARGEST_SETTING = 1e9  # rates, betas, the number of steps


def take_over_state(optimizer: torch.optim.Optimizer, settings: Sequence[Mapping[str, Any]]) -> None:
    """Checks the state that an optimizer has loaded, and copies its moments, which may lie in the file.

    Args:
        settings: of its groups of parameters, before loading.

    Raises:
        UserError: the state does not fit the parameters, or has settings that no optimizer has.
    """
    for group, before in zip(optimizer.param_groups, settings):
        _require_alike(group, before)
    for parameter, state in optimizer.state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            moment = state.get(name)
            if not isinstance(moment, Tensor) or moment.shape != parameter.shape:
                raise UserError(f"the optimizer's {name!r} of a parameter {list(parameter.shape)} does not fit it")
            state[name] = divided_like(moment, parameter).clone()


def _require_alike(group: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: a group of parameters lacks a setting, or has one that no optimizer has.
    """
    if lacking := before.keys() - group.keys():
        raise UserError(f"the optimizer's state lacks {', '.join(sorted(lacking))}")
    for key in before.keys() - {"params"}:
        values, usual = (x[key] if isinstance(x[key], list | tuple) else (x[key],) for x in (group, before))
        if len(values) != len(usual):
            raise UserError(f"the optimizer's {key!r} is {group[key]!r:.80}, not {len(usual)} values")
        if any(isinstance(value, int | float) and not 0 <= value <= _LARGEST_SETTING for value in values):
            raise UserError(f"the optimizer's {key!r} is {group[key]!r}, not in 0..{_LARGEST_SETTING:g}")
