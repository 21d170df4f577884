"""The same gradient on all ranks of a group: parameters start equal, and gradients are averaged while the backward pass
goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from .. import ranks
from ..shards import is_divided
from ..transfer import send

BUCKET_BYTES = 32 * 2**20  # gradients in one message: large enough for bandwidth, small enough to overlap
_LEAST_BUCKETS = 16  # of a small model, so that something is left to overlap


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
    parameters, and send zeros for them. This class searches nothing. The parameters are in buckets, in the reverse
    order of the model, as a backward pass reaches them. A bucket travels as a whole, in one of two ways:

    - In the backward pass, once it has the gradients that it had when the same tasks were trained before. This needs
      ranks that reached the same of its parameters then.
    - Else after the backward pass, if any rank reached a parameter of it.

    A message after the backward pass tells all ranks what was reached. A bucket that travelled without a gradient that
    some rank has found travels again. So earlier iterations decide when a bucket is sent, never what is in it, and a
    resumed run has the bytes of an uninterrupted one.

    A parameter without a gradient on all ranks keeps none. Any number of backward passes may precede an average.

    Args:
        parameters: the parameters of the model, the same on all ranks and in the same order. Those that are divided
            among ranks are left out: their gradients are averaged already.
        in_bfloat16: whether gradients travel and are added as bfloat16.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, in_bfloat16: bool = False):
        parameters = list(parameters)
        self._device = parameters[0].device
        self._parameters = [p for p in parameters if not is_divided(p)]
        most_bytes = min(BUCKET_BYTES, sum(p.nbytes for p in self._parameters) // _LEAST_BUCKETS)
        self._buckets = [_Bucket(part, in_bfloat16) for part in buckets(self._parameters[::-1], most_bytes)]
        # By tasks: the buckets that can travel in the backward pass, with the parameters that it reaches.
        self._plans: dict[Hashable, list[tuple[_Bucket, Set[nn.Parameter]]]] = {}
        self._tasks: Hashable = None
        self._due: deque[_Bucket] = deque()  # in the order in which all ranks send them
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        if ranks.group_size() > 1:
            ranks.gradient_group()  # a collective call: now, while all ranks are here
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def expect_last_backward(self, tasks: Hashable) -> None:
        """Say that one more backward pass comes before :meth:`average`, and the tasks of all that came since the last
        average."""
        self._tasks = tasks
        self._due.clear()
        for bucket, reached in self._plans.get(tasks, ()):
            bucket.expect(reached)
            self._due.append(bucket)

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        if self._due:
            self._bucket_of[parameter].missing.discard(parameter)
            while self._due and not self._due[0].missing:
                self._due.popleft().send()

    @torch.no_grad()
    def average(self, numbers: Sequence[Tensor | float]) -> list[float]:
        """Average the gradients in place, and ``numbers`` beside them.

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
        while self._due:
            self._due.popleft().send()
        has_gradient = [float(p.grad is not None) for p in self._parameters]
        sent = send(torch.tensor([*others, *has_gradient], dtype=torch.float64), self._device)
        together = torch.cat((known.to(self._device), sent))
        dist.all_reduce(together, group=ranks.process_group())
        values = (together / ranks.group_size()).tolist()
        self._finish(dict(zip(self._parameters, values[len(numbers) :], strict=True)))
        return _in_order(numbers, values[: len(on_device)], values[len(on_device) : len(numbers)])

    def _finish(self, shares: dict[nn.Parameter, float]) -> None:
        """Average what is left, given the share of the ranks that have reached each parameter."""
        plan = self._plans[self._tasks] = []
        reached_of = {bucket: {p for p in bucket.parameters if shares[p] > 0} for bucket in self._buckets}
        for bucket, reached in reached_of.items():
            if not reached <= bucket.expected:  # equal on all ranks, so that all send again
                bucket.send()
            if reached and all(shares[p] == 1 for p in reached):
                plan.append((bucket, reached))
        for bucket, reached in reached_of.items():
            bucket.receive(reached)
        self._tasks = None


class _Bucket:
    """Parameters of one dtype whose gradients travel in one message.

    Attributes:
        expected: the parameters whose gradients the message has to have when it is sent in the backward pass.
        missing: those of them whose gradient has yet to come.
    """

    def __init__(self, parameters: list[nn.Parameter], in_bfloat16: bool):
        self.parameters = parameters
        self.expected: Set[nn.Parameter] = frozenset()
        self.missing: set[nn.Parameter] = set()
        self._in_bfloat16 = in_bfloat16
        self._message: Tensor | None = None
        self._work: dist.Work | None = None

    def expect(self, reached: Set[nn.Parameter]) -> None:
        """Say which parameters the next backward pass is likely to reach."""
        self.expected, self.missing = reached, set(reached)

    @torch.no_grad()
    def send(self) -> None:
        """Send the gradients that are there, and zeros for the others."""
        parts = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in self.parameters]
        message = torch.cat(parts)
        self._message = message.bfloat16() if self._in_bfloat16 else message
        self._work = dist.all_reduce(self._message, group=ranks.gradient_group(), async_op=True)

    def receive(self, reached: Set[nn.Parameter]) -> None:
        """Wait for the message, if there is one, and give the means to the parameters that a rank has reached."""
        if self._message is None or self._work is None:
            return
        self._work.wait()
        means = self._message.to(self.parameters[0].dtype).div_(ranks.group_size())
        parts = means.split([p.numel() for p in self.parameters])
        there = [(p, part.view_as(p)) for p, part in zip(self.parameters, parts, strict=True) if p in reached]
        for p, _ in there:
            if p.grad is None:
                p.grad = torch.empty_like(p)
        if there:
            torch._foreach_copy_([p.grad for p, _ in there], [part for _, part in there])
        self.expected, self._message, self._work = frozenset(), None, None


def _in_order(numbers: Sequence[Tensor | float], of_tensors: list[float], of_others: list[float]) -> list[float]:
    tensors, others = iter(of_tensors), iter(of_others)
    return [next(tensors if isinstance(x, Tensor) else others) for x in numbers]


def buckets(gradients: Sequence[Tensor], most_bytes: int = BUCKET_BYTES) -> Iterator[list[Tensor]]:
    """Consecutive tensors of one dtype, up to so many bytes, or a single tensor that is larger."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > most_bytes or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket
