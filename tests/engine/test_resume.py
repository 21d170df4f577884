"""An interrupted and resumed run gives the same bytes as an uninterrupted one: weights, optimizer, metrics."""

import json
from pathlib import Path

import pytest
import torch

from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.engine.metrics import reproducible


def train(cfg, resume: bool, until: int | None = None) -> None:
    """Trains to the end, or only the first iterations of the same run."""
    trainer = UniPerceiverTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    if until is not None:
        trainer.max_iter = until  # the schedule of the learning rate stays that of the whole run
    trainer.train()


def settings(cfg, folder: Path, workers: int):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    cfg.DATALOADER.NUM_WORKERS = workers
    return cfg


def outcome(folder: Path) -> tuple[dict, list[dict]]:
    checkpoint = torch.load(folder / "model_final.pth", weights_only=True)
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return checkpoint, [reproducible(row) for row in rows]


def assert_same(a, b, where="") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for index, pair in enumerate(zip(a, b)):
            assert_same(*pair, f"{where}[{index}]")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_halves_with_any_number_of_workers_are_the_whole(real_cfg, processes, tmp_path, ranks):
    def runs() -> None:
        torch.manual_seed(0)
        train(settings(real_cfg, tmp_path / "whole", 0), resume=False)
        for workers in (0, 1, 3):
            cfg = settings(real_cfg, tmp_path / f"halves{workers}", workers)
            torch.manual_seed(0)
            train(cfg, resume=False, until=5)
            torch.manual_seed(1)  # nothing may be left to the state of a generator
            train(cfg, resume=True)

    for pid in processes.fork_ranks(runs, tmp_path, ranks):
        assert processes.exit_code(pid) == 0
    whole = outcome(tmp_path / "whole")
    assert len(whole[1]) >= 1
    for workers in (0, 1, 3):
        assert_same(whole, outcome(tmp_path / f"halves{workers}"))
