"""Task-Balanced Gradient Normalization (Uni-Perceiver v2): AdamW for one task per step.

In each step, g below is the gradient of the drawn task k over all parameters, scaled to the norm ω_k:

    m ← β1·m + (1-β1)/s_k · g        n ← β2·n + (1-β2)/s_k · g²        θ ← θ - α · m̂ / (√n̂ + ε)

with PyTorch's meaning of the betas, and the bias correction and decoupled weight decay of torch.optim.AdamW.
The factor 1/s_k makes E[m], over the draw of the tasks, track Σ_k g_k, however rarely a task is drawn.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_BLOCK_ELEMENTS = 2**18  # of a tensor, updated at a time on a CPU: 5 MiB with its moments, gradient and denominator


@torch.no_grad()
def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """Euclidean norm of the whole gradient; parameters without a gradient count as zero.

    Gradients may be DTensors (``torch.distributed.fsdp.fully_shard``): then the norm is that of all shards of all
    ranks, the same on each, and all ranks have to ask for it. Other gradients are taken to be whole on every rank, as
    they are once they have been averaged.
    """
    by_sharding: dict[tuple[Any, ...], list[Tensor]] = {}
    for p in parameters:
        # A sharding counts even without gradients here, so that no rank waits for one that leaves it out.
        gradients = by_sharding.setdefault(_sharding(p), [])
        if p.grad is not None:
            gradients.append(_local_gradient(p))
    return math.sqrt(sum(_sum_of_squares(gradients, sharding) for sharding, gradients in by_sharding.items()))


def _sharding(parameter: Tensor) -> tuple[Any, ...]:
    """The (mesh, dimension) pairs over which a parameter is split; none for a whole one."""
    if not _is_distributed(parameter):
        return ()
    split = (i for i, placement in enumerate(parameter.placements) if not placement.is_replicate())
    return tuple((parameter.device_mesh, dimension) for dimension in split)


def _is_distributed(tensor: Tensor) -> bool:
    """Whether it is a DTensor. Its module has moved between versions of PyTorch, and not every build has it."""
    return hasattr(type(tensor), "to_local")


def _local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory."""
    return tensor.to_local() if _is_distributed(tensor) else tensor


def _local_gradient(parameter: Tensor) -> Tensor:
    gradient = parameter.grad
    if _is_distributed(gradient) and gradient.placements != parameter.placements:
        gradient = gradient.redistribute(placements=parameter.placements)  # such as a sum that is still to be formed
    return _local(gradient)


def _sum_of_squares(gradients: list[Tensor], sharding: tuple[Any, ...]) -> float:
    """Over this rank's gradients, and over those of all ranks among which they are split."""
    if gradients:
        norms = torch._foreach_norm(gradients)
        # In double precision: the squares of many large parts must not overflow.
        total = torch.stack([n.to(norms[0].device) for n in norms]).double().square().sum()
    else:
        total = torch.zeros((), dtype=torch.float64, device=sharding[0][0].device_type if sharding else "cpu")
    for mesh, dimension in sharding:
        dist.all_reduce(total, group=mesh.get_group(dimension))
    return total.item()


