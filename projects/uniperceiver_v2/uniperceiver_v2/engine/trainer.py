"""The trainer: Detectron2's with several tasks, averaged weights and atomic checkpoints."""

import contextlib
import logging
import os
import weakref
from collections.abc import Iterable
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from .. import ranks
from ..checkpoint import AtomicCheckpointer
from ..checkpoint.parts import PartsWriter, tidy_up
from ..config import sampling_ratios
from ..data import build_task_train_loader, build_test_loader
from ..errors import UserError
from ..evaluation import build_evaluator
from ..freed_memory import give_back_freed_memory
from ..kinds import KINDS, kind_of_dataset
from ..modeling.decoder import expert_routes, routes_table
from ..solver import build_optimizer
from .autocast_answers import answers_under_autocast
from .best import BestCheckpoint, KeptCheckpoints, StoppedEarly
from .gradients import broadcast_state
from .metrics import MetricsFile, RunScalars, TensorBoardEvents
from .patient_evaluation import PatientEvaluator
from .pictures import PredictionPictures
from .pretrained_parts import load_pretrained_parts
from .progress import ProgressBar, TaskProgressPrinter
from .schedules import MixedSchedule, TaskSchedule
from .sharding import load_into_parts, shard_model, whole_model
from .stopping import GracefulStop
from .task_trainer import TaskTrainer
from .weight_averaging import WeightAveraging

logger = logging.getLogger(__name__)

# Iterations between two progress lines, and between two rows of metrics.json and TensorBoard.
WRITE_PERIOD = 20
_MOST_ITERATIONS = 2**40  # of a run; a checkpoint with more is damaged


