from __future__ import annotations

import concurrent.futures
import logging
import time
import weakref
from collections.abc import Mapping

import numpy as np
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["AMPTrainer", "HookBase", "SimpleTrainer", "TrainerBase"]

logger = logging.getLogger(__name__)


class HookBase:
    """Code that runs at fixed points of training.

    The trainer calls ``before_train``, then ``before_step``, ``after_backward`` and ``after_step`` in every iteration,
    and at the end ``after_train``, also if training failed. ``self.trainer`` is the trainer. Do slow work in
    ``after_step``, as hooks that measure time rely on a fast ``before_step``.
    """

    trainer: TrainerBase = None

    def before_train(self):
        """Before the first iteration."""

    def after_train(self):
        """After the last iteration."""

    def before_step(self):
        """Before each iteration."""

    def after_backward(self):
        """After the backward pass of each iteration."""

    def after_step(self):
        """After each iteration."""

    def state_dict(self):
        """The hook's state for a checkpoint. A hook that returns a state also needs ``load_state_dict``."""
        return {}


class TrainerBase:
    """A loop of iterations with hooks. It knows nothing about models, data and optimizers.

    Attributes:
        iter: the current iteration. It is ``max_iter`` after a training that was not interrupted.
        start_iter: the first iteration, at least 0.
        max_iter: training ends before this iteration.
        storage: the ``EventStorage`` that is open during training.
    """

    def __init__(self) -> None:
        self._hooks: list[HookBase] = []
        self.iter: int = 0
        self.start_iter: int = 0
        self.max_iter: int
        self.storage: EventStorage

    def register_hooks(self, hooks: list[HookBase | None]) -> None:
        """Add hooks, which are called in the order of their registration. None is ignored."""
        for hook in hooks:
            if hook is None:
                continue
            assert isinstance(hook, HookBase), hook
            # A weak reference, as the trainer owns its hooks.
            hook.trainer = weakref.proxy(self)
            self._hooks.append(hook)

    def train(self, start_iter: int, max_iter: int):
        """Run iterations ``start_iter`` to ``max_iter - 1``."""
        logger.info("Starting training from iteration %d", start_iter)
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                # Only a complete training reaches this line. Hooks recognise it by iter == max_iter.
                self.iter += 1
            except Exception:
                logger.exception("Exception during training:")
                raise
            finally:
                self.after_train()

    def before_train(self):
        for hook in self._hooks:
            hook.before_train()

    def after_train(self):
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.after_train()

    def before_step(self):
        # Events of this iteration are stored under the trainer's iteration.
        self.storage.iter = self.iter
        for hook in self._hooks:
            hook.before_step()

    def after_backward(self):
        for hook in self._hooks:
            hook.after_backward()

    def after_step(self):
        for hook in self._hooks:
            hook.after_step()

    def run_step(self):
        """One iteration. Subclasses implement it."""
        raise NotImplementedError

    def state_dict(self):
        """The iteration and the states of hooks by their class names. If several hooks have the same class, the
        first one's state."""
        state = {"iteration": self.iter}
        hooks = {}
        for hook in self._hooks:
            hook_state = hook.state_dict()
            if hook_state:
                hooks.setdefault(type(hook).__qualname__, hook_state)
        if hooks:
            state["hooks"] = hooks
        return state

    def load_state_dict(self, state_dict):
        self.iter = state_dict["iteration"]
        for name, hook_state in state_dict.get("hooks", {}).items():
            hook = next((hook for hook in self._hooks if type(hook).__qualname__ == name), None)
            if hook is None:
                logger.warning("Cannot find the hook '%s', its state_dict is ignored.", name)
            else:
                hook.load_state_dict(hook_state)


