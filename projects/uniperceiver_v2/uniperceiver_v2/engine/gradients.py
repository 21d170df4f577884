"""The same gradient on all ranks of a group: parameters start equal, and gradients are averaged after the backward
pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from .. import ranks
from ..transfer import send

BUCKET_BYTES = 32 * 2**20  # gradients in one message: large enough for bandwidth, small enough to overlap


@torch.no_grad()
def broadcast_state(model: nn.Module) -> None:
    """Copy the first rank's parameters and buffers to all ranks."""
    if comm.get_world_size() == 1:
        return
    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.detach(), src=0)


class GradientAverager:
    """Averages the gradients of the ranks of a task group; without task groups, of all ranks.

    Each task uses a different part of the model. DistributedDataParallel would search the graph of each step for unused
    parameters, and send zeros for them. This class searches nothing: after the backward pass a parameter has a gradient
    or has none. A gradient is sent if at least one rank has it. A parameter without a gradient on all ranks keeps none.
    Any number of backward passes may precede an average.

    The price is that communication begins only when the backward pass is over (docs/reports/2026-11-24-training.md has
    the measurement).

    Args:
        parameters: the parameters of the model, the same on all ranks and in the same order.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        self._parameters = list(parameters)

    @torch.no_grad()
    def average(self, numbers: Sequence[Tensor | float]) -> list[float]:
        """Average the gradients in place, and average ``numbers`` in the same message.

        Args:
            numbers: scalars, the same number of them on every rank of the group.

        Returns:
            the mean of each number over the group's ranks, in float64. Reading them waits for the device.
        """
        on_device = [x.detach() for x in numbers if isinstance(x, Tensor)]
        others = [x for x in numbers if not isinstance(x, Tensor)]
        known = torch.stack(on_device).double() if on_device else torch.empty(0, dtype=torch.float64)
        if ranks.group_size() == 1:
            return _in_order(numbers, known.tolist(), others)
        device = self._parameters[0].device
        reached = [float(p.grad is not None) for p in self._parameters]
        sent = send(torch.tensor([*others, *reached], dtype=torch.float64), device)
        together = torch.cat((known.to(device), sent))
        dist.all_reduce(together, group=ranks.process_group())
        values = (together / ranks.group_size()).tolist()
        gradients = []
        for parameter, share in zip(self._parameters, values[len(numbers) :], strict=True):
            if share > 0:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        _average(gradients)
        return _in_order(numbers, values[: len(on_device)], values[len(on_device) : len(numbers)])


def _in_order(numbers: Sequence[Tensor | float], of_tensors: list[float], of_others: list[float]) -> list[float]:
    tensors, others = iter(of_tensors), iter(of_others)
    return [next(tensors if isinstance(x, Tensor) else others) for x in numbers]


def _average(gradients: list[Tensor]) -> None:
    sent = []
    for bucket in buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        sent.append((bucket, flat, dist.all_reduce(flat, group=ranks.process_group(), async_op=True)))
    for bucket, flat, work in sent:
        work.wait()
        flat /= ranks.group_size()
        parts = flat.split([gradient.numel() for gradient in bucket])
        torch._foreach_copy_(bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket)])


def buckets(gradients: list[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype, up to BUCKET_BYTES, or a single tensor that is larger."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