class UniPerceiverTrainer(DefaultTrainer):
    """Trains all tasks of ``TASKS.NAMES`` jointly, with Detectron2's hooks. An iteration has one drawn task, or all
    tasks.

    ``TEST.EVAL_PERIOD``, ``SOLVER.CHECKPOINT_PERIOD``, ``SOLVER.MAX_ITER`` and similar keys have Detectron2's meaning.
    With ``SOLVER.WEIGHT_AVERAGING``, the averaged weights are evaluated, and they are the "model" of a checkpoint.

    Args:
        cfg: the settings, from :func:`uniperceiver_v2.config.load_config`.

    Raises:
        UserError: weights or data cannot be used (:meth:`resume_or_load`, :meth:`train`).
    """

    def __init__(self, cfg: CfgNode):
        # DefaultTrainer's constructor would build a single loader. Its other methods work with the parts built here.
        super(DefaultTrainer, self).__init__()
        timeout = timedelta(seconds=cfg.PROCESSES.TIMEOUT)
        ranks.set_task_groups(cfg.SOLVER.TASK_GROUPS, timeout)
        model = self.build_model(cfg)
        broadcast_state(model)
        in_bfloat16 = cfg.SOLVER.REDUCE_IN_BFLOAT16
        self._is_sharded = shard_model(model, cfg.SOLVER.SHARDING, in_bfloat16=in_bfloat16, timeout=timeout)
        optimizer = self.build_optimizer(cfg, model)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.averaging = WeightAveraging(model, cfg.SOLVER.WEIGHT_AVERAGING) if cfg.SOLVER.WEIGHT_AVERAGING else None
        seed, ratios = max(cfg.SEED, 0), sampling_ratios(cfg)
        schedule: MixedSchedule | TaskSchedule
        if cfg.SOLVER.SAMPLING == "mixed":
            schedule = MixedSchedule(ratios)
        else:
            schedule = TaskSchedule(ratios, seed, cfg.SOLVER.TASK_GROUPS, even=cfg.SOLVER.SAMPLING == "even")
        self._trainer = TaskTrainer(
            model,
            optimizer,
            schedule=schedule,
            build_loader=lambda task, numbers: self.build_task_loader(cfg, task, numbers),
            loss_weights={name: cfg.TASKS[name].LOSS_WEIGHT for name in cfg.TASKS.NAMES},
            seed=seed,
            autocast=getattr(torch, cfg.SOLVER.AMP.PRECISION) if cfg.SOLVER.AMP.ENABLED else None,
            accumulation_steps=cfg.SOLVER.ACCUMULATION_STEPS,
            reduce_in_bfloat16=in_bfloat16,
            max_skipped_steps=cfg.SOLVER.MAX_SKIPPED_STEPS,
        )
        # A process that has the whole model writes a file.
        in_parts = cfg.SOLVER.CHECKPOINT_FORMAT == "parts" and self._is_sharded
        self.checkpointer = AtomicCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            averaging=self.averaging,
            weights_may_differ=cfg.MODEL.UNIPERCEIVER_V2.WEIGHTS_MAY_DIFFER,
            in_background=cfg.SOLVER.CHECKPOINTS_IN_BACKGROUND,
            parts=PartsWriter(timeout) if in_parts else None,
            weights_may_be_nan=cfg.MODEL.UNIPERCEIVER_V2.WEIGHTS_MAY_BE_NAN,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.last_results: dict[str, Any] | None = None
        self._graceful_stop = GracefulStop(self._trainer, self.checkpointer)
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As in Detectron2. A run that begins without ``MODEL.WEIGHTS`` begins with the pre-trained parts. The first
        process decides which checkpoint is resumed."""
        if comm.is_main_process():
            tidy_up(self.cfg.OUTPUT_DIR)
        with self.checkpointer.first_process_decides() if resume else contextlib.nullcontext():
            if not (resume and self.checkpointer.has_checkpoint()):
                build, load = partial(self.build_model, self.cfg), partial(load_pretrained_parts, self.cfg)
                load_into_parts(self.model, build, load)
            super().resume_or_load(resume)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in Detectron2.

        Raises:
            UserError: the iteration is not one that a run can have finished.
        """
        super().load_state_dict(state_dict)
        if not 0 <= self.iter < _MOST_ITERATIONS:
            raise UserError(f"its state of training is that of iteration {self.iter}")

    def train(self) -> dict[str, Any] | None:
        """Train to ``SOLVER.MAX_ITER``, or until ``SOLVER.EARLY_STOPPING`` ends training.

        Returns:
            the results of the last evaluation by dataset. None without ``DATASETS.TEST`` and on all processes but the
            main one.
        """
        self._check_that_ranks_agree()
        if self.start_iter == 0:
            self._forget_earlier_run()
        self._graceful_stop.install()
        try:
            self._trainer.open_loaders(self.start_iter, self.max_iter)
            for name in self.cfg.DATASETS.TEST:
                self.build_test_loader(self.cfg, name)  # finds bad test data before training, not after days of it
            self._save_final_if_it_lacks()
            super().train()
            self.checkpointer.wait()
        except StoppedEarly:
            self.checkpointer.wait()
            if self.last_results is None:  # resumed after its end
                self.evaluate()
        finally:
            self._trainer.close_loaders()
            self._graceful_stop.uninstall()
        return self.last_results

    def _save_final_if_it_lacks(self) -> None:
        """Write the final checkpoint of a run that died after the periodic one of its last iteration."""
        if self.start_iter == self.max_iter > 0:
            last = os.path.basename(self.checkpointer.get_checkpoint_file()) if comm.is_main_process() else ""
            if comm.all_gather(last.removesuffix(".pth"))[0] != "model_final":
                self.checkpointer.save("model_final", iteration=self.iter)

    def _check_that_ranks_agree(self) -> None:
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise UserError(
                f"the processes would start at the iterations {starts}: OUTPUT_DIR ({self.cfg.OUTPUT_DIR}) has to be a "
                "folder that all of them share, with the same last checkpoint"
            )
        if len(starts) > 1 and any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
            for module in self.model.modules()
        ):
            raise UserError(
                "batch normalisation with running statistics differs from process to process: set "
                'MODEL.UNIPERCEIVER_V2.BACKBONE.NORM to "FrozenBN" or "GN"'
            )

    def _forget_earlier_run(self) -> None:
        """Rename an earlier run's ``last_checkpoint``. Otherwise ``--resume`` after an interruption of this run
        could continue the earlier run."""
        path = os.path.join(self.cfg.OUTPUT_DIR, "last_checkpoint")
        if comm.is_main_process() and os.path.exists(path):
            os.replace(path, f"{path}.previous")
            logger.warning("%s of an earlier run is now %s.previous: this run starts anew", path, path)
        comm.synchronize()

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Hooks for timing, learning rate, averaging, checkpoints, evaluation and writing.

        The order matters. A checkpoint comes after the averaging of its iteration, and before the evaluation, which may
        fail. The writers come after the evaluation, so that they find its results.
        """
        cfg = self.cfg
        is_main = comm.is_main_process()
        chain: list[hooks.HookBase | None] = [
            hooks.IterationTimer(),
            ProgressBar(cfg.TASKS.NAMES) if is_main else None,
            hooks.LRScheduler(),
            self.averaging,
        ]
        if is_main:
            chain.append(RunScalars(self.model, WRITE_PERIOD))
        if is_main or self._is_sharded:  # all take part in gathering
            chain.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        if is_main and cfg.SOLVER.CHECKPOINTS_KEPT:
            chain.append(KeptCheckpoints(self.checkpointer, cfg.SOLVER.CHECKPOINTS_KEPT))
        chain.append(self._graceful_stop)
        if cfg.DATASETS.TEST:
            chain.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self.evaluate))
        if is_main:
            if cfg.VIS_PERIOD > 0 and not self._is_sharded:  # the first process does not have the model by itself
                chain.append(PredictionPictures(self.model, cfg.DATASETS.TEST, cfg.VIS_PERIOD))
            chain.append(hooks.PeriodicWriter(self.build_writers(), period=WRITE_PERIOD))
            chain.append(TensorBoardEvents(cfg.OUTPUT_DIR, WRITE_PERIOD))
        eval_period = cfg.TEST.EVAL_PERIOD if cfg.DATASETS.TEST else 0
        metrics = os.path.join(cfg.OUTPUT_DIR, "metrics.json")
        chain.append(MetricsFile(metrics, WRITE_PERIOD, eval_period))
        if cfg.TEST.BEST_METRIC:
            chain.append(
                BestCheckpoint(
                    self.checkpointer,
                    metrics,
                    cfg.TEST.BEST_METRIC,
                    mode=cfg.TEST.BEST_MODE,
                    eval_period=eval_period,
                    patience=cfg.SOLVER.EARLY_STOPPING,
                )
            )
        return chain

    def build_writers(self) -> list[EventWriter]:
        """The writer of progress lines. ``metrics.json`` and TensorBoard's events are written by hooks, which handle
        resumed runs."""
        return [TaskProgressPrinter(self.cfg.TASKS.NAMES, self.max_iter)]

    def evaluate(self) -> dict[str, Any]:
        """Evaluate the weights, or their averages if there are any, on ``DATASETS.TEST``. Does nothing once training
        was asked to stop."""
        if self._trainer.stop_agreed:
            return {}
        with self.averaged_weights(), whole_model(self.model):
            self.last_results = self.test(self.cfg, self.model)
        give_back_freed_memory()
        return self.last_results

    def averaged_weights(self) -> contextlib.AbstractContextManager:
        """A context in which the model has the averaged weights, if weights are averaged."""
        return contextlib.nullcontext() if self.averaging is None else self.averaging.applied()

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> dict[str, Any]:
        """As in Detectron2, with four differences: results are by dataset even if there is only one, each kind of
        task prepares its evaluators, the log gets the table of the experts' routes, if the model has experts, and
        answers are computed under autocast with ``TEST.AMP.ENABLED``."""
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
            kinds = [kind_of_dataset(name) for name in cfg.DATASETS.TEST]
            for kind in KINDS.values():
                if own := [evaluator for evaluator, its_kind in zip(evaluators, kinds) if its_kind is kind]:
                    kind.before_evaluation(cfg, model, own)
        if comm.is_main_process() and (routes := expert_routes(model)):
            logger.info("experts of the decoder (weights) for each kind of token:\n%s", routes_table(routes))
        precision = getattr(torch, cfg.SOLVER.AMP.PRECISION) if cfg.TEST.AMP.ENABLED else None
        with answers_under_autocast(model, precision):
            results = super().test(cfg, model, [PatientEvaluator(evaluator) for evaluator in evaluators])
        return {cfg.DATASETS.TEST[0]: results} if len(cfg.DATASETS.TEST) == 1 else results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """:func:`uniperceiver_v2.solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
        """Detectron2's. A subclass may have schedules of its own, under names of its own.

        Raises:
            UserError: there is no such schedule, or it cannot be made of these settings.
        """
        try:
            return super().build_lr_scheduler(cfg, optimizer)
        except ValueError as error:
            raise UserError(f"SOLVER.LR_SCHEDULER_NAME {cfg.SOLVER.LR_SCHEDULER_NAME!r}: {error}") from error

    @classmethod
    def build_task_loader(cls, cfg: CfgNode, task: str, numbers: Iterable[int]) -> Iterable[list[dict[str, Any]]]:
        """This rank's share of a task's batches with these numbers."""
        return build_task_train_loader(cfg, task, numbers)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
        """Batches of a test dataset."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The dataset's evaluator, which writes into ``OUTPUT_DIR/inference/<dataset>``."""
        return build_evaluator(cfg, dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name))
