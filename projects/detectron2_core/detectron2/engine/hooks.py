from __future__ import annotations

import datetime
import logging
import math
import operator
import time
from collections import Counter

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.solver import LRMultiplier
from detectron2.solver import LRScheduler as _LRScheduler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from fvcore.common.checkpoint import Checkpointer
from fvcore.common.checkpoint import PeriodicCheckpointer as _PeriodicCheckpointer
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.common.timer import Timer
from fvcore.nn.precise_bn import get_bn_modules, update_bn_stats

from .train_loop import HookBase

__all__ = [
    "BestCheckpointer",
    "CallbackHook",
    "EvalHook",
    "IterationTimer",
    "LRScheduler",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
]

logger = logging.getLogger(__name__)


class CallbackHook(HookBase):
    """A hook made of functions. Each function gets the trainer."""

    def __init__(self, *, before_train=None, after_train=None, before_step=None, after_step=None):
        self._before_train = before_train
        self._before_step = before_step
        self._after_step = after_step
        self._after_train = after_train

    def before_train(self):
        if self._before_train:
            self._before_train(self.trainer)

    def after_train(self):
        if self._after_train:
            self._after_train(self.trainer)
        # The functions may refer to the trainer, which owns this hook: delete them to break the cycle.
        del self._before_train, self._after_train, self._before_step, self._after_step

    def before_step(self):
        if self._before_step:
            self._before_step(self.trainer)

    def after_step(self):
        if self._after_step:
            self._after_step(self.trainer)


class IterationTimer(HookBase):
    """Puts the seconds of every iteration into the storage as "time", and logs the overall speed at the end.

    It measures from its own ``before_step`` to its own ``after_step``, so it should be the first hook.
    """

    def __init__(self, warmup_iter=3):
        """``warmup_iter``: the number of iterations at the start that are not measured."""
        self._warmup_iter = warmup_iter
        self._step_timer = Timer()
        self._start_time = time.perf_counter()
        self._total_timer = Timer()

    def before_train(self):
        self._start_time = time.perf_counter()
        self._total_timer.reset()
        self._total_timer.pause()

    def after_train(self):
        total = time.perf_counter() - self._start_time
        in_steps = self._total_timer.seconds()
        iterations = self.trainer.storage.iter + 1 - self.trainer.start_iter - self._warmup_iter
        if iterations > 0 and in_steps > 0:
            logger.info(
                "Overall training speed: %d iterations in %s (%.4f s / it)",
                iterations,
                _clock(in_steps),
                in_steps / iterations,
            )
        logger.info("Total training time: %s (%s on hooks)", _clock(total), _clock(total - in_steps))

    def before_step(self):
        self._step_timer.reset()
        self._total_timer.resume()

    def after_step(self):
        done = self.trainer.storage.iter - self.trainer.start_iter + 1
        if done >= self._warmup_iter:
            self.trainer.storage.put_scalars(time=self._step_timer.seconds())
        else:
            self._start_time = time.perf_counter()
            self._total_timer.reset()
        self._total_timer.pause()


def _clock(seconds: float) -> str:
    return str(datetime.timedelta(seconds=int(seconds)))


class PeriodicWriter(HookBase):
    """Calls writers every ``period`` iterations, after the last iteration and at the end of training."""

    def __init__(self, writers, period=20):
        """``writers``: a list of ``EventWriter``."""
        for writer in writers:
            assert isinstance(writer, EventWriter), writer
        self._writers = writers
        self._period = period

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            for writer in self._writers:
                writer.write()

    def after_train(self):
        for writer in self._writers:
            # Hooks before this one may have put scalars in their after_train, for example of the last evaluation.
            writer.write()
            writer.close()


class PeriodicCheckpointer(_PeriodicCheckpointer, HookBase):
    """fvcore's ``PeriodicCheckpointer`` as a hook: saves every ``period`` iterations and at the end."""

    def before_train(self):
        self.max_iter = self.trainer.max_iter

    def after_step(self):
        self.step(self.trainer.iter)


class BestCheckpointer(HookBase):
    """Keeps the checkpoint with the best value of a metric. Register it after the hook that puts the metric."""

    def __init__(
        self,
        eval_period: int,
        checkpointer: Checkpointer,
        val_metric: str,
        mode: str = "max",
        file_prefix: str = "model_best",
    ) -> None:
        """
        Args:
            eval_period: the period of the :class:`EvalHook`.
            checkpointer: the checkpointer that writes the checkpoint.
            val_metric: the metric's name in the storage, such as "bbox/AP50".
            mode: "max" if larger values are better, "min" if smaller ones are.
            file_prefix: the checkpoint's name.
        """
        assert mode in ("max", "min"), f'Mode "{mode}" of BestCheckpointer is neither "max" nor "min"'
        self._period = eval_period
        self._checkpointer = checkpointer
        self._val_metric = val_metric
        self._better = operator.gt if mode == "max" else operator.lt
        self._file_prefix = file_prefix
        self.best_metric = None
        self.best_iter = None

    def _check(self):
        latest = self.trainer.storage.latest().get(self._val_metric)
        if latest is None:
            logger.warning("There is no metric %s to choose the best checkpoint by.", self._val_metric)
            return
        value, iteration = latest
        if not math.isfinite(value) or (self.best_metric is not None and not self._better(value, self.best_metric)):
            logger.info(
                "Not saving: %s is %.5f; the best is %s @ iteration %s",
                self._val_metric,
                value,
                self.best_metric,
                self.best_iter,
            )
            return
        self._checkpointer.save(self._file_prefix, iteration=iteration)
        logger.info("Saved the best model: %s is %.5f @ iteration %d", self._val_metric, value, iteration)
        self.best_metric, self.best_iter = value, iteration

    def after_step(self):
        if _is_due(self.trainer, self._period):
            self._check()

    def after_train(self):
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._check()


