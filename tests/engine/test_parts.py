"""Checkpoints in parts: each process writes its own, and any number of processes goes on from them."""

import json
import os
import pickle
import shutil
import signal
from pathlib import Path

import pytest
import torch
from detectron2.utils import comm

from uniperceiver_v2.checkpoint import AtomicCheckpointer, parts
from uniperceiver_v2.checkpoint.parts import MANIFEST, WHOLE, read_parts
from uniperceiver_v2.checkpoint.whole import main as make_whole
from uniperceiver_v2.config.checks import check_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.reading import read_tensors

from .divided import needs_support

pytestmark = needs_support

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


@pytest.mark.slow
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


def test_one_process_without_sharding_goes_on_from_parts_as_from_one_file(toy_trainer, cfg, written, tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    assert make_whole([str(written / "model_0000015"), str(one / "model_0000015.pth")]) == 0
    for folder, name in ((written, "model_0000015"), (one, "model_0000015.pth")):
        (folder / "last_checkpoint").write_text(name)
        train(toy_trainer, settings(cfg, folder, "file", "none"))
        assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    assert not (written / "model_final").exists()  # of the same name in the other form
    same(content(written / "model_final.pth"), content(one / "model_final.pth"))


def test_best_and_kept_checkpoints_are_directories_too(toy_trainer, cfg, processes, tmp_path):
    best = ("TEST.BEST_METRIC", "toy_lines_test/lines/error", "TEST.BEST_MODE", "min", "TEST.EVAL_PERIOD", 5)
    changes = (*best, "SOLVER.CHECKPOINTS_KEPT", 1, "SOLVER.CHECKPOINT_PERIOD", 4)
    (tmp_path / "parts" / "model_0000002").mkdir(parents=True)  # somebody else's, without a checkpoint

    def work() -> None:
        train(toy_trainer, settings(cfg, tmp_path / "file", "file", "full", False, *changes))
        parts_settings = settings(cfg, tmp_path / "parts", "parts", "full", True, *changes)
        train(toy_trainer, parts_settings, until=12)
        train(toy_trainer, parts_settings)

    run(processes, tmp_path, 2, work)
    assert sorted(path.name for path in (tmp_path / "file").glob("model*")) == [
        *("model_0000019.pth", "model_best.pth", "model_final.pth")
    ]
    assert sorted(path.name for path in (tmp_path / "parts").glob("model*")) == [
        *("model_0000002", "model_0000019", "model_best", "model_final")
    ]
    for name in ("model_best", "model_final"):
        same(content(tmp_path / "parts" / name), content(tmp_path / "file" / f"{name}.pth"))
    # A run from the beginning puts the best one aside, and an unfinished run in the other form replaces it.
    run(processes, tmp_path, 2, lambda: train(toy_trainer, parts_again(cfg, tmp_path, changes), resume=False))
    names = {path.name for path in (tmp_path / "parts").glob("model_best*")}
    assert names == {"model_best.pth", "model_best.previous"}
    assert not (tmp_path / "parts" / "model_final").exists() and (tmp_path / "parts" / "model_final.pth").exists()


def parts_again(cfg, tmp_path, changes):
    return settings(cfg, tmp_path / "parts", "file", "full", False, *changes)


def test_what_an_interrupted_write_leaves_is_removed_and_the_earlier_checkpoint_resumed(
    toy_trainer, cfg, processes, written
):
    """The first process dies after all parts are written, and in another run between the two renamings."""
    shutil.copytree(written / "model_0000015", written / ".model_0000018.parts.tmp")
    (written / "model_final").rename(written / ".model_final.replaced")
    shutil.rmtree(written / "model_0000015")
    for name, starts in (("model_0000007", 8), ("model_final", 20)):
        (written / "last_checkpoint").write_text(name)

        def work(starts: int = starts) -> None:
            trainer = toy_trainer(settings(cfg, written, "parts"))
            trainer.resume_or_load(resume=True)
            assert trainer.start_iter == starts

        run(processes, written.parent, 2, work)
        assert sorted(path.name for path in written.glob("*model*")) == ["model_0000007", "model_final"]


def test_a_run_killed_before_its_final_checkpoint_gets_it(toy_trainer, cfg, processes, tmp_path):
    """The last iteration has a periodic checkpoint too. The run is killed after that one was written. A process that
    wrote a file before left a part of it."""
    own = settings(cfg, tmp_path / "run", "parts", "full", False, "SOLVER.CHECKPOINT_PERIOD", 10)
    run(processes, tmp_path, 2, lambda: train(toy_trainer, own))
    (tmp_path / "run" / "model_final").rename(tmp_path / "expected")
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000019")
    (tmp_path / "run" / ".model_0000009.pth.77.tmp").touch()
    run(processes, tmp_path, 2, lambda: train(toy_trainer, own))
    same(content(tmp_path / "run" / "model_final"), content(tmp_path / "expected"))
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final"
    assert not list((tmp_path / "run").glob(".*"))


def test_killed_and_stopped_runs_end_as_undisturbed_ones(toy_trainer, cfg, processes, tmp_path, monkeypatch):
    """The first process is killed while a checkpoint is being written, or before it gets its name. Another run gets a
    signal."""
    kept = ("SOLVER.CHECKPOINTS_KEPT", 2, "SOLVER.CHECKPOINT_PERIOD", 3)
    killed, undisturbed, stopped = (
        settings(cfg, tmp_path / name, "parts", "full", name == "killed", *kept)
        for name in ("killed", "undisturbed", "stopped")
    )

    class Stopped(toy_trainer):
        def run_step(self):
            if self.iter == 7 and comm.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            super().run_step()

    run(processes, tmp_path, 2, lambda: train(toy_trainer, undisturbed))
    for step, count in (("_own_files", 1), ("_put_in_place", 2)):

        def work(step: str = step, count: int = count) -> None:
            usual, calls = getattr(parts, step), []

            def dying(*args):
                calls.append(args)
                if len(calls) > count:
                    os.kill(os.getpid(), signal.SIGKILL)
                return usual(*args)

            monkeypatch.setattr(parts, step, dying)
            train(toy_trainer, killed)

        first, second = processes.fork_ranks(work, tmp_path)
        assert processes.exit_code(first) == -signal.SIGKILL
        assert processes.exit_code(second) in (-signal.SIGKILL, 1)  # it notices that the first one is gone
        assert list((tmp_path / "killed").glob(".model*.parts.tmp"))
    run(processes, tmp_path, 2, lambda: train(toy_trainer, killed))
    for trainer_class, code in ((Stopped, 143), (toy_trainer, 0)):
        pids = processes.fork_ranks(lambda kind=trainer_class: train(kind, stopped), tmp_path)
        assert [processes.exit_code(pid) for pid in pids] == [code] * 2
        if code:
            assert (tmp_path / "stopped" / "last_checkpoint").read_text() == "model_0000007"
    for name in ("killed", "stopped"):
        same(content(tmp_path / name / "model_final"), content(tmp_path / "undisturbed" / "model_final"))
        assert not list((tmp_path / name).glob(".model*"))


def damaged(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = [
    ("__1_0.distcp", damaged, "__1_0.distcp is damaged (it has another checksum"),
    ("__0_0.distcp", Path.unlink, "__0_0.distcp cannot be read, a part of a checkpoint: No such file"),
    (".metadata", damaged, ".metadata is damaged"),
    (WHOLE, lambda path: path.write_bytes(path.read_bytes()[:-9]), f"{WHOLE} is damaged (its size"),
    (MANIFEST, lambda path: path.write_text("{"), MANIFEST),
    (MANIFEST, lambda path: path.write_text('{"files": {}}'), f"{MANIFEST} is damaged"),
    (
        MANIFEST,
        lambda path: path.write_text(f'{{"files": {{"{WHOLE}": 1, ".metadata": 1}}}}'),
        f"{MANIFEST} is damaged",
    ),
    (MANIFEST, lambda path: path.write_text(path.read_text().replace("__1", "../__1")), "not the name of a file"),
]


def test_a_damaged_part_is_refused_by_name(toy_trainer, cfg, processes, written):
    for number, (name, damage, _) in enumerate(DAMAGES):
        shutil.copytree(written / "model_final", written / f"damaged{number}")
        damage(written / f"damaged{number}" / name)

    def work() -> None:
        for number, (_, _, message) in enumerate(DAMAGES):
            trainer = toy_trainer(settings(cfg, written, "parts"))  # upstream's own class loads no more after a refusal
            with pytest.raises(UserError) as found:  # on both, whoever has read the file
                trainer.checkpointer.load(str(written / f"damaged{number}"))
            assert message in str(found.value)

    run(processes, written.parent, 2, work)
    for number, (_, _, message) in enumerate(DAMAGES):
        with pytest.raises(UserError) as found:
            read_parts(str(written / f"damaged{number}"))
        assert message in str(found.value)


class Boom:
    def __reduce__(self):
        return (os.mkdir, ("boom",))


def test_code_in_a_description_is_not_run(written, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder = written / "model_final"
    (folder / ".metadata").write_bytes(pickle.dumps(Boom()))
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][".metadata"] = parts._size_and_checksum(str(folder / ".metadata"))
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"\.metadata holds posix\.mkdir, which describes no tensor"):
        read_parts(str(folder))
    assert not Path("boom").exists()


def test_weights_that_are_not_finite_are_refused_by_all(toy_trainer, cfg, processes, tmp_path):
    own = settings(cfg, tmp_path / "run", "parts", "full", False, "SOLVER.WEIGHT_AVERAGING", 0.0)

    def work() -> None:
        trainer = toy_trainer(own)
        if comm.get_rank() == 1:
            with torch.no_grad():
                trainer.model.shared.weight.to_local().fill_(float("nan"))
        trainer.checkpointer.save("model_0000001", iteration=1)
        with pytest.raises(UserError, match=r"shared\.weight has .* NaN or infinite"):
            toy_trainer(own).resume_or_load(resume=True)

    run(processes, tmp_path, 2, work)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_write_that_fails_is_told_by_all_and_leaves_the_earlier_checkpoint(
    toy_trainer, cfg, processes, tmp_path, monkeypatch, in_background
):
    own = settings(cfg, tmp_path / "run", "parts", "full", in_background)

    def work() -> None:
        checkpointer = train(toy_trainer, own, until=4).checkpointer
        if comm.get_rank() == 1:
            monkeypatch.setattr(parts, "_own_files", full_disk)
        with pytest.raises(UserError, match=r"cannot write .*model_0000009: OSError: .*No space left.*untouched"):
            checkpointer.save("model_0000009", iteration=9)
            checkpointer.wait()
        assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_final"

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    run(processes, tmp_path, 2, work)
    assert len(tensors(content(tmp_path / "run" / "model_final"))) == 16
    assert sorted(path.name for path in (tmp_path / "run").glob("model*")) == ["model_final"]


def test_one_file_is_made_of_the_parts(toy_trainer, cfg, processes, written, tmp_path, capsys):
    own = settings(cfg, tmp_path / "file", "file")
    run(processes, tmp_path, 2, lambda: train(toy_trainer, own))
    gathered = content(tmp_path / "file" / "model_final.pth")
    assert make_whole([str(written / "model_final"), str(tmp_path / "whole.pth")]) == 0
    same(read_tensors(str(tmp_path / "whole.pth")), gathered)
    for source in (written / "model_final", tmp_path / "file" / "model_final.pth"):
        assert make_whole([str(source), str(tmp_path / "weights.safetensors")]) == 0
        same(read_tensors(str(tmp_path / "weights.safetensors")), gathered["model"])
    model = toy_trainer.build_model(cfg)
    AtomicCheckpointer(model).load(str(written / "model_final"))
    same(dict(model.state_dict()), gathered["model"])
    damaged(written / "model_final" / "__0_0.distcp")
    for arguments, message in (
        ((str(written / "model_final"), str(tmp_path / "other.pth")), "__0_0.distcp is damaged"),
        ((str(written / "model_final"), str(tmp_path / "other.onnx")), "has to end with"),
        ((str(written / "nothing"), str(tmp_path / "other.pth")), "checkpoint not found"),
    ):
        assert make_whole(arguments) == 1
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("other*"))


def test_it_needs_sharding(cfg, tmp_path):
    for task in cfg.TASKS.NAMES:
        cfg.TASKS[task].DATASETS = ["toy_lines_test"]
    check_config(settings(cfg, tmp_path, "parts"), training=True, world_size=2)
    with pytest.raises(UserError, match=r"SOLVER.CHECKPOINT_FORMAT 'parts' needs SOLVER.SHARDING 'full' or 'hybrid'"):
        check_config(settings(cfg, tmp_path, "parts", "none"), training=True, world_size=2)
    with pytest.raises(UserError, match=r"SOLVER.CHECKPOINT_FORMAT: unknown name 'directory'"):
        check_config(settings(cfg, tmp_path, "directory"), training=True, world_size=2)
