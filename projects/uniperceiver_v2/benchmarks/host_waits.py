"""How often the host waits for a GPU in a training iteration of each task, counted without a GPU.

    python projects/uniperceiver_v2/benchmarks/host_waits.py [--where]

The tensors of the model pretend to lie on a device (:class:`PretendedDevice`): they compute on the CPU, and what would
make the host wait for a GPU is counted. The tiny configuration trains on digit_scenes. "waits" are waits, "copies" are
copies from the host to the device that do not wait, "KiB" their bytes, and "operations" all others that a GPU would
launch. --where also prints the line of each wait.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections import Counter
from typing import Any
from unittest import mock

import torch
from detectron2.modeling import build_model
from repeating import Repeating
from torch import Tensor, nn
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_iter, tree_map

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.solver import build_optimizer

DEVICE = torch.device("meta")  # of all of PyTorch's devices, the one that its factories and autograd leave alone

aten = torch.ops.aten
# Operations whose result has a size or a value that the host needs.
WAITING = (
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive, aten.histc),
)
INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_)
FREE = (aten.detach, aten.alias, aten._unsafe_view, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty)


class OnDevice(Tensor):
    """A tensor of the CPU that pretends to be on :data:`DEVICE`."""

    own: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, own: Tensor) -> OnDevice:
        found = torch.Tensor._make_wrapper_subclass(
            cls,
            own.shape,
            strides=own.stride(),
            storage_offset=own.storage_offset(),
            dtype=own.dtype,
            layout=own.layout,
            device=DEVICE,
        )
        found.own = own
        return found

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise RuntimeError(f"{func} outside of the pretended device")

    def tolist(self) -> list:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)


class PretendedDevice(TorchDispatchMode):
    """A context in which a model moved by :func:`move` computes as if on a GPU, and whatever would wait is counted.

    Attributes:
        waits: the number of waits by operation.
        places: the number of waits by the line of code.
        copies, copied_bytes: of copies to the device that do not wait.
        operations: all other operations on the device, by name, without views.
    """

    def __init__(self):
        super().__init__()
        self._patches = contextlib.ExitStack()
        self.reset()

    def reset(self) -> None:
        self.waits: Counter[str] = Counter()
        self.places: Counter[str] = Counter()
        self.operations: Counter[str] = Counter()
        self.copies = self.copied_bytes = 0

    def __enter__(self) -> PretendedDevice:
        # torch.tensor makes an empty tensor for this device, and autocast does not know it.
        make = torch.tensor

        def tensor(data: Any, *, dtype=None, device=None, requires_grad=False) -> Tensor:
            return make(data, dtype=dtype, requires_grad=requires_grad).to(device or "cpu")

        self._patches.enter_context(mock.patch.object(torch, "tensor", tensor))
        self._patches.enter_context(
            mock.patch.object(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())
        )
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self._patches.close()
        # Some functions keep tensors by their device, and others count on the same device of PyTorch.
        for name, module in list(sys.modules.items()):
            if name.startswith("uniperceiver_v2."):
                for value in list(vars(module).values()):
                    if hasattr(value, "cache_clear"):
                        value.cache_clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = any(isinstance(x, OnDevice) for x in tree_iter((args, kwargs)))
        own_args, own_kwargs = tree_map(_own, (args, kwargs))
        stays = there
        if kwargs.get("device") is not None:
            stays = torch.device(kwargs["device"]) == DEVICE
            own_kwargs["device"] = torch.device("cpu")
        result = func(*own_args, **own_kwargs)
        if there or stays:
            self._count(func, args, kwargs, there, stays)
        if there and not stays:
            return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, result)
        if not stays:
            return result
        result = tree_map(lambda x: OnDevice(x) if isinstance(x, Tensor) else x, result)
        return return_and_correct_aliasing(func, args, kwargs, result)

    def _count(self, func, args, kwargs, there: bool, stays: bool) -> None:
        packet = func.overloadpacket
        moved = packet is aten._to_copy and there != stays
        if packet is aten.copy_:
            moved = isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice) and args[1].dim() > 0
            kwargs = {"non_blocking": len(args) > 2 and args[2], **kwargs}
        indices = args[1] if packet in INDEXING else ()
        masked = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)
        counted_on = packet is aten.repeat_interleave and kwargs.get("output_size") is None
        if packet in WAITING or masked or counted_on or (moved and not kwargs.get("non_blocking")):
            self.waits[packet.__name__] += 1
            self.places[_place()] += 1
        elif moved:
            self.copies += 1
            self.copied_bytes += args[packet is aten.copy_].nbytes
        elif not func.is_view and packet not in FREE:
            self.operations[packet.__name__] += 1


def _own(x: Any) -> Any:
    return x.own if isinstance(x, OnDevice) else x


def _place() -> str:
    """The line of the package from which an operation was called, or else the innermost line outside of PyTorch."""
    lines = [x for x in traceback.extract_stack()[:-3] if __file__ not in x.filename]
    own = [x for x in lines if "/uniperceiver_v2/uniperceiver_v2/" in x.filename]
    other = [x for x in lines if "/torch/" not in x.filename]
    found = (own or other or lines)[-1]
    return f"{found.filename.rpartition('/uniperceiver_v2/')[2]}:{found.lineno} {found.line}"


def move(model: nn.Module) -> None:
    """Moves a model's parameters and buffers to the pretended device, in place. Call it within the context."""
    moved: dict[Tensor, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                moved.setdefault(p, nn.Parameter(OnDevice(p.detach()), p.requires_grad))
                module._parameters[name] = moved[p]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnDevice(buffer)


def count_iteration(model: nn.Module, optimizer: torch.optim.Optimizer, task: str, batch: list[dict]) -> None:
    """Leaves in the pretended device, whose context is open, what a training iteration does. It is the third one, as
    some results are kept from the first. Model and optimizer are on that device."""
    trainer = Repeating(model, optimizer, {task: batch})
    for _ in range(3):
        _get_current_dispatch_mode().reset()
        trainer.run(task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=[])
    parser.add_argument("--where", action="store_true", help="also print the line of each wait")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cfg = load_config(str(TINY_CONFIG), ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0"])
    batches = {task: next(iter(build_task_train_loader(cfg, task))) for task in args.tasks or cfg.TASKS.NAMES}
    model = build_model(cfg).train()
    print("| task | waits | copies | KiB | operations |\n|---|---:|---:|---:|---:|")
    with PretendedDevice() as found:
        move(model)
        optimizer = build_optimizer(cfg, model)
        for task, batch in batches.items():
            count_iteration(model, optimizer, task, batch)
            numbers = found.waits.total(), found.copies, round(found.copied_bytes / 1024), found.operations.total()
            print(f"| {task} | {' | '.join(map(str, numbers))} |", flush=True)
            for place, number in found.places.most_common() if args.where else ():
                print(f"    {number} {place}")


if __name__ == "__main__":
    main()
