"""The standard way of training and predicting."""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict

import detectron2.data.transforms as T
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules

from . import hooks
from ._setup import create_ddp_model, default_argument_parser, default_setup, default_writers
from .train_loop import AMPTrainer, SimpleTrainer, TrainerBase

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]


class DefaultPredictor:
    """The config's model with ``cfg.MODEL.WEIGHTS``, for single images.

    Images are BGR regardless of ``cfg.INPUT.FORMAT``. They are resized by ``cfg.INPUT.{MIN,MAX}_SIZE_TEST``.

    Attributes:
        metadata: the metadata of the first dataset of ``cfg.DATASETS.TEST``, if there is one.
    """

    def __init__(self, cfg):
        self.cfg = cfg.clone()  # a model may change its config
        self.model = build_model(self.cfg)
        self.model.eval()
        if len(cfg.DATASETS.TEST):
            self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        DetectionCheckpointer(self.model).load(cfg.MODEL.WEIGHTS)
        self.aug = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        assert self.input_format in ["RGB", "BGR"], self.input_format

    def __call__(self, original_image):
        """
        Args:
            original_image: uint8 array [H,W,3], BGR.

        Returns:
            The model's output for this image.
        """
        with torch.no_grad():
            if self.input_format == "RGB":
                original_image = original_image[:, :, ::-1]
            height, width = original_image.shape[:2]
            image = self.aug.get_transform(original_image).apply_image(original_image)
            image = torch.as_tensor(image.astype("float32").transpose(2, 0, 1))
            return self.model([{"image": image, "height": height, "width": width}])[0]


def _of_inner_trainer(name: str) -> property:
    def get_it(self):
        return getattr(self._trainer, name)

    def set_it(self, value):
        setattr(self._trainer, name, value)

    return property(get_it, set_it)


