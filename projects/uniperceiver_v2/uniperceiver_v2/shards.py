"""Tensors that are divided among ranks: PyTorch's DTensors, as ``fully_shard`` makes them of parameters."""

from __future__ import annotations

from torch import Tensor


def is_divided(tensor: Tensor) -> bool:
    """Whether a tensor is a DTensor, without an import: its module differs between versions of PyTorch."""
    return hasattr(type(tensor), "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, which shares its memory."""
    return tensor.to_local() if is_divided(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor. For a divided one this is a collective call."""
    return tensor.full_tensor() if is_divided(tensor) else tensor


def divided_like(value: Tensor, own: Tensor) -> Tensor:
    """A whole tensor as another one is: divided among the same ranks, or not at all. A collective call if divided.

    All ranks get the first one's values.
    """
    if not is_divided(own) or is_divided(value):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.detach().to(own.device, own.dtype), own.device_mesh, own.placements)
