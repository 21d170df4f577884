"""Copies between host and device that wait as rarely as possible.

A GPU computes behind the program: operations are queued. A copy from ordinary memory, or a value that Python needs,
stops the program until the queue is empty, and then the GPU is idle until the next operation is queued.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor


def send(values: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without a wait. A tensor that is there already is returned as it is."""
    if values.device.type == "cpu" and device.type == "cuda":
        values = values.pin_memory()  # PyTorch keeps the pinned memory until the copy is done
    return values.to(device, non_blocking=values.device.type == "cpu")


def send_ahead(values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on a device, from any thread, while the device computes something else."""
    if device.type != "cuda":
        return [send(x, device) for x in values]
    usual, copying = torch.cuda.default_stream(device), _copying_stream(device)
    with torch.cuda.device(device), torch.cuda.stream(copying):  # a thread begins with the first device
        sent = [send(x, device) for x in values]
    for x in sent:
        x.record_stream(usual)  # its memory is used again only when that stream is done with it
    usual.wait_stream(copying)
    return sent


@cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def fetch(*tensors: Tensor) -> list[np.ndarray]:
    """Tensors of one device as arrays of the host, with one wait for all of them."""
    tensors = tuple(x.detach() for x in tensors)
    if tensors[0].device.type == "cpu":
        return [x.numpy() for x in tensors]
    together = torch.cat([x.contiguous().flatten().view(torch.uint8) for x in tensors]).cpu().numpy()
    parts = np.split(together, np.cumsum([x.nbytes for x in tensors[:-1]]))
    # copies, as a part need not begin where its type may begin
    return [part.copy().view(_numpy_type(x.dtype)).reshape(x.shape) for part, x in zip(parts, tensors, strict=True)]


def _numpy_type(dtype: torch.dtype) -> np.dtype:
    return torch.empty(0, dtype=dtype).numpy().dtype