class DefaultTrainer(TrainerBase):
    """A :class:`SimpleTrainer` or :class:`AMPTrainer` with all parts built from the config.

    ::

        trainer = DefaultTrainer(cfg)
        trainer.resume_or_load()
        trainer.train()

    To use other parts, override the ``build_*`` methods.

    Attributes:
        cfg: CfgNode, after :meth:`auto_scale_workers`.
        scheduler: the scheduler of the learning rate.
        checkpointer: a ``DetectionCheckpointer`` of model and trainer in ``cfg.OUTPUT_DIR``.
        model, data_loader, optimizer: those of the inner trainer.
    """

    model = _of_inner_trainer("model")
    data_loader = _of_inner_trainer("data_loader")
    optimizer = _of_inner_trainer("optimizer")

    def __init__(self, cfg):
        super().__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()  # the caller did not call default_setup
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())

        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer)

        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume=True):
        """Resume from the last checkpoint in ``cfg.OUTPUT_DIR``: weights, optimizer, hooks and iteration.

        Without ``resume``, or without a checkpoint, load the weights of ``cfg.MODEL.WEIGHTS`` and start from the
        beginning.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            # A checkpoint has the number of its last finished iteration.
            self.start_iter = self.iter + 1

    def build_hooks(self):
        """The hooks of the config: timing, learning rate, precise BN, checkpoints, evaluation, writers.

        The order matters. A checkpoint has the statistics of precise BN and the scheduler's state, and is written
        before an evaluation, which may fail. The writers come after the evaluation, so that they find its results.
        """
        cfg = self.cfg
        ret = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            ret.append(self._build_precise_bn())
        if comm.is_main_process():
            ret.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))

        def test_and_save_results():
            self._last_eval_results = self.test(self.cfg, self.model)
            return self._last_eval_results

        ret.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test_and_save_results))
        if comm.is_main_process():
            ret.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return ret

    def _build_precise_bn(self):
        # A separate loader, which does not change the batches of training. It has no workers, which saves memory.
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0
        return hooks.PreciseBN(
            cfg.TEST.EVAL_PERIOD, self.model, self.build_train_loader(cfg), cfg.TEST.PRECISE_BN.NUM_ITER
        )

    def build_writers(self):
        """The writers, :func:`default_writers` by default."""
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def train(self):
        """Run the training.

        Returns:
            The results of the last evaluation, on the main process, if ``cfg.TEST.EXPECTED_RESULTS`` is not empty. If
            they differ from the expected results, the process exits.
        """
        super().train(self.start_iter, self.max_iter)
        if len(self.cfg.TEST.EXPECTED_RESULTS) and comm.is_main_process():
            assert hasattr(self, "_last_eval_results"), "No evaluation results obtained during training!"
            verify_results(self.cfg, self._last_eval_results)
            return self._last_eval_results

    def run_step(self):
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def state_dict(self):
        return {**super().state_dict(), "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    @classmethod
    def build_model(cls, cfg):
        """The model, :func:`detectron2.modeling.build_model` by default."""
        model = build_model(cfg)
        logging.getLogger(__name__).info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        """The optimizer, :func:`detectron2.solver.build_optimizer` by default."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        """The learning rate's scheduler, :func:`detectron2.solver.build_lr_scheduler` by default."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        """Batches to train on, :func:`detectron2.data.build_detection_train_loader` by default."""
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        """Batches of a test dataset, :func:`detectron2.data.build_detection_test_loader` by default."""
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        """The ``DatasetEvaluator`` of a test dataset. There is no default.

        Raises:
            NotImplementedError: always. A subclass must override this method to evaluate.
        """
        raise NotImplementedError("Override build_evaluator() to let DefaultTrainer evaluate.")

    @classmethod
    def test(cls, cfg, model, evaluators=None):
        """Evaluate the model with its present weights on every dataset of ``cfg.DATASETS.TEST``.

        Args:
            cfg: CfgNode.
            model: the model. No weights are loaded.
            evaluators: one for each dataset, or a single one if there is a single dataset. The default is
                :meth:`build_evaluator`. A dataset without an evaluator has the result ``{}``.

        Returns:
            Results by dataset name, or the results themselves if there is one dataset.
        """
        logger = logging.getLogger(__name__)
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        names = cfg.DATASETS.TEST
        if evaluators is not None:
            assert len(names) == len(evaluators), f"{len(names)} != {len(evaluators)}"

        results = OrderedDict()
        for index, name in enumerate(names):
            data_loader = cls.build_test_loader(cfg, name)
            try:
                evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[index]
            except NotImplementedError:
                logger.warning("No evaluator for %s: give test() evaluators or override build_evaluator().", name)
                results[name] = {}
                continue
            results[name] = inference_on_dataset(model, data_loader, evaluator)
            if comm.is_main_process():
                assert isinstance(results[name], dict), (
                    f"Evaluator must return a dict on the main process. Got {results[name]} instead."
                )
                logger.info("Evaluation results for %s in csv format:", name)
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg, num_workers: int):
        """Adapt a config for ``cfg.SOLVER.REFERENCE_WORLD_SIZE`` processes to ``num_workers`` processes.

        With r times as many processes, the total batch size and the learning rate are multiplied by r. Iterations,
        warm-up, steps and periods are divided by r. So each process has the same batch size as before, and training
        sees the same number of images.

        Returns:
            A new config, or the given one if the reference is 0 or equals ``num_workers``.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        assert cfg.SOLVER.IMS_PER_BATCH % reference == 0, "Invalid REFERENCE_WORLD_SIZE in config!"
        frozen = cfg.is_frozen()
        cfg = cfg.clone()
        cfg.defrost()
        solver = cfg.SOLVER
        scale = num_workers / reference
        solver.REFERENCE_WORLD_SIZE = num_workers
        solver.IMS_PER_BATCH = round(solver.IMS_PER_BATCH * scale)
        solver.BASE_LR *= scale
        solver.MAX_ITER = round(solver.MAX_ITER / scale)
        solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / scale)
        solver.STEPS = tuple(round(step / scale) for step in solver.STEPS)
        solver.CHECKPOINT_PERIOD = round(solver.CHECKPOINT_PERIOD / scale)
        cfg.TEST.EVAL_PERIOD = round(cfg.TEST.EVAL_PERIOD / scale)
        logging.getLogger(__name__).info(
            "Scaled the config to %d processes: batch size %d, learning rate %g, %d iterations",
            num_workers,
            solver.IMS_PER_BATCH,
            solver.BASE_LR,
            solver.MAX_ITER,
        )
        if frozen:
            cfg.freeze()
        return cfg