def _is_due(trainer, period: int) -> bool:
    """Whether an evaluation follows this iteration. After the last iteration the evaluation comes after training
    instead."""
    done = trainer.iter + 1
    return period > 0 and done % period == 0 and done != trainer.max_iter


class LRScheduler(HookBase):
    """Puts the learning rate into the storage as "lr" and steps the scheduler, after every iteration."""

    def __init__(self, optimizer=None, scheduler=None):
        """
        Args:
            optimizer: a PyTorch optimizer, by default the trainer's.
            scheduler: a PyTorch scheduler, or fvcore's ``ParamScheduler`` as a factor on the optimizer's rates. By
                default the trainer's.
        """
        self._optimizer = optimizer
        self._scheduler = scheduler

    def before_train(self):
        self._optimizer = self._optimizer or self.trainer.optimizer
        if isinstance(self.scheduler, ParamScheduler):
            self._scheduler = LRMultiplier(
                self._optimizer, self.scheduler, self.trainer.max_iter, last_iter=self.trainer.iter - 1
            )
        self._best_param_group_id = LRScheduler.get_best_param_group_id(self._optimizer)

    @staticmethod
    def get_best_param_group_id(optimizer) -> int:
        """The group with the rate that is reported: the largest group. If all groups have size 1, a group with the
        most common rate."""
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if max(sizes) > 1:
            return sizes.index(max(sizes))
        rates = [group["lr"] for group in optimizer.param_groups]
        return rates.index(Counter(rates).most_common()[0][0])

    def after_step(self):
        lr = self._optimizer.param_groups[self._best_param_group_id]["lr"]
        self.trainer.storage.put_scalar("lr", lr, smoothing_hint=False)
        self.scheduler.step()

    @property
    def scheduler(self):
        return self._scheduler or self.trainer.scheduler

    def state_dict(self):
        return self.scheduler.state_dict() if isinstance(self.scheduler, _LRScheduler) else {}

    def load_state_dict(self, state_dict):
        if isinstance(self.scheduler, _LRScheduler):
            logger.info("Loading scheduler from state_dict ...")
            self.scheduler.load_state_dict(state_dict)


class EvalHook(HookBase):
    """Evaluates every ``eval_period`` iterations, and after training unless it was interrupted."""

    def __init__(self, eval_period, eval_function, eval_after_train=True):
        """
        Args:
            eval_period: 0 for no evaluation during training.
            eval_function: a function without arguments. It returns None or a nested dict of numbers, which are put into
                the storage under names joined by "/". All ranks must have this hook. A rank without a part in the
                evaluation needs a function that does nothing.
            eval_after_train: whether to evaluate after training.
        """
        self._period = eval_period
        self._func = eval_function
        self._eval_after_train = eval_after_train

    def _do_eval(self):
        results = self._func()
        if results:
            assert isinstance(results, dict), f"Eval function must return a dict. Got {results} instead."
            results = flatten_results_dict(results)
            for name, value in results.items():
                try:
                    results[name] = float(value)
                except Exception as error:
                    raise ValueError(
                        f"[EvalHook] eval_function should return a nested dict of float. Got '{name}: {value}' instead."
                    ) from error
            self.trainer.storage.put_scalars(**results, smoothing_hint=False)
        # Ranks may need different times. They start the next iteration together.
        comm.synchronize()

    def after_step(self):
        if _is_due(self.trainer, self._period):
            self._do_eval()

    def after_train(self):
        if self._eval_after_train and self.trainer.iter + 1 >= self.trainer.max_iter:
            self._do_eval()
        # The function may refer to the trainer, which owns this hook: delete it to break the cycle.
        del self._func


class PreciseBN(HookBase):
    """Replaces the moving averages of batch norms by averages over whole batches, periodically and at the end."""

    def __init__(self, period, model, data_loader, num_iter):
        """
        Args:
            period: iterations between updates. With 0 there is only the update after the last iteration.
            model: the model. Its batch norms in training mode are updated.
            data_loader: an iterable of batches for ``model(batch)``.
            num_iter: the number of batches.
        """
        self._disabled = len(get_bn_modules(model)) == 0
        if self._disabled:
            logger.info("PreciseBN is disabled: the model has no batch norm in training mode.")
        self._model = model
        self._data_loader = data_loader
        self._data_iter = None
        self._num_iter = num_iter
        self._period = period

    def after_step(self):
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self.update_stats()

    def update_stats(self):
        """Update the statistics now."""
        if self._disabled:
            return
        if self._data_iter is None:
            self._data_iter = iter(self._data_loader)
        logger.info("Running precise-BN for %d iterations...", self._num_iter)
        # A separate storage, as scalars of these forward passes do not belong to an iteration of training.
        with EventStorage():
            update_bn_stats(self._model, self._data_iter, self._num_iter)
