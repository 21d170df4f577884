"""Kills, signals and full disks in the middle of a run. It must end with the same bytes as an undisturbed run.

``make test-faults`` runs the long campaign (tests/faults).
"""

import contextlib
import os
import random
import resource
import signal
import time
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.engine import UniPerceiverTrainer, run_in_processes


def train(cfg, trainer_class=UniPerceiverTrainer) -> None:
    torch.manual_seed(0)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


def settings(cfg, folder: Path, **solver):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    cfg.SOLVER.update(solver)
    return cfg


def weights(folder: Path, name: str = "model_final") -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / f"{name}.pth", weights_only=True)
    optimizer = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    moments = {f"{p} {key}": value for p, state in optimizer.items() for key, value in state.items()}
    return {**checkpoint["model"], **checkpoint["trainer"]["hooks"]["WeightAveraging"]["weights"], **moments}


def assert_same_weights(a: Path, b: Path) -> None:
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_killed_at_random_moments_ends_as_one_that_was_not(real_cfg, processes, tmp_path):
    spared, killed = (settings(real_cfg, tmp_path / name, CHECKPOINT_PERIOD=2) for name in ("spared", "killed"))
    start = time.perf_counter()
    assert processes.exit_code(processes.fork(lambda: train(spared))) == 0
    duration = time.perf_counter() - start
    moments, kills, over = random.Random(0), 0, 0
    while kills < 4:
        killed.SOLVER.CHECKPOINTS_IN_BACKGROUND = kills >= 2
        pid = processes.fork(lambda: train(killed))
        deadline = time.perf_counter() + moments.uniform(0.2, 0.7) * duration
        in_checkpoint = kills % 2  # every other time wait for a checkpoint that is being written
        while time.perf_counter() < deadline or in_checkpoint:
            if in_checkpoint and list((tmp_path / "killed").glob(".*.tmp")):
                break
            if os.waitpid(pid, os.WNOHANG) != (0, 0):
                pid = None
                break
            time.sleep(0.001)
        if pid is None:  # the machine was busier when the duration was measured
            over, duration = over + 1, duration / 2
            assert over < 5, "the runs are over before they are killed"
        else:
            os.kill(pid, signal.SIGKILL)
            assert processes.exit_code(pid) == -signal.SIGKILL
            kills += 1
        for name in (tmp_path / "killed").glob("last_checkpoint"):
            weights(tmp_path / "killed", Path(name.read_text()).stem)  # it can be read
            if (tmp_path / "killed" / "model_final.pth").exists():
                (tmp_path / "killed" / "model_final.pth").unlink()
                name.write_text("model_0000001.pth")
    assert processes.exit_code(processes.fork(lambda: train(killed))) == 0
    assert_same_weights(tmp_path / "spared", tmp_path / "killed")


def signalled(number: int, iteration: int, rank: int = 0):
    """A trainer. Its process gets a signal in a given iteration."""

    class Signalled(UniPerceiverTrainer):
        def run_step(self):
            if self.iter == iteration and comm.get_rank() == rank:
                os.kill(os.getpid(), number)
            super().run_step()

    return Signalled


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_and_tells_by_the_exit_code(real_cfg, processes, tmp_path, number, code):
    cfg = settings(real_cfg, tmp_path / "stopped")
    assert processes.exit_code(processes.fork(lambda: train(cfg, signalled(number, 4)))) == code
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000004.pth"
    assert processes.exit_code(processes.fork(lambda: train(cfg))) == 0
    spared = settings(real_cfg, tmp_path / "spared")
    assert processes.exit_code(processes.fork(lambda: train(spared))) == 0
    assert_same_weights(tmp_path / "spared", tmp_path / "stopped")


def test_a_signal_to_one_rank_stops_all_with_one_checkpoint(real_cfg, processes, tmp_path):
    cfg = settings(real_cfg, tmp_path / "stopped")
    pids = processes.fork_ranks(lambda: train(cfg, signalled(signal.SIGUSR1, 3, rank=1)), tmp_path)
    assert [processes.exit_code(pid) for pid in pids] == [138, 138]
    assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000003.pth"


def test_a_signal_in_the_last_iteration_leaves_the_final_model_and_no_evaluation(toy_trainer, cfg, processes, tmp_path):
    class Signalled(toy_trainer):
        def run_step(self):
            if self.iter + 1 == self.max_iter:
                os.kill(os.getpid(), signal.SIGTERM)
            super().run_step()

        @classmethod
        def test(cls, cfg, model, evaluators=None):
            (tmp_path / "evaluated").touch()
            return {}

    assert processes.exit_code(processes.fork(lambda: train(cfg, Signalled))) == 143
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_final.pth"
    assert not (tmp_path / "evaluated").exists()


def test_a_second_interrupt_ends_the_process_at_once(toy_trainer, cfg, processes):
    class Impatient(toy_trainer):
        def run_step(self):
            if self.iter == 5:
                for _ in range(2):
                    os.kill(os.getpid(), signal.SIGINT)
            super().run_step()

    assert processes.exit_code(processes.fork(lambda: train(cfg, Impatient))) == 130
    assert not Path(cfg.OUTPUT_DIR, "last_checkpoint").exists()


def test_an_interrupt_of_the_terminal_reaches_the_datas_workers_and_does_no_harm(real_cfg, processes, tmp_path):
    cfg = settings(real_cfg, tmp_path / "out")
    cfg.DATALOADER.NUM_WORKERS = 1

    class Interrupted(UniPerceiverTrainer):
        def run_step(self):
            if self.iter == 4:
                os.killpg(os.getpgrp(), signal.SIGINT)  # as Ctrl-C does
            super().run_step()

    def in_a_group_of_its_own() -> None:
        os.setpgrp()
        train(cfg, Interrupted)

    assert processes.exit_code(processes.fork(in_a_group_of_its_own)) == 130
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000004.pth"


def test_handlers_are_put_back(toy_trainer, cfg):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    train(cfg, toy_trainer)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_full_disk_leaves_the_previous_checkpoint_and_says_so(real_cfg, processes, tmp_path):
    """A limit on file sizes stands for a full disk: no file may be longer than half a checkpoint."""
    cfg = settings(real_cfg, tmp_path / "out", CHECKPOINT_PERIOD=2)

    def fill_the_disk() -> None:
        class Filled(UniPerceiverTrainer):
            def run_step(self):
                if self.iter == 5:
                    size = (tmp_path / "out" / "model_0000003.pth").stat().st_size
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
                super().run_step()

        args = Namespace(num_gpus=1, num_machines=1, resume=False)
        with open(tmp_path / "stderr", "w") as file, contextlib.redirect_stderr(file):
            code = run_in_processes(lambda args: train(cfg, Filled), args, cfg)
        raise SystemExit(code)

    assert processes.exit_code(processes.fork(fill_the_disk)) == 1
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert last.startswith(f"error: cannot write {tmp_path / 'out' / 'model_0000005.pth'}")
    assert last.endswith("older checkpoints are untouched")
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000003.pth"
    assert not list((tmp_path / "out").glob(".*.tmp"))
    assert AtomicCheckpointer(UniPerceiverTrainer.build_model(cfg), cfg.OUTPUT_DIR).resume_or_load("", resume=True)
    assert processes.exit_code(processes.fork(lambda: train(cfg))) == 0
    spared = settings(real_cfg, tmp_path / "spared")
    assert processes.exit_code(processes.fork(lambda: train(spared))) == 0
    assert_same_weights(tmp_path / "spared", tmp_path / "out")
