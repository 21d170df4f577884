"""Parameters and states that are divided among ranks: training gives the weights of ranks that have all of them."""

import json
import os
import signal
import sys
import types
from argparse import Namespace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

import train_net
from uniperceiver_v2.checkpoint.parts import read_parts
from uniperceiver_v2.config.checks import check_config
from uniperceiver_v2.engine import UniPerceiverTrainer, sharding
from uniperceiver_v2.engine import trainer as trainer_module
from uniperceiver_v2.engine.schedules import TaskSchedule
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.layers import WeightCache
from uniperceiver_v2.shards import whole
from uniperceiver_v2.solver.build import sampling_ratios

from .divided import needs_support


class Exact(UniPerceiverTrainer):
    """All in float64, so that sums in another order give the same numbers."""

    @classmethod
    def build_model(cls, cfg):
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double
        return super().build_model(cfg).double()


def train(cfg, folder: Path, until: int, how: str, resume: bool, trainer_class=Exact):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR, cfg.SOLVER.SHARDING = str(folder), how
    torch.manual_seed(comm.get_rank())
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = until
    trainer.train()
    return trainer


def tensors(state, where: str = "") -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {where: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    return {name: value for key, inner in items for name, value in tensors(inner, f"{where}/{key}").items()}


def final(folder: Path, name: str = "model_final") -> dict[str, torch.Tensor]:
    file = folder / f"{name}.pth"
    return tensors(torch.load(file, weights_only=True) if file.exists() else read_parts(str(folder / name)))


def values(folder: Path, name: str) -> list[float]:
    """Of a scalar, from the metrics of a run."""
    rows = [json.loads(row) for row in (folder / "metrics.json").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


def run(processes, tmp_path, ranks: int, work) -> None:
    assert [processes.exit_code(pid) for pid in processes.fork_ranks(work, tmp_path, ranks)] == [0] * ranks


# The ranks of each part of a run, and how they divide the model.
PARTS = [(2, "full"), (4, "hybrid"), (1, "full")]
LENGTH = 3
SEED = 120  # draws every task in the first two parts


@needs_support
def test_ranks_that_divide_the_model_train_it_as_ranks_that_do_not(real_cfg, processes, tmp_path):
    """All tasks, in three parts with other numbers of ranks, averages and moments included. Of the divided ones one run
    writes files, the other directories of parts, and they have the same bits."""
    cfg = real_cfg
    cfg.SEED, cfg.SOLVER.MAX_ITER = SEED, LENGTH * len(PARTS)
    schedule = TaskSchedule(sampling_ratios(cfg), cfg.SEED)
    assert {schedule.task_at(t) for t in range(LENGTH * 2)} == set(cfg.TASKS.NAMES)
    for number, (ranks, how) in enumerate(PARTS):

        def work(until: int = LENGTH * (number + 1), how: str = how) -> None:
            if how == "hybrid":
                comm.get_local_size = lambda: 2  # as on two machines
            for folder in ("none", "divided", "parts"):
                cfg.SOLVER.CHECKPOINT_FORMAT = "parts" if folder == "parts" else "file"
                trainer = train(cfg, tmp_path / folder, until, "none" if folder == "none" else how, resume=True)
                divided = [p for p in trainer.model.parameters() if hasattr(p, "to_local")]
                assert bool(divided) == (folder != "none" and comm.get_world_size() > 1)
                if divided:
                    share = sum(p.to_local().numel() for p in divided) / sum(p.numel() for p in divided)
                    assert 0.3 < share < 0.7  # of two ranks, or of two on each machine

        run(processes, tmp_path, ranks, work)
        none, divided, parts = (final(tmp_path / folder) for folder in ("none", "divided", "parts"))
        assert divided.keys() == parts.keys() and all(torch.equal(divided[key], parts[key]) for key in divided)
        assert none.keys() == divided.keys() and len(none) > 1000
        for key, value in none.items():
            torch.testing.assert_close(divided[key], value, rtol=1e-7, atol=1e-10, msg=lambda text, key=key: key + text)
    one, other = (values(tmp_path / folder, "total_loss") for folder in ("none", "divided"))
    assert one and one == pytest.approx(other, rel=1e-6)


def settings(cfg, folder: Path, how: str, *changes):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR, cfg.SOLVER.SHARDING, cfg.SOLVER.MAX_ITER = str(folder), how, 20
    cfg.merge_from_list(changes)
    return cfg


def go_on(trainer_class, cfg):
    torch.manual_seed(0)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer


@needs_support
def test_divided_models_are_evaluated_and_written_as_whole_ones(toy_trainer, cfg, processes, tmp_path):
    best = ("TEST.BEST_METRIC", "toy_lines_test/lines/error", "TEST.BEST_MODE", "min", "TEST.EVAL_PERIOD", 5)
    writing = ("SOLVER.CHECKPOINTS_KEPT", 1, "SOLVER.CHECKPOINT_PERIOD", 4, "SOLVER.CHECKPOINTS_IN_BACKGROUND", True)

    def work() -> None:
        for how in ("none", "full"):
            go_on(toy_trainer, settings(cfg, tmp_path / how, how, *best, *writing))

    run(processes, tmp_path, 2, work)
    none, full = (sorted(path.name for path in (tmp_path / how).glob("*.pth")) for how in ("none", "full"))
    assert none == full == ["model_0000019.pth", "model_best.pth", "model_final.pth"]
    for name in ("model_best", "model_final"):
        one, other = (final(tmp_path / how, name) for how in ("none", "full"))
        assert one.keys() == other.keys()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    one, other = (values(tmp_path / how, "toy_lines_test/lines/error") for how in ("none", "full"))
    assert len(one) == 4 and one == pytest.approx(other, rel=1e-4)


@needs_support
@pytest.mark.parametrize(("how", "form"), [("none", "file"), ("full", "file"), ("full", "parts")])
def test_early_stopping_writes_the_final_checkpoint_of_all_processes(toy_trainer, cfg, processes, tmp_path, how, form):
    """The processes that have only a part of the model help the first one, which alone knows the metric."""

    class Worsening(toy_trainer):
        def evaluate(self):
            self.last_results = {"toy_lines_test": {"lines": {"error": float(self.iter)}}}
            return self.last_results if comm.is_main_process() else {}

    best = ("TEST.BEST_METRIC", "toy_lines_test/lines/error", "TEST.BEST_MODE", "min", "TEST.EVAL_PERIOD", 3)
    own = settings(cfg, tmp_path / "run", how, *best, "SOLVER.EARLY_STOPPING", 1, "SOLVER.CHECKPOINT_FORMAT", form)
    written = tmp_path / "run" / ("model_final" if form == "parts" else "model_final.pth")

    def work() -> None:
        assert go_on(Worsening, own).iter == 5
        moment = written.stat().st_mtime_ns
        assert go_on(Worsening, own).iter == 5  # resumed after its end, it keeps its last checkpoint
        assert written.stat().st_mtime_ns == moment

    run(processes, tmp_path, 2, work)
    assert (tmp_path / "run" / "last_checkpoint").read_text() == written.name
    assert len(final(tmp_path / "run")) >= 4


@needs_support
def test_a_divided_run_ends_with_its_report(real_cfg, processes, tmp_path, monkeypatch):
    """The first process alone draws, with the whole model."""
    cfg = settings(real_cfg, tmp_path / "run", "full", "SOLVER.MAX_ITER", 1, "SOLVER.WARMUP_ITERS", 0)
    cfg.DATASETS.TEST, cfg.TASKS.NAMES = ("small_digit_scenes_test",), ["scenes"]
    monkeypatch.setattr(train_net, "configuration", lambda args: cfg)
    arguments = Namespace(config_file="", eval_only=False, resume=False)
    run(processes, tmp_path, 2, lambda: train_net.main(arguments))
    assert list((tmp_path / "run" / "visualization").rglob("*.png")) and (tmp_path / "run" / "results.json").exists()
    assert (tmp_path / "run" / "report.html").exists()


@needs_support
def test_values_that_depend_on_weights_are_not_kept_longer_than_the_weights(
    toy_trainer, cfg, processes, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.nn.Parameter, "data_ptr", lambda _: 0)  # all gatherings into the same memory

    class Remembering(toy_trainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            model.seen, model.made, usual = [], [], model.forward
            cache = WeightCache([model.shared])  # no attribute of a module, as the cache of the decoder's routes

            def make():
                model.made.append(model.shared.weight.sum().item())
                return model.made[-1]

            def forward(batch):
                with torch.no_grad():
                    model.seen.append(cache.get("sum", make))
                return usual(batch)

            model.forward = forward
            return model

    def work() -> None:
        none, full = (
            go_on(Remembering, settings(cfg, tmp_path / how, how, "TEST.EVAL_PERIOD", 5)).model
            for how in ("none", "full")
        )
        assert len(none.seen) == 20 + 4 * 3 and len(set(none.seen)) > 20
        assert none.seen == pytest.approx(full.seen, rel=1e-4)
        assert len(none.made) == len(full.made) == 20 + 4  # an evaluation of three images makes it once

    run(processes, tmp_path, 2, work)


@needs_support
def test_the_groups_of_machines_have_the_time_limit_of_the_run(toy_trainer, cfg, processes, tmp_path, monkeypatch):
    monkeypatch.setattr(comm, "get_local_size", lambda: 2)

    def work() -> None:
        own = settings(cfg, tmp_path / "run", "hybrid", "PROCESSES.TIMEOUT", 77)
        mesh = toy_trainer(own).model.shared.weight.device_mesh
        for group in mesh.get_all_groups():
            assert group.size() == 2
            assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=77)

    run(processes, tmp_path, 4, work)


@needs_support
def test_a_signal_leaves_a_checkpoint_of_all_parts(toy_trainer, cfg, processes, tmp_path):
    class Stopped(toy_trainer):
        def run_step(self):
            if self.iter == 7 and comm.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            super().run_step()

    for folder, trainer_class, code in (
        ("whole", toy_trainer, 0),
        ("halves", Stopped, 143),
        ("halves", toy_trainer, 0),
    ):
        own = settings(cfg, tmp_path / folder, "full")
        pids = processes.fork_ranks(lambda own=own, kind=trainer_class: go_on(kind, own), tmp_path)
        assert [processes.exit_code(pid) for pid in pids] == [code] * 2
        if code:
            assert Path(own.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000007.pth"
    whole, halves = (final(tmp_path / folder) for folder in ("whole", "halves"))
    assert whole.keys() == halves.keys() and all(torch.equal(whole[key], halves[key]) for key in whole)


@needs_support
def test_pretrained_parts_reach_all_ranks(toy_trainer, cfg, processes, tmp_path, monkeypatch):
    def load(cfg, model) -> None:
        torch.nn.init.constant_(model.shared.weight, 3 + comm.get_rank())

    monkeypatch.setattr(trainer_module, "load_pretrained_parts", load)

    def work() -> None:
        trainer = toy_trainer(settings(cfg, tmp_path / "new", "full"))
        line = whole(trainer.model.line.weight).clone()
        trainer.resume_or_load(resume=False)
        assert torch.equal(whole(trainer.model.shared.weight), torch.full((4, 4), 3.0))  # the first one's
        assert torch.equal(whole(trainer.model.line.weight), line)

    run(processes, tmp_path, 2, work)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["SOLVER.SHARDING", "some"], "SOLVER.SHARDING"),
        (["SOLVER.OPTIMIZER", "AdamW"], "needs SOLVER.OPTIMIZER 'TaskBalancedAdamW', not 'AdamW'"),
        (["SOLVER.TASK_GROUPS", 2], "needs SOLVER.TASK_GROUPS 1, not 2"),
        (["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.PRECISION", "float16"], "needs SOLVER.AMP.PRECISION 'bfloat16'"),
    ],
)
def test_settings_that_do_not_go_with_it(cfg, tmp_path, changes, message):
    for task in cfg.TASKS.NAMES:
        cfg.TASKS[task].DATASETS = ["toy_lines_test"]
    check_config(settings(cfg, tmp_path, "full"), training=True, world_size=2)
    with pytest.raises(UserError, match=message):
        check_config(settings(cfg, tmp_path, "full", *changes), training=True, world_size=2)


def test_an_old_pytorch_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", types.ModuleType("torch.distributed.fsdp"))
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    assert not sharding.shard_model(torch.nn.Linear(2, 2), "none")
    with pytest.raises(UserError, match=r"SOLVER.SHARDING needs a newer PyTorch than"):
        sharding.shard_model(torch.nn.Linear(2, 2), "full")
