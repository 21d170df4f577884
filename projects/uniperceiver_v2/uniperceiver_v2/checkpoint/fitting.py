"""Whether weights fit a model, and in what they differ from its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..shards import is_divided

# A message lists this number of differing keys, and counts the others.
LISTED_DIFFERENCES = 12
_PREFIX = "module."  # of keys that a run of several processes wrote
# Weights of these types may be given for one another: they differ in precision only.
_PRECISIONS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def strip_prefix(state: dict[str, Tensor]) -> None:
    """Rename keys as a run of several processes wrote them, in place.

    Raises:
        UserError: a weight is there twice, with the prefix and without.
    """
    for key in state:
        if key.startswith(_PREFIX) and key.removeprefix(_PREFIX) in state:
            raise UserError(f"the checkpoint has {key} beside {key.removeprefix(_PREFIX)}: two values of one weight")
    torch.nn.modules.utils.consume_prefix_in_state_dict_if_present(state, _PREFIX)


def as_loaded(given: Tensor, own: Tensor | None) -> Tensor:
    """A weight as the model will have it: in its type, in which what is finite in a wider one may be infinite."""
    narrower = own is not None and own.is_floating_point() and given.is_floating_point()
    return given.to(own.dtype) if narrower and torch.finfo(own.dtype).max < torch.finfo(given.dtype).max else given


def require_fit(state: dict[str, Tensor], model: nn.Module) -> None:
    """Check that weights fit a model key by key.

    Raises:
        UserError: they do not. The message lists the keys that differ.
    """
    differences = state_differences(state, model.state_dict())
    if differences:
        listed = "\n  ".join(differences[:LISTED_DIFFERENCES])
        more = len(differences) - LISTED_DIFFERENCES
        raise UserError(
            f"the weights are of another architecture; {len(differences)} keys differ:\n  {listed}"
            + (f"\n  and {more} more" if more > 0 else "")
        )


def state_differences(state: dict[str, Tensor], own: dict[str, Tensor]) -> list[str]:
    """A line for each key that is missing, unknown, or has another shape or type. ``own`` is the model's state."""
    lines = []
    for key in sorted(state.keys() | own.keys()):
        if key not in own:
            lines.append(f"{key}: {list(state[key].shape)} in the checkpoint, not in the model")
        elif key not in state:
            lines.append(f"{key}: {list(own[key].shape)} in the model, not in the checkpoint")
        elif found := difference(state[key], own[key]):
            lines.append(f"{key}: {found}")
    return lines


def difference(given: Tensor, own: Tensor) -> str:
    """In which property a weight differs from the model's, so that it cannot be copied without loss. "" if in none."""
    kinds = given.dtype, own.dtype
    on_host = given.device.type == "cpu" or is_divided(given)
    dense = given.layout == torch.strided and on_host and not given.is_quantized
    if not dense:
        return "not a tensor of plain numbers in the checkpoint"
    if given.shape != own.shape:
        return f"{list(given.shape)} in the checkpoint, {list(own.shape)} in the model"
    if kinds[0] != kinds[1] and not set(kinds) <= set(_PRECISIONS):
        return f"{kinds[0]} in the checkpoint, {kinds[1]} in the model"
    return ""
