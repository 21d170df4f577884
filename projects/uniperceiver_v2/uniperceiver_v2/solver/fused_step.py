"""The update of all parameters by one launch of a Triton kernel, for GPUs.

The multi-tensor operations of a step read and write memory 18 times for each parameter, 20 with weight decay. The
kernel does so 7 times.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..transfer import send

KERNEL = f"{__package__}.fused_kernel"
CHUNK = 2**15  # numbers of a parameter that a program updates: 528 of 132 multiprocessors have 17 million at once
BLOCK = 1024  # of them in one go
WARPS = 8


class GroupStep(NamedTuple):
    """The update of one group of parameters.

    Attributes:
        parameters, m, n: tensors at the same index belong together.
        gradients: for each draw the gradients of the parameters, None for a gradient of zero.
        beta1, beta2, decay, eps, step: m ← beta1·m + Σ_d a_d·g_d, n ← beta2·n + Σ_d b_d·g_d²,
            θ ← decay·θ - step·m / (√n + eps).
        factors: (a_d, b_d) of each draw.
    """

    parameters: list[Tensor]
    m: list[Tensor]
    n: list[Tensor]
    gradients: list[list[Tensor | None]]
    beta1: float
    beta2: float
    decay: float
    eps: float
    step: float
    factors: list[tuple[float, float]]


@functools.cache
def _kernels() -> ModuleType | None:
    """The module of the kernel, or None without Triton. It is imported on first use, as that takes a second."""
    try:
        return importlib.import_module(KERNEL)
    except ImportError:
        return None


def fused_step_applies(groups: Sequence[GroupStep]) -> bool:
    """Whether :func:`fused_step` can compute these updates: on one GPU, with Triton, in float32, and with all tensors
    of a parameter in the same order in memory."""
    return bool(groups) and groups[0].parameters[0].is_cuda and _kernels() is not None and in_one_order(groups)


def in_one_order(groups: Sequence[GroupStep]) -> bool:
    """Whether a parameter, its moments and its gradients are float32, dense, on one device, and in the same order."""
    device = groups[0].parameters[0].device
    for group in groups:
        for p, *others in zip(group.parameters, group.m, group.n, *group.gradients, strict=True):
            dense = p.numel() == 0 or sum((n - 1) * s for n, s in zip(p.shape, p.stride())) == p.numel() - 1
            alike = (x is None or (x.stride(), x.dtype, x.device) == (p.stride(), p.dtype, p.device) for x in others)
            if p.dtype != torch.float32 or p.device != device or not dense or not all(alike):
                return False
    return True


def fused_step(groups: Sequence[GroupStep]) -> None:
    """Updates parameters and moments in place.

    Args:
        groups: all have parameters and the same number of draws, and pass :func:`in_one_order`.
    """
    device = groups[0].parameters[0].device
    chunks = np.concatenate([_chunks(index, group) for index, group in enumerate(groups)])
    if not len(chunks):
        return
    settings = [[*group[4:9], *(factor for pair in group.factors for factor in pair)] for group in groups]
    where, numbers = (
        send(table, device) for table in (torch.from_numpy(chunks), torch.tensor(settings, dtype=torch.float32))
    )
    with torch.cuda.device_of(groups[0].parameters[0]):
        _kernels().step_kernel[(len(chunks),)](
            where,
            numbers,
            DRAWS=len(groups[0].factors),
            ALIGNED=not (chunks[:, 2:] % 16).any(),
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    # PyTorch does not see the kernel's writes, and caches of values that depend on weights look at the version.
    for group in groups:
        torch.autograd.graph.increment_version([*group.parameters, *group.m, *group.n])


def _chunks(index: int, group: GroupStep) -> np.ndarray:
    """The rows of the kernel's table for a group: [chunks,5+draws] int64."""
    tensors = (group.parameters, group.m, group.n, *group.gradients)
    addresses = np.array([[0 if x is None else x.data_ptr() for x in column] for column in tensors], np.int64).T
    sizes = np.array([p.numel() for p in group.parameters], np.int64)
    parts = -(-sizes // CHUNK)
    which = np.repeat(np.arange(len(sizes)), parts)
    starts = (np.arange(len(which)) - np.repeat(parts.cumsum() - parts, parts)) * CHUNK
    places = addresses[which]
    places += np.where(places == 0, 0, 4 * starts[:, None])
    counts = np.minimum(CHUNK, sizes[which] - starts)
    return np.column_stack((counts, np.full(len(which), index), places))
