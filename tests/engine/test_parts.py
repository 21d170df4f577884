"""Checkpoints in parts: each process writes its own, and any number of processes goes on from them."""

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from uniperceiver_v2.checkpoint import parts
from uniperceiver_v2.checkpoint.parts import read_parts
from uniperceiver_v2.engine import sharding
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.reading import read_tensors


def is_supported() -> bool:
    try:
        sharding._fully_shard()
    except UserError:
        return False
    return True


pytestmark = pytest.mark.skipif(not is_supported(), reason="this PyTorch cannot divide such a model")

PERIOD = 8  # iterations between checkpoints


def settings(cfg, folder: Path, form: str, how: str = "full", in_background: bool = False, *changes):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR, cfg.SOLVER.CHECKPOINT_FORMAT, cfg.SOLVER.SHARDING = str(folder), form, how
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 20, PERIOD
    cfg.SOLVER.CHECKPOINTS_IN_BACKGROUND = in_background
    cfg.merge_from_list(changes)
    return cfg


def train(trainer_class, cfg, until: int | None = None, resume: bool = True):
    torch.manual_seed(0)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = until or cfg.SOLVER.MAX_ITER
    trainer.train()
    return trainer


def run(processes, tmp_path, ranks: int, *works) -> None:
    def work() -> None:
        for each in works:
            each()

    assert [processes.exit_code(pid) for pid in processes.fork_ranks(work, tmp_path, ranks)] == [0] * ranks


def tensors(state, where: str = "") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    parts.map_tensors(state, found.setdefault, where)
    return found


def same(one, other) -> None:
    """Two states are equal to the bit."""
    one, other = tensors(one), tensors(other)
    assert one.keys() == other.keys() and len(one) >= 4
    assert all(value.dtype == other[key].dtype and torch.equal(value, other[key]) for key, value in one.items())


def content(path: Path) -> dict:
    return read_parts(str(path)) if path.is_dir() else read_tensors(str(path))


@pytest.fixture
def written(toy_trainer, cfg, processes, tmp_path) -> Path:
    """A run of two processes that has ended, with checkpoints after 8, 16 and 20 iterations."""
    run(processes, tmp_path, 2, lambda: train(toy_trainer, settings(cfg, tmp_path / "run", "parts")))
    return tmp_path / "run"


@pytest.mark.parametrize(("how", "in_background"), [("full", True), ("hybrid", False)])
def test_any_number_of_processes_goes_on_as_from_one_file(
    toy_trainer, cfg, processes, tmp_path, monkeypatch, how, in_background
):
    ranks = 2 if how == "full" else 4
    monkeypatch.setattr(comm, "get_local_size", lambda: min(2, comm.get_world_size()))

    def start(form: str, until: int | None = None) -> None:
        train(toy_trainer, settings(cfg, tmp_path / form, form, how, in_background), until)

    run(processes, tmp_path, ranks, lambda: start("file"), lambda: start("parts", until=PERIOD * 2))
    assert (tmp_path / "parts" / "last_checkpoint").read_text() == "model_final"
    assert not list((tmp_path / "parts").glob("*.pth")) and not list((tmp_path / "parts").glob(".*"))
    for name in (f"model_{PERIOD - 1:07d}", f"model_{PERIOD * 2 - 1:07d}"):
        files = {path.name for path in (tmp_path / "parts" / name).iterdir()}
        assert {f"__{rank}_0.distcp" for rank in range(ranks if how == "full" else 2)} <= files
        same(content(tmp_path / "parts" / name), content(tmp_path / "file" / f"{name}.pth"))
    for folder in ("single", "both"):
        shutil.copytree(tmp_path / "parts", tmp_path / folder)
    # The same number of processes ends as the undisturbed run.
    run(processes, tmp_path, ranks, lambda: start("parts"))
    same(content(tmp_path / "parts" / "model_final"), content(tmp_path / "file" / "model_final.pth"))
    # Other numbers sum in another order, so they are compared with runs that go on from one file.
    name = f"model_{PERIOD * 2 - 1:07d}"
    for folder, others, sharded in (("single", 1, "none"), ("single", 1, "full"), ("both", 2, "none")):
        for form in ("file", "parts"):
            source = tmp_path / form / (f"{name}.pth" if form == "file" else name)
            target = tmp_path / f"{folder}_{sharded}_{form}"
            target.mkdir()
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target / source.name)
            (target / "last_checkpoint").write_text(source.name)
            own = settings(cfg, target, "file", sharded)
            run(processes, tmp_path, others, lambda own=own: train(toy_trainer, own))
        one, other = (tmp_path / f"{folder}_{sharded}_{form}" / "model_final.pth" for form in ("file", "parts"))
        same(content(one), content(other))
