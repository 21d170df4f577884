"""Memory of a training iteration of configs/joint on one of several GPUs, counted without computing it.

    python projects/uniperceiver_v2/benchmarks/joint_memory.py [--ranks 8] [--tasks coco] [--measure] [KEY VALUE ...]

The model's tensors are on the meta device, and what the host knows is real. A forward and a backward pass run as in
training, and every tensor that exists is counted while it exists. Autocast's rules are applied to products and to what
needs float32. Deformable attention is taken as its Triton kernels, which keep their inputs alone.

"peak" is the most that activations and gradients take at any time. "kept" is what stays between iterations: weights,
both moments and the average of the weights. GiB both. Caches of the allocator and of CUDA itself (some 2 GiB) are not
counted, and neither are buffers of communication.

--measure computes on a GPU as well, as one of the ranks: the peak that PyTorch's allocator sees, and the seconds of an
iteration without the step. What other ranks would send is made up.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import stand_ins
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from joint_operations import TOKENS
from memory import clock, peak, start_of_peak
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map
from torch.utils.checkpoint import checkpoint

from uniperceiver_v2.measured import measured
from uniperceiver_v2.modeling import texts_in_parts
from uniperceiver_v2.modeling.decoder import router
from uniperceiver_v2.modeling.image_encoder import criterion
from uniperceiver_v2.modeling.layers import activation_checkpointing, deformable_attention

META = torch.device("meta")
OBJECTS = (7, 7, 4, 20, 2, 7, 10, 1)  # of the images of a batch: COCO's 7.3 on average
OF_OBJECT = 9  # tokens that answer for it
TO_BFLOAT16 = {
    *(F.linear, F.conv1d, F.conv2d, F.conv_transpose2d, F.scaled_dot_product_attention, F.bilinear),
    *(torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.bmm),
}
TO_FLOAT32 = {
    *(F.softmax, F.log_softmax, F.layer_norm, F.group_norm, F.cross_entropy, F.binary_cross_entropy_with_logits),
    *(torch.softmax, torch.exp, torch.log, torch.pow, torch.cdist, torch.cumsum, torch.prod, F.normalize, F.softplus),
    *(Tensor.softmax, Tensor.log_softmax, Tensor.exp, Tensor.log, Tensor.pow, Tensor.__pow__, Tensor.cumsum),
    *(Tensor.sum, torch.sum, Tensor.norm, Tensor.logsumexp, torch.logsumexp),
}


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors on the meta device while they exist: now, and the most at any time. And the
    operations that are no views, which are the launches of a GPU."""

    def __init__(self):
        super().__init__()
        self.now = self.most = self.launches = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        found = [x for x in tree_iter(result) if isinstance(x, Tensor) and x.device == META]
        self.launches += bool(found) and not func.is_view
        for x in found:
            self._add(x.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._remove, key, storage.nbytes())

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class Autocast(TorchFunctionMode):
    """bf16 and float32 where autocast on a GPU has them, for the meta device, which has no autocast."""

    enabled = True  # of all of them

    def __torch_function__(self, func, types, args=(), kwargs=None):
        dtype = torch.bfloat16 if func in TO_BFLOAT16 else torch.float32 if func in TO_FLOAT32 else None
        if dtype is not None and self.enabled:
            args, kwargs = tree_map(functools.partial(_as, dtype), (args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    @classmethod
    @contextlib.contextmanager
    def context(cls, device_type: str, enabled: bool = True, **others: object) -> Iterator[None]:
        """In place of ``torch.autocast``, which checkpointing asks for the CPU too."""
        before, cls.enabled = cls.enabled, enabled if device_type == "meta" else cls.enabled
        yield
        cls.enabled = before


def _as(dtype: torch.dtype, x: object) -> object:
    floating = isinstance(x, Tensor) and x.is_floating_point() and x.device == META
    return x.to(dtype) if floating and x.dtype != dtype else x


def checkpointed(function: Callable, *args: object, use_reentrant: bool, **options: object) -> object:
    """``checkpoint``, for which a recomputation has no modes of Python."""

    def cast(*args: object) -> object:
        with Autocast():
            return function(*args, **options)

    return checkpoint(cast, *args, use_reentrant=use_reentrant)


class KeptInputs(torch.autograd.Function):
    """Deformable attention with the outputs and the kept tensors of its Triton kernels."""

    @staticmethod
    def forward(ctx, value: Tensor, locations: Tensor, attention: Tensor) -> Tensor:
        ctx.save_for_backward(value, locations, attention)
        B, _, H, D = value.shape
        return value.new_empty(B, locations.shape[1], H * D)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return tuple(torch.empty_like(x, dtype=torch.float32) for x in ctx.saved_tensors)


def fetched(*tensors: Tensor) -> list[np.ndarray]:
    """Made-up values in place of those of the device. Of integers: a few tokens of each image answer for objects, and
    the experts are 0, 1, ..."""
    return [_made_up(x) for x in tensors]


def _made_up(x: Tensor) -> np.ndarray:
    if x.is_floating_point():
        return np.random.default_rng(0).random(x.shape, dtype=np.float32)
    if x.dim() == 3:  # experts [layers, classes, k]
        return np.broadcast_to(np.arange(x.shape[-1]), x.shape).copy()
    target = np.full(x.shape, -1)
    for row, objects in zip(target, OBJECTS * len(target)):
        row[: objects * OF_OBJECT] = np.repeat(np.arange(objects), OF_OBJECT)
    return target


def batch_of(cfg: CfgNode, task: str, count: int) -> list[dict]:
    """A rank's share of a task's batch, with its largest images."""
    node = cfg.TASKS[task]
    if node.KIND == "language_modelling":
        ids = torch.full((TOKENS["text"],), 7)
        labels = torch.where(torch.arange(len(ids)) < node.MASKED_SHARE * len(ids), ids, -100)
        return [{"task": task, "token_ids": ids, "labels": labels} for _ in range(count)]
    side = node.JITTER_SIZE if node.KIND == "detection" else node.IMAGE_SIZE
    samples = []
    for index in range(count):
        sample = {"task": task, "image": torch.zeros(3, side, side, dtype=torch.uint8)}
        if node.KIND == "detection":
            objects = OBJECTS[index % len(OBJECTS)]
            boxes = Boxes(torch.tensor([[8.0, 8.0, 200.0, 200.0]]).repeat(objects, 1))
            masks = BitMasks(torch.ones(objects, side, side, dtype=torch.bool))
            classes = torch.arange(objects) % 80
            sample["instances"] = Instances((side, side), gt_boxes=boxes, gt_classes=classes, gt_masks=masks)
            sample["candidates"] = tuple(f"thing{i}" for i in range(80))
        elif node.KIND == "classification":
            sample |= {"label": index % 1000, "candidates": tuple(f"one class {i:04d}" for i in range(1000))}
        else:
            words = torch.arange(TOKENS["caption"]) + index
            sample |= {"caption_token_ids": [words], "file_name": str(index), "image_id": index}
        samples.append(sample)
    return samples


def build(cfg: CfgNode) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    gate = lambda embedded, kinds, experts, active: embedded.new_empty(experts, embedded.shape[1])  # noqa: E731
    with torch.device("meta"), mock.patch.object(router, "_spread_gate", gate):
        return build_model(cfg).train()


@contextlib.contextmanager
def counted(ranks: int) -> Iterator[Alive]:
    """A context in which a model on the meta device trains as one of several ranks."""
    kept = lambda value, shapes, locations, attention: KeptInputs.apply(value, locations, attention)  # noqa: E731
    autocast, alive = Autocast(), Alive()
    with contextlib.ExitStack() as stack:
        for module, name, value in (
            (criterion, "fetch", fetched),
            (router, "fetch", fetched),
            (deformable_attention, "multi_scale_deformable_attention", kept),
            *_as_a_rank(ranks),
            *((module, "checkpoint", checkpointed) for module in (activation_checkpointing, texts_in_parts, criterion)),
            (torch, "autocast", Autocast.context),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(alive)
        stack.enter_context(autocast)
        yield alive


def _as_a_rank(ranks: int) -> tuple[tuple, ...]:
    """What is replaced where, so that a process encodes its share of candidates. Other ranks' shares equal its own."""
    return (
        (texts_in_parts, "group_size", lambda: ranks),
        (texts_in_parts, "rank_in_group", lambda: 0),
        (texts_in_parts, "gather_from_ranks", lambda rows: torch.cat([rows, *(ranks - 1) * [rows.detach()]])),
    )


def train(model: nn.Module, batch: list[dict]) -> None:
    """A forward and a backward pass, within :func:`counted`."""
    torch.autograd.backward(sum(model(batch).values()))  # the method of a tensor would leave out Autocast


def peak_of(cfg: CfgNode, model: nn.Module, task: str, ranks: int) -> int:
    """The most bytes of activations and gradients in an iteration."""
    batch = batch_of(cfg, task, cfg.TASKS[task].IMS_PER_BATCH // ranks)
    with counted(ranks) as alive, EventStorage(), measured():
        train(model, batch)
    model.zero_grad()
    return alive.most


def build_on_gpu(cfg: CfgNode) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    torch.manual_seed(0)
    return build_model(cfg).train()


def measure_on_gpu(cfg: CfgNode, model: nn.Module, task: str, ranks: int) -> tuple[int, float]:
    """The most bytes of activations and gradients in the second iteration on a GPU, and its seconds."""
    batch = batch_of(cfg, task, cfg.TASKS[task].IMS_PER_BATCH // ranks)
    with contextlib.ExitStack() as stack:
        for module, name, value in _as_a_rank(ranks):
            stack.enter_context(mock.patch.object(module, name, value))
        for _ in range(2):
            model.zero_grad()
            before, start = start_of_peak("cuda"), clock("cuda")
            with EventStorage(), measured(), torch.autocast("cuda", torch.bfloat16):
                losses = sum(model(batch).values())
            losses.backward()
            del losses
            seconds = clock("cuda") - start
    found = peak("cuda") - before
    model.zero_grad()
    return found, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=stand_ins.MODELS, default=["swin_large"])
    parser.add_argument("--ranks", type=int, default=8, help="GPUs")
    parser.add_argument("--tasks", nargs="+", help="only these")
    parser.add_argument("--measure", action="store_true", help="on a GPU, too")
    parser.add_argument("options", nargs="*", metavar="KEY VALUE", help="settings")
    args = parser.parse_args()
    columns = ("model", "task", "of a rank", "kept", "peak", "together", *args.measure * ("peak on the GPU", "s"))
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            cfg = stand_ins.joint_config(name, Path(folder), args.options)
            model, real = build(cfg), build_on_gpu(cfg) if args.measure else None
            kept = 4 * 4 * sum(p.numel() for p in model.parameters())
            for task in args.tasks or cfg.TASKS.NAMES:
                most = peak_of(cfg, model, task, args.ranks)
                cells = [f"{size / 2**30:.1f}" for size in (kept, most, kept + most)]
                if real is not None:
                    found, seconds = measure_on_gpu(cfg, real, task, args.ranks)
                    cells += [f"{found / 2**30:.1f}", f"{seconds:.2f}"]
                count = cfg.TASKS[task].IMS_PER_BATCH // args.ranks
                print(f"| {name} | {task} | {count} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
