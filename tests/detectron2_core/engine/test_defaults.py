"""Training, evaluation, checkpoints and prediction from a config, on data in memory."""

import json
import random

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import (
    DefaultPredictor,
    DefaultTrainer,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import CommonMetricPrinter, EventStorage, JSONWriter, TensorboardXWriter
from torch import nn

NAMES = ("line_for_defaults_test", "shifted_line_for_defaults_test")
POINTS = 8


def line(shift):
    return [
        {
            "file_name": str(i),
            "image_id": i,
            "height": 1,
            "width": 1,
            "x": i / 4 - 1,
            "y": 3 * (i / 4 - 1) + shift,
        }
        for i in range(POINTS)
    ]


@META_ARCH_REGISTRY.register()
class LineForDefaultsTest(nn.Module):
    """Learns y = slope * x + shift."""

    def __init__(self, cfg):
        super().__init__()
        self.line = nn.Linear(1, 1)
        self.norm = nn.BatchNorm1d(1)  # on the inputs, for precise BN; the line does not see it
        nn.init.zeros_(self.line.weight)
        nn.init.zeros_(self.line.bias)

    def forward(self, batch):
        x = torch.tensor([[item["x"]] for item in batch])
        y = torch.tensor([[item["y"]] for item in batch])
        predicted = self.line(x)
        if self.training:
            self.norm(x)
            return {"loss_square": (predicted - y).square().mean(), "loss_zero": predicted.sum() * 0}
        return [{"y": value.item()} for value in predicted]


class MeanError(DatasetEvaluator):
    def __init__(self):
        self.reset()

    def reset(self):
        self.errors = []

    def process(self, inputs, outputs):
        self.errors += [abs(item["y"] - out["y"]) for item, out in zip(inputs, outputs, strict=True)]

    def evaluate(self):
        return {"line": {"error": sum(self.errors) / len(self.errors), "points": len(self.errors)}}


class LineTrainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg, mapper=dict)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_detection_test_loader(cfg, dataset_name, mapper=dict)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return MeanError()


class Interrupted(Exception):
    pass


class InterruptedTrainer(LineTrainer):
    def run_step(self):
        if self.iter == 25:
            raise Interrupted
        super().run_step()


@pytest.fixture
def cfg(tmp_path):
    for name, shift in zip(NAMES, (-1, 4), strict=True):
        DatasetCatalog.register(name, lambda shift=shift: line(shift))
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "LineForDefaultsTest"
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TRAIN = NAMES[:1]
    cfg.DATASETS.TEST = NAMES[:1]
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    cfg.SOLVER.IMS_PER_BATCH = POINTS  # every batch is the whole line: their order does not matter
    cfg.SOLVER.BASE_LR = 0.2
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.SOLVER.WARMUP_ITERS = 5
    cfg.SOLVER.WEIGHT_DECAY = 0.0
    cfg.SOLVER.MAX_ITER = 40
    cfg.SOLVER.CHECKPOINT_PERIOD = 20
    cfg.TEST.EVAL_PERIOD = 20
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    yield cfg
    for name in NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)


def read_metrics(output_dir):
    with open(f"{output_dir}/metrics.json") as file:
        return [json.loads(text) for text in file]


def test_default_trainer_trains_evaluates_writes_and_saves(cfg, tmp_path):
    trainer = LineTrainer(cfg)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 0
    trainer.train()

    metrics = read_metrics(cfg.OUTPUT_DIR)
    assert [row["iteration"] for row in metrics] == [19, 39, 40]
    names = {"total_loss", "loss_square", "loss_zero", "lr", "data_time", "time", "eta_seconds"}
    assert names <= metrics[0].keys()
    assert metrics[1]["total_loss"] == pytest.approx(metrics[1]["loss_square"])
    assert metrics[1]["total_loss"] < metrics[0]["total_loss"]
    # The evaluation of iteration 19 is in its own row, the last one in the row after training.
    assert metrics[0]["line/error"] > metrics[2]["line/error"]
    assert "line/error" not in metrics[1]
    assert metrics[2]["line/error"] < 0.3
    assert metrics[2]["line/points"] == POINTS

    files = {path.name for path in (tmp_path / "run").glob("*.pth")}
    assert files == {"model_0000019.pth", "model_0000039.pth", "model_final.pth"}
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final.pth"
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_an_interrupted_training_resumes_to_the_same_end(cfg, tmp_path):
    whole = LineTrainer(cfg)
    whole.train()
    last_rate = read_metrics(cfg.OUTPUT_DIR)[-2]["lr"]

    cfg.OUTPUT_DIR = str(tmp_path / "interrupted")
    first = InterruptedTrainer(cfg)
    with pytest.raises(Interrupted):
        first.train()
    assert (tmp_path / "interrupted" / "last_checkpoint").read_text() == "model_0000019.pth"

    second = LineTrainer(cfg)
    second.resume_or_load(resume=True)
    assert second.start_iter == 20
    second.train()
    for name, value in whole.model.state_dict().items():
        if name.startswith("line."):
            torch.testing.assert_close(second.model.state_dict()[name], value, msg=name)
    metrics = read_metrics(cfg.OUTPUT_DIR)
    assert metrics[-1]["iteration"] == 40
    assert metrics[-2]["lr"] == pytest.approx(last_rate)
    # Momentum and schedule came from the checkpoint: without them the end would be another.
    assert second.scheduler.last_epoch == 40