def _blocks(*lists: Sequence[Tensor | None]) -> Iterator[list[list[Tensor | None]]]:
    """The lists' tensors, all or in parts that stay in a processor's cache from the first operation to the last.

    The update passes over everything a dozen times. On a CPU, the memory would be read as often; on a GPU, fewer and
    larger kernels are better.

    Args:
        lists: of the same length; tensors at the same index have the same shape, and only the last list may have None.
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
    """Large tensors of one shape as flat views of their parts, where their memory lies so; others as they are."""
    there = [t for t in tensors if t is not None]
    if there[0].numel() <= _BLOCK_ELEMENTS or not all(t.is_contiguous() for t in there):
        return [tensors]
    count = math.ceil(there[0].numel() / _BLOCK_ELEMENTS)
    return zip(*([None] * count if t is None else t.view(-1).split(_BLOCK_ELEMENTS) for t in tensors))


class TaskBalancedAdamW(torch.optim.Optimizer):
    """AdamW with Task-Balanced Gradient Normalization, multi-tensor.

    A parameter that the drawn task does not reach has gradient zero, not no gradient: its moments decay and
    it moves on, as E[m] = Σ_k g_k needs.

    Parameters may be DTensors; the gradient's norm is then that of all ranks' shards (:func:`gradient_norm`), each rank
    updates its own, and the moments are DTensors too.

    Args:
        params: parameters or groups of them, as for torch.optim.AdamW; a group may set its own ``lr``,
            ``betas``, ``eps`` and ``weight_decay``.
        lr, betas, eps, weight_decay: as in torch.optim.AdamW.
        tasks: task name -> (s_k, ω_k): its sampling ratio, which is the probability of its being drawn, and
            the norm of its gradient after normalisation.
        norm_floor: gradients with a smaller norm are scaled as if they had this one, so that a gradient of
            zero stays zero and rounding errors are not blown up.

    Attributes:
        last_gradient_norm: norm of the last step's gradient before normalisation.

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
    def step(self, closure: Callable[[], Any] | None = None, *, task: str) -> Any:
        """Update all parameters by the gradient of the drawn task.

        Args:
            closure: computes the loss again and returns it; optional, as in every optimizer.
            task: the name of the task whose gradient the parameters hold.

        Raises:
            FloatingPointError: the gradient is not finite; nothing has been changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ratio, weight = self.tasks[task]
        norm = gradient_norm(p for group in self.param_groups for p in group["params"])
        self.last_gradient_norm = norm
        if not math.isfinite(norm):
            raise FloatingPointError(f"the gradient of task {task!r} is not finite")
        scale = weight / max(norm, self.norm_floor)
        for group in self.param_groups:
            self._update(group, scale, ratio)
        return loss

    def _update(self, group: dict[str, Any], scale: float, ratio: float) -> None:
        parameters = [p for p in group["params"] if p.requires_grad]
        if not parameters:
            return
        m, n = self._moments(parameters)
        gradients = [None if p.grad is None else _local_gradient(p) for p in parameters]
        group["step"] += 1
        for block in _blocks([_local(p) for p in parameters], m, n, gradients):
            self._update_block(group, scale, ratio, *block)

    def _update_block(
        self,
        group: dict[str, Any],
        scale: float,
        ratio: float,
        parameters: list[Tensor],
        m: list[Tensor],
        n: list[Tensor],
        gradients: list[Tensor | None],
    ) -> None:
        beta1, beta2 = group["betas"]
        root_correction2 = math.sqrt(1 - beta2 ** group["step"])
        step_size = group["lr"] / (1 - beta1 ** group["step"])
        reached = [i for i, gradient in enumerate(gradients) if gradient is not None]
        gradients = [gradients[i] for i in reached]

        # The scaled gradient is never formed: its scale goes into the coefficients of both sums.
        torch._foreach_mul_(m, beta1)
        torch._foreach_mul_(n, beta2)
        if gradients:
            torch._foreach_add_([m[i] for i in reached], gradients, alpha=(1 - beta1) / ratio * scale)
            torch._foreach_addcmul_([n[i] for i in reached], gradients, gradients, value=(1 - beta2) / ratio * scale**2)
        if group["weight_decay"] and group["lr"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        # m̂ / (√n̂ + ε) with both sides times the root of n's correction, which spares a pass over n.
        denominators = torch._foreach_sqrt(n)
        torch._foreach_add_(denominators, group["eps"] * root_correction2)
        torch._foreach_addcdiv_(parameters, m, denominators, value=-step_size * root_correction2)

    def _moments(self, parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for p in parameters:
            if p not in self.state:
                self.state[p] = {
                    "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
                }
        states = [self.state[p] for p in parameters]
        return [_local(s["exp_avg"]) for s in states], [_local(s["exp_avg_sq"]) for s in states]
