"""Passes through a network as CUDA graphs: one launch for all kernels of a forward pass, and one for its gradients.

A CUDA graph repeats recorded kernels at recorded addresses. So what is recorded must not depend on values, only on
shapes, and its inputs, outputs and gradients stay where they were.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

from ...errors import UserError

WARM_UP = 3  # passes before a recording, in which libraries choose their kernels and kernels are compiled
SEEN = 3  # a batch is recorded when its shape comes for the third time
MOST = 8  # shapes that are recorded: each keeps the memory of its activations


class Recording:
    """A pass and its gradients, recorded for batches of one shape.

    Args:
        network: see :class:`CapturedPasses`.
        images: [B,3,H,W] on a GPU, whose values do not matter.
    Attributes:
        images: the place of the input.
        outputs: the places of the outputs.
        output_gradients: the places of the gradients of these outputs; None where an output has none.
        gradients: the places of the gradients of the parameters; None where the outputs do not depend on a parameter.
        forward, backward: the two graphs.
    """

    def __init__(self, network: nn.Module, images: Tensor):
        self.images = images.clone()
        # Parameters remember the stream of their last use in a graph of autograd that still exists, and a recording
        # may not touch another stream. So it has leaves of its own, in the memory of the parameters.
        leaves = {name: p.detach().requires_grad_() for name, p in network.named_parameters() if p.requires_grad}
        # Weights in half precision would be kept for other passes, at addresses of this recording.
        autocast = torch.autocast(
            "cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False
        )
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads copy batches meanwhile, which the recording has to allow.
        recorded = {"pool": torch.cuda.graph_pool_handle(), "capture_error_mode": "thread_local"}
        with unchanged_buffers(network), torch.random.fork_rng([images.device]):
            torch.cuda.synchronize(images.device)
            with torch.cuda.stream(torch.cuda.Stream(images.device)):
                for _ in range(WARM_UP):
                    with autocast:
                        outputs = functional_call(network, leaves, self.images)
                    gradients_of(outputs, leaves, [torch.zeros_like(x) for x in outputs])
                del outputs
            torch.cuda.synchronize(images.device)
            with torch.cuda.graph(self.forward, **recorded), autocast:
                outputs = functional_call(network, leaves, self.images)
            self.output_gradients = [torch.zeros_like(x) if x.requires_grad else None for x in outputs]
            with torch.cuda.graph(self.backward, **recorded):
                self.gradients = gradients_of(outputs, leaves, self.output_gradients)
        self.outputs = tuple(x.detach() for x in outputs)


@contextmanager
def unchanged_buffers(network: nn.Module) -> Iterator[None]:
    """Puts back what passes in this context write into buffers, such as running statistics."""
    before = [x.clone() for x in network.buffers()]
    try:
        yield
    finally:
        for x, old in zip(network.buffers(), before, strict=True):
            x.copy_(old)


def gradients_of(
    outputs: Sequence[Tensor], leaves: Mapping[str, Tensor], output_gradients: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of the leaves from those of the outputs that have any; None for a leaf on which no output depends."""
    pairs = [(x, g) for x, g in zip(outputs, output_gradients, strict=True) if x.requires_grad]
    return torch.autograd.grad([x for x, _ in pairs], list(leaves.values()), [g for _, g in pairs], allow_unused=True)


class CapturedPasses:
    """Runs a network on batches of images, by CUDA graphs for shapes that come often.

    The results are those of the plain pass, with one difference: where a loss uses one of the outputs only, parameters
    that only the others depend on get a gradient of zero instead of none.

    A copy of the object has no recordings, as they belong to the network's tensors.

    Args:
        record: makes a recording.
    """

    def __init__(self, record: Callable[[nn.Module, Tensor], Any] = Recording):
        self._record = record
        self._seen: Counter = Counter()
        self._recordings: dict[tuple, Any] = {}
        self._open: dict[tuple, weakref.ref] = {}

    def __reduce__(self) -> tuple:
        return CapturedPasses, (self._record,)

    def __call__(self, network: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        """``network(images)``.

        Args:
            network: makes a tuple of tensors of images. What it launches may depend on the shape of the images alone.
                Each call has to have the same parameters.
            images: [B,3,H,W], on a GPU.

        Raises:
            UserError: the pass cannot be recorded.
        """
        kind = images.device.type
        key = (images.shape, images.dtype, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        self._seen[key] += 1
        if key not in self._recordings:
            if self._seen[key] < SEEN or len(self._recordings) == MOST:
                return network(images)
            try:
                self._recordings[key] = self._record(network, images)
            except RuntimeError as error:  # no memory, or an operation that waits for the device
                reason = str(error).strip().splitlines()[0]
                raise UserError(
                    f"MODEL.UNIPERCEIVER_V2.CUDA_GRAPHS: batches of {tuple(images.shape)} cannot be recorded: {reason}"
                ) from error
        if key in self._open and (before := self._open[key]()) is not None and before.is_open:
            return network(images)  # the gradients of the pass before still need what the graph would write over
        recording = self._recordings[key]
        recording.images.copy_(images)
        state = _State(recording)
        self._open[key] = weakref.ref(state)
        return _Replay.apply(state, *(p for p in network.parameters() if p.requires_grad))


class _State:
    """Whether a pass waits for its gradients. It lives as long as they can be asked for."""

    def __init__(self, recording: Recording):
        self.recording, self.is_open = recording, True


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: _State, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.state, ctx.like = state, parameters
        recording = state.recording
        recording.forward.replay()
        outputs = tuple(x.detach() for x in recording.outputs)
        ctx.mark_non_differentiable(*(x for x, g in zip(outputs, recording.output_gradients, strict=True) if g is None))
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *output_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        recording = ctx.state.recording
        for place, gradient in zip(recording.output_gradients, output_gradients, strict=True):
            if place is not None:
                place.zero_() if gradient is None else place.copy_(gradient)
        recording.backward.replay()
        ctx.state.is_open = False
        # The next replay writes over the recording's own.
        found = [(p, g) for p, g in zip(ctx.like, recording.gradients, strict=True) if g is not None]
        copies = [torch.empty_like(p) for p, _ in found]
        torch._foreach_copy_(copies, [g for _, g in found])
        remaining = iter(copies)
        return None, *(None if g is None else next(remaining) for g in recording.gradients)