def test_without_resume_only_the_given_weights_are_taken(cfg, tmp_path):
    trainer = LineTrainer(cfg)
    trainer.train()
    cfg.MODEL.WEIGHTS = str(tmp_path / "run" / "model_final.pth")
    other = LineTrainer(cfg)
    other.resume_or_load(resume=False)
    assert other.start_iter == 0
    torch.testing.assert_close(other.model.line.weight, trainer.model.line.weight)
    assert other.optimizer.state == {}


def test_parts_are_reachable_and_replaceable(cfg):
    trainer = LineTrainer(cfg)
    assert isinstance(trainer.model, LineForDefaultsTest)
    assert isinstance(trainer.optimizer, torch.optim.SGD)
    assert len(next(iter(trainer.data_loader))) == POINTS
    replacement = LineForDefaultsTest(cfg).train()
    trainer.model = replacement
    assert trainer.model is replacement
    seen = []
    trainer.register_hooks([hooks.CallbackHook(after_step=lambda trainer: seen.append(trainer.iter))])
    trainer.train()
    assert seen == list(range(40))


def test_expected_results_are_returned_or_end_the_process(cfg):
    cfg.TEST.EXPECTED_RESULTS = [["line", "points", POINTS, 0.1]]
    assert LineTrainer(cfg).train()["line"]["points"] == POINTS
    cfg.TEST.EXPECTED_RESULTS = [["line", "error", 100.0, 0.1]]
    with pytest.raises(SystemExit):
        LineTrainer(cfg).train()


def test_precise_bn_is_a_setting(cfg):
    cfg.TEST.PRECISE_BN.ENABLED = True
    cfg.TEST.PRECISE_BN.NUM_ITER = 2
    trainer = LineTrainer(cfg)
    trainer.train()
    x = torch.tensor([point["x"] for point in line(0)])
    torch.testing.assert_close(trainer.model.norm.running_mean, x.mean()[None])
    torch.testing.assert_close(trainer.model.norm.running_var, x.var(unbiased=False)[None])


def test_test_takes_one_evaluator_a_dataset(cfg):
    model = LineForDefaultsTest(cfg).eval()
    model.line.weight.data.fill_(3.0)
    cfg.DATASETS.TEST = NAMES
    results = LineTrainer.test(cfg, model)
    # The line y = 3x: its distance is the shift of each dataset.
    assert {name: result["line"]["error"] for name, result in results.items()} == pytest.approx(
        {NAMES[0]: 1, NAMES[1]: 4}
    )
    with pytest.raises(AssertionError):
        LineTrainer.test(cfg, model, evaluators=[MeanError()])
    cfg.DATASETS.TEST = NAMES[1:]
    assert LineTrainer.test(cfg, model, evaluators=MeanError())["line"]["error"] == pytest.approx(4)


def test_without_an_evaluator_the_result_is_empty(cfg):
    class NoEvaluator(LineTrainer):
        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return DefaultTrainer.build_evaluator(cfg, dataset_name)

    assert NoEvaluator.test(cfg, LineForDefaultsTest(cfg)) == {}
    with pytest.raises(NotImplementedError):
        DefaultTrainer.build_evaluator(cfg, NAMES[0])


