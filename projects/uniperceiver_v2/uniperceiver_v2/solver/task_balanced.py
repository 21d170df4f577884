"""Task-Balanced Gradient Normalization (Uni-Perceiver v2): AdamW for one task per step.

Each step has the gradient of one task k, which is drawn with probability s_k. Let g be this gradient over all
parameters, scaled to the norm ω_k. Then the step is

    m ← β1·m + (1-β1)/s_k · g        n ← β2·n + (1-β2)/s_k · g²        θ ← θ - α · m̂ / (√n̂ + ε)

With several draws in a step, as task groups make them, the sums are means over the draws:

    m ← β1·m + (1-β1)/G · Σ_d g_d/s_d        n ← β2·n + (1-β2)/G · Σ_d g_d²/s_d

The betas, the bias correction and the decoupled weight decay are those of torch.optim.AdamW. The factor 1/s_k makes the
expectation of m over the draws follow Σ_k g_k, so that a rarely drawn task counts as much as a frequent one.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..shards import is_divided, local

_BLOCK_ELEMENTS = 2**18  # parameters updated at once on a CPU: 5 MiB with moments, gradient and denominator


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """Euclidean norm of the whole gradient, the root of :func:`gradient_square`. Waits for the device."""
    return math.sqrt(gradient_square(parameters).item())


@torch.no_grad()
def gradient_square(parameters: Iterable[Tensor]) -> Tensor:
    """The sum of squares of the whole gradient, a scalar in float64; parameters without a gradient count as zero.

    For gradients that are DTensors (``torch.distributed.fsdp.fully_shard``) the sum covers the shards of all ranks. It
    is then a collective call, which every rank has to make, and the result is the same on each. Other gradients are
    taken as whole and equal on all ranks, as averaged gradients are.
    """
    by_sharding: dict[tuple[Any, ...], list[Tensor]] = {}
    device = torch.device("cpu")
    for p in parameters:
        device = p.device
        # Shardings without a gradient on this rank are kept: all ranks must make the same collective calls.
        gradients = by_sharding.setdefault(_sharding(p), [])
        if p.grad is not None:
            gradients.append(_local_gradient(p))
    squares = [_sum_of_squares(gradients, sharding, device) for sharding, gradients in by_sharding.items()]
    return functools.reduce(torch.add, squares, torch.zeros((), dtype=torch.float64, device=device))


def _sharding(parameter: Tensor) -> tuple[Any, ...]:
    """The (mesh, dimension) pairs over which a parameter is split; empty for a whole parameter."""
    if not is_divided(parameter):
        return ()
    split = (i for i, placement in enumerate(parameter.placements) if not placement.is_replicate())
    return tuple((parameter.device_mesh, dimension) for dimension in split)


def _local_gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    if is_divided(gradient) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)  # for example a sum that is still pending
    return local(gradient)


def _sum_of_squares(gradients: list[Tensor], sharding: tuple[Any, ...], device: torch.device) -> Tensor:
    """The sum of squares of gradients with the same sharding, over all ranks among which they are split."""
    if gradients:
        norms = torch._foreach_norm(gradients)
        # In double precision, as the sum of squares of many large norms may overflow float32.
        total = torch.stack([n.to(norms[0].device) for n in norms]).double().square().sum()
    else:
        total = torch.zeros((), dtype=torch.float64, device=device)
    for mesh, dimension in sharding:
        dist.all_reduce(total, group=mesh.get_group(dimension))
    return total


def _blocks(*lists: Sequence[Tensor | None]) -> Iterator[list[list[Tensor | None]]]:
    """Splits lists of tensors into blocks for the update. On a GPU all tensors are one block.

    The update passes over its tensors a dozen times. On a CPU a block stays in the cache for all passes. On a GPU, few
    large kernels are faster.

    Args:
        lists: lists of the same length. Tensors at the same index have the same shape. The first list contains no
            None.
    """
    if lists[0][0].device.type != "cpu":
        yield [list(tensors) for tensors in lists]
        return
    block: list[tuple[Tensor | None, ...]] = []
    elements = 0
    for tensors in zip(*lists):
        for piece in _pieces(tensors):
            if block and elements + piece[0].numel() > _BLOCK_ELEMENTS:
                yield [list(column) for column in zip(*block)]
                block, elements = [], 0
            block.append(piece)
            elements += piece[0].numel()
    yield [list(column) for column in zip(*block)]


def _pieces(tensors: tuple[Tensor | None, ...]) -> Iterable[tuple[Tensor | None, ...]]:
    """Splits large contiguous tensors of one shape into flat views of parts. Returns other tensors as they are."""
    there = [t for t in tensors if t is not None]
    if there[0].numel() <= _BLOCK_ELEMENTS or not all(t.is_contiguous() for t in there):
        return [tensors]
    count = math.ceil(there[0].numel() / _BLOCK_ELEMENTS)
    return zip(*([None] * count if t is None else t.view(-1).split(_BLOCK_ELEMENTS) for t in tensors))


class _GroupStep(NamedTuple):
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


def _update_block(
    group: _GroupStep, parameters: list[Tensor], m: list[Tensor], n: list[Tensor], *gradients: list[Tensor | None]
) -> None:
    """Updates a block of a group's tensors; ``gradients`` are of each draw."""
    torch._foreach_mul_(m, group.beta1)
    torch._foreach_mul_(n, group.beta2)
    for (of_g, of_square), of_draw in zip(group.factors, gradients, strict=True):
        reached = [i for i, gradient in enumerate(of_draw) if gradient is not None]
        if reached:
            g = [of_draw[i] for i in reached]
            torch._foreach_add_([m[i] for i in reached], g, alpha=of_g)
            torch._foreach_addcmul_([n[i] for i in reached], g, g, value=of_square)
    if group.decay != 1:
        torch._foreach_mul_(parameters, group.decay)
    denominators = torch._foreach_sqrt(n)
    torch._foreach_add_(denominators, group.eps)
    torch._foreach_addcdiv_(parameters, m, denominators, value=-group.step)