class SimpleTrainer(TrainerBase):
    """A trainer with one model, one data loader and one optimizer. An iteration has one batch, one backward pass and
    one step.

    Hooks do everything else (checkpoints, logs, evaluation, the learning rate).
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        gather_metric_period=1,
        zero_grad_before_forward=False,
        async_write_metrics=False,
    ):
        """
        Args:
            model: maps a batch to a scalar loss or a dict of scalar losses. It is put into training mode.
            data_loader: an iterable with enough batches for the whole training.
            optimizer: a PyTorch optimizer of the model's parameters.
            gather_metric_period: iterations between two times that losses are gathered from all ranks and logged.
            zero_grad_before_forward: whether gradients are cleared before the forward pass or after it.
            async_write_metrics: whether losses are read and logged in another thread, so that training does not wait
                for the device.
        """
        super().__init__()
        model.train()
        self.model = model
        self.data_loader = data_loader
        self._data_loader_iter_obj = None
        self.optimizer = optimizer
        self.gather_metric_period = gather_metric_period
        self.zero_grad_before_forward = zero_grad_before_forward
        self.async_write_metrics = async_write_metrics
        # A single thread writes metrics in the order of iterations.
        self.concurrent_executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    def run_step(self):
        assert self.model.training, f"[{type(self).__name__}] model was changed to eval mode!"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start

        if self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        loss_dict, losses = self._forward(data)
        if not self.zero_grad_before_forward:
            self.optimizer.zero_grad()
        self._backward(losses)
        self.after_backward()

        if self.async_write_metrics:
            self.concurrent_executor.submit(self._write_metrics, loss_dict, data_time, iter=self.iter)
        else:
            self._write_metrics(loss_dict, data_time)
        self._optimizer_step()

    def _forward(self, data):
        loss_dict = self.model(data)
        if isinstance(loss_dict, torch.Tensor):
            return {"total_loss": loss_dict}, loss_dict
        return loss_dict, sum(loss_dict.values())

    def _backward(self, losses):
        losses.backward()

    def _optimizer_step(self):
        self.optimizer.step()

    @property
    def _data_loader_iter(self):
        # Made at first use, so that its workers start with training and not with the trainer.
        if self._data_loader_iter_obj is None:
            self._data_loader_iter_obj = iter(self.data_loader)
        return self._data_loader_iter_obj

    def reset_data_loader(self, data_loader_builder):
        """Delete the data loader, then replace it by the result of ``data_loader_builder()``."""
        del self.data_loader
        self._data_loader_iter_obj = None
        self.data_loader = data_loader_builder()

    def _write_metrics(
        self,
        loss_dict: Mapping[str, torch.Tensor],
        data_time: float,
        prefix: str = "",
        iter: int | None = None,
    ) -> None:
        iter = self.iter if iter is None else iter
        if (iter + 1) % self.gather_metric_period != 0:
            return
        try:
            SimpleTrainer.write_metrics(loss_dict, data_time, iter, prefix)
        except Exception:
            # With async_write_metrics, an exception of the thread would be lost without this line.
            logger.exception("Exception in writing metrics: ")
            raise

    @staticmethod
    def write_metrics(loss_dict: Mapping[str, torch.Tensor], data_time: float, cur_iter: int, prefix: str = "") -> None:
        """Put the losses, averaged over all ranks, and their sum into the event storage. Every rank must call it.

        Args:
            loss_dict: scalar losses.
            data_time: the seconds that this rank waited for its batch.
            cur_iter: the iteration of the losses.
            prefix: put before "total_loss".

        Raises:
            FloatingPointError: on the main process, if the sum of the losses is infinite or NaN.
        """
        metrics = {name: loss.detach().cpu().item() for name, loss in loss_dict.items()}
        storage = get_event_storage()
        storage.put_scalar("rank_data_time", data_time, cur_iter=cur_iter)
        gathered = comm.gather((metrics, data_time))
        if not comm.is_main_process():
            return

        # All ranks wait for the slowest one.
        storage.put_scalar("data_time", max(seconds for _, seconds in gathered), cur_iter=cur_iter)
        metrics = {name: np.mean([rank_metrics[name] for rank_metrics, _ in gathered]) for name in metrics}
        total = sum(metrics.values())
        if not np.isfinite(total):
            raise FloatingPointError(f"Loss became infinite or NaN at iteration={cur_iter}!\nloss_dict = {metrics}")
        storage.put_scalar(f"{prefix}total_loss", total, cur_iter=cur_iter)
        if len(metrics) > 1:
            storage.put_scalars(cur_iter=cur_iter, **metrics)

    def state_dict(self):
        return {**super().state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])

    def after_train(self):
        super().after_train()
        self.concurrent_executor.shutdown(wait=True)


class AMPTrainer(SimpleTrainer):
    """:class:`SimpleTrainer` in mixed precision on a CUDA device, with scaled gradients."""

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        gather_metric_period=1,
        zero_grad_before_forward=False,
        grad_scaler=None,
        precision: torch.dtype = torch.float16,
        log_grad_scaler: bool = False,
        async_write_metrics=False,
    ):
        """
        Args:
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward,
            async_write_metrics:
                as in :class:`SimpleTrainer`.
            grad_scaler: PyTorch's ``GradScaler``, by default a new one.
            precision: the dtype of autocast in the forward pass.
            log_grad_scaler: whether the scale is logged, as "[metric]grad_scaler".
        """
        single_device = not isinstance(model, DataParallel)
        if isinstance(model, DistributedDataParallel):
            single_device = not (model.device_ids and len(model.device_ids) > 1)
        assert single_device, "AMPTrainer does not support single-process multi-device training!"
        super().__init__(
            model, data_loader, optimizer, gather_metric_period, zero_grad_before_forward, async_write_metrics
        )
        self.grad_scaler = torch.amp.GradScaler("cuda") if grad_scaler is None else grad_scaler
        self.precision = precision
        self.log_grad_scaler = log_grad_scaler

    def run_step(self):
        assert torch.cuda.is_available(), "[AMPTrainer] CUDA is required for AMP training!"
        super().run_step()

    def _forward(self, data):
        with torch.autocast("cuda", dtype=self.precision):
            return super()._forward(data)

    def _backward(self, losses):
        self.grad_scaler.scale(losses).backward()
        if self.log_grad_scaler:
            get_event_storage().put_scalar("[metric]grad_scaler", self.grad_scaler.get_scale())

    def _optimizer_step(self):
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self):
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