def test_auto_scale_workers_keeps_the_batch_of_each_process():
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH = 16
    cfg.SOLVER.BASE_LR = 0.1
    cfg.SOLVER.MAX_ITER = 5000
    cfg.SOLVER.WARMUP_ITERS = 100
    cfg.SOLVER.STEPS = (4000, 4501)
    cfg.SOLVER.CHECKPOINT_PERIOD = 1000
    cfg.TEST.EVAL_PERIOD = 500
    assert DefaultTrainer.auto_scale_workers(cfg, 16) is cfg
    cfg.SOLVER.REFERENCE_WORLD_SIZE = 8
    cfg.freeze()
    assert DefaultTrainer.auto_scale_workers(cfg, 8) is cfg
    scaled = DefaultTrainer.auto_scale_workers(cfg, 16)
    assert scaled.is_frozen()
    solver = scaled.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.REFERENCE_WORLD_SIZE) == (32, 0.2, 16)
    assert (solver.MAX_ITER, solver.WARMUP_ITERS, solver.STEPS) == (2500, 50, (2000, 2250))
    assert (solver.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == (500, 250)
    assert cfg.SOLVER.IMS_PER_BATCH == 16
    assert DefaultTrainer.auto_scale_workers(scaled, 8).SOLVER.MAX_ITER == 5000


@META_ARCH_REGISTRY.register()
class EchoForDefaultsTest(nn.Module):
    """Returns its inputs, with its weight."""

    def __init__(self, cfg):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return [{**item, "weight": self.weight, "training": self.training} for item in batch]


@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_default_predictor_resizes_and_orders_channels(tmp_path, image_format):
    torch.save({"model": {"weight": torch.tensor([5.0])}}, tmp_path / "weights.pth")
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "EchoForDefaultsTest"
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    cfg.DATASETS.TEST = ()
    cfg.INPUT.FORMAT = image_format
    cfg.INPUT.MIN_SIZE_TEST = 40
    cfg.INPUT.MAX_SIZE_TEST = 60
    path = str(tmp_path / "blue.png")
    cv2.imwrite(path, np.full((20, 100, 3), (255, 0, 0), np.uint8))
    output = DefaultPredictor(cfg)(cv2.imread(path))
    # 100 x 20: the longer side is limited to 60.
    assert output["image"].shape == (3, 12, 60)
    assert (output["height"], output["width"]) == (20, 100)
    blue = {"BGR": 0, "RGB": 2}[image_format]
    assert [output["image"][c].max().item() for c in range(3)] == [255 if c == blue else 0 for c in range(3)]
    assert output["weight"].item() == 5.0
    assert not output["training"] and not output["weight"].grad_fn


def test_argument_parser():
    parse = default_argument_parser().parse_args
    args = parse([])
    assert (args.config_file, args.resume, args.eval_only, args.opts) == ("", False, False, [])
    assert (args.num_gpus, args.num_machines, args.machine_rank) == (1, 1, 0)
    assert args.dist_url.startswith("tcp://127.0.0.1:")
    assert 1024 < int(args.dist_url.rsplit(":", 1)[1]) < 65536
    args = parse(["--config-file", "a.yaml", "--resume", "--num-gpus", "2", "SOLVER.MAX_ITER", "5"])
    assert (args.config_file, args.resume, args.num_gpus) == ("a.yaml", True, 2)
    assert args.opts == ["SOLVER.MAX_ITER", "5"]
    assert "see the manual" in default_argument_parser("see the manual").format_help()


@pytest.fixture
def restored_benchmark_flag():
    before = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = before


def test_default_setup_records_and_seeds(tmp_path, restored_benchmark_flag):
    config_file = tmp_path / "given.yaml"
    config_file.write_text("SEED: 7\nCUDNN_BENCHMARK: True\n")
    cfg = get_cfg()
    cfg.merge_from_file(str(config_file))
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    args = default_argument_parser().parse_args(["--config-file", str(config_file), "MODEL.MASK_ON", "True"])

    def numbers():
        return random.random(), np.random.rand(), torch.rand(1).item()

    default_setup(cfg, args)
    first = numbers()
    assert torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    args.eval_only = True
    default_setup(cfg, args)
    assert numbers() == first
    assert not torch.backends.cudnn.benchmark

    saved = get_cfg()
    saved.merge_from_file(str(tmp_path / "run" / "config.yaml"))
    for key in ("SEED", "CUDNN_BENCHMARK", "OUTPUT_DIR", "DATASETS", "SOLVER", "TEST"):
        assert saved[key] == cfg[key], key
    log = (tmp_path / "run" / "log.txt").read_text()
    assert str(config_file) in log and "MODEL.MASK_ON" in log and torch.__version__ in log


def test_default_writers(tmp_path):
    writers = default_writers(str(tmp_path / "run"), 10)
    assert [type(writer) for writer in writers] == [CommonMetricPrinter, JSONWriter, TensorboardXWriter]
    with EventStorage(3) as storage:
        storage.put_scalar("total_loss", 0.5)
        for writer in writers:
            writer.write()
            writer.close()
    assert read_metrics(tmp_path / "run") == [{"iteration": 3, "total_loss": 0.5}]
    assert list((tmp_path / "run").glob("events.out.tfevents.*"))


def test_one_process_needs_no_ddp():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model, broadcast_buffers=False) is model