@dataclass(frozen=True)
class TaskGradient:
    """The gradient of one draw of a task, for :meth:`TaskBalancedAdamW.step`.

    Attributes:
        task: the name of the task.
        gradients: by parameter. A parameter that is not in it has gradient zero.
        norm: the norm of the whole gradient.
    """

    task: str
    gradients: Mapping[Tensor, Tensor]
    norm: float


class TaskBalancedAdamW(torch.optim.Optimizer):
    """AdamW with Task-Balanced Gradient Normalization, multi-tensor.

    A parameter without a gradient, which the drawn task does not use, is updated with gradient zero: its moments decay
    and it moves on. Only then is E[m] = Σ_k g_k.

    Parameters may be DTensors. The norm then covers the shards of all ranks (:func:`gradient_norm`), each rank updates
    its own shards, and the moments are DTensors too.

    Args:
        params: parameters or groups of them, as for torch.optim.AdamW; a group may set its own ``lr``,
            ``betas``, ``eps`` and ``weight_decay``.
        lr, betas, eps, weight_decay: as in torch.optim.AdamW.
        tasks: task name -> (s_k, ω_k): the probability that a step draws the task, and the norm of its gradient after
            normalisation.
        norm_floor: a gradient with a smaller norm is scaled as if it had this norm. A gradient of zero then stays
            zero, and rounding errors are not magnified.

    Attributes:
        last_gradient_norm: the norm of the last step's gradient before normalisation.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        tasks: Mapping[str, tuple[float, float]],
        norm_floor: float = 1e-12,
    ):
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"lr, eps and weight_decay must not be negative: {lr}, {eps}, {weight_decay}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1): {betas}")
        if not tasks:
            raise ValueError("there must be at least one task")
        for name, (ratio, weight) in tasks.items():
            if not 0 < ratio <= 1 or not 0 < weight < math.inf:
                raise ValueError(f"task {name!r}: sampling ratio {ratio} not in (0, 1] or weight {weight} not > 0")
        if not norm_floor > 0:
            raise ValueError(f"norm_floor must be above 0: {norm_floor}")
        self.tasks = dict(tasks)
        self.norm_floor = norm_floor
        self.last_gradient_norm = 0.0
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "step": 0}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        task: str | None = None,
        norm: float | None = None,
        draws: Sequence[TaskGradient] = (),
    ) -> Any:
        """Updates all parameters with the gradient of the drawn task, or with those of several draws.

        Args:
            closure: optional, as in every optimizer: computes the loss and the gradient again and returns the loss.
            task: the name of the drawn task. The gradient in the parameters must be that of its loss.
            norm: of the gradient, if it is known. Computing it waits for the device.
            draws: in place of ``task``, the gradients of several draws. Those in the parameters are then not read. A
                task may be drawn more than once.

        Raises:
            TypeError: neither a task nor draws, or both.
            FloatingPointError: a gradient is not finite. No parameter has been changed.
        """
        if (task is None) == (not draws):
            raise TypeError("step needs either a task or draws")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if task is not None:
            parameters = [p for group in self.param_groups for p in group["params"]]
            self.last_gradient_norm = gradient_norm(parameters) if norm is None else norm
            gradients = {p: _local_gradient(p) for p in parameters if p.grad is not None}
            draws = [TaskGradient(task, gradients, self.last_gradient_norm)]
        self._update(draws)
        return loss

    def _update(self, draws: Sequence[TaskGradient]) -> None:
        factors = []
        for draw in draws:
            ratio, weight = self.tasks[draw.task]
            if not math.isfinite(draw.norm):
                raise FloatingPointError(f"the gradient of task {draw.task!r} is not finite")
            factors.append((weight / max(draw.norm, self.norm_floor), ratio * len(draws)))
        trained = ((group, [p for p in group["params"] if p.requires_grad]) for group in self.param_groups)
        gradients = [draw.gradients for draw in draws]
        groups = [self._group_step(group, own, factors, gradients) for group, own in trained if own]
        for group in groups:
            for block in _blocks(group.parameters, group.m, group.n, *group.gradients):
                _update_block(group, *block)

    def _group_step(
        self,
        group: dict[str, Any],
        parameters: list[Tensor],
        factors: list[tuple[float, float]],
        of_draws: list[Mapping[Tensor, Tensor]],
    ) -> _GroupStep:
        """``factors`` are of each draw: its gradient's scale and s_k·G."""
        m, n = self._moments(parameters)
        group["step"] += 1
        beta1, beta2 = group["betas"]
        root_correction2 = math.sqrt(1 - beta2 ** group["step"])
        step_size = group["lr"] / (1 - beta1 ** group["step"])
        return _GroupStep(
            parameters=[local(p) for p in parameters],
            m=m,
            n=n,
            gradients=[[of_draw.get(p) for p in parameters] for of_draw in of_draws],
            beta1=beta1,
            beta2=beta2,
            decay=1 - group["lr"] * group["weight_decay"],
            # m̂ / (√n̂ + ε), expanded by the root of n's bias correction, which saves a pass over n.
            eps=group["eps"] * root_correction2,
            step=step_size * root_correction2,
            # The scale is part of the coefficients of both sums, so that no scaled gradient is stored.
            factors=[((1 - beta1) / ratio * scale, (1 - beta2) / ratio * scale**2) for scale, ratio in factors],
        )

    def _moments(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for p in parameters:
            if p not in self.state:
                self.state[p] = {
                    "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
                }
        states = [self.state[p] for p in parameters]
        return [local(s["exp_avg"]) for s in states], [local(s["exp_avg_sq"]) for s in states]
