"""metrics.json: the content of its rows, and the same bytes for any number of interruptions."""

import errno
import io
import json
import logging
import math
import os
import tempfile
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase, TrainerBase, hooks
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from uniperceiver_v2.engine import metrics
from uniperceiver_v2.engine.metrics import MetricsFile, RunScalars, TensorBoardEvents, reproducible
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.likelihood import Likelihood

PLACES = ("in step", "before checkpoint", "after checkpoint", "after evaluation", "in row", "after row", "by a signal")


@pytest.fixture(scope="module", autouse=True)
def no_sync():
    """Leaves out syncs, which may take ten milliseconds each, as these tests write thousands of rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        yield


class Killed(BaseException):
    """Like SIGKILL, it is not caught by code that catches Exception."""


class Loop(TrainerBase):
    """Puts numbers that depend on the iteration, and keeps checkpoints as bytes.

    Args:
        path: the metrics file.
        kill: (iteration, place) at which the loop ends.
        extra: hooks before all others.
    """

    def __init__(self, path, max_iter=37, period=5, eval_period=0, checkpoints=4, kill=None, extra=()):
        super().__init__()
        self.max_iter, self.checkpoints, self.kill, self.checkpoint = max_iter, checkpoints, kill, None
        self.path = Path(path)
        evaluation = hooks.EvalHook(eval_period, self.evaluate, eval_after_train=eval_period > 0)
        rows = MetricsFile(str(path), period, eval_period)
        places = [Place(place) for place in PLACES]
        self.register_hooks([*extra, *places[1:3], evaluation, *places[3:5], rows, *places[5:]])

    def run_step(self):
        self.last_step = self.iter
        self.storage.put_scalar("loss", math.sin(self.iter) / 3)
        self.storage.put_scalar("lr", 1 / (self.iter + 1), smoothing_hint=False)
        if self.iter % 3 == 0:
            self.storage.put_scalar("rare/loss", math.cos(self.iter) / 7)
        if self.iter % 11 == 0:
            self.storage.put_scalar("rare/count", self.iter, smoothing_hint=False)
        self.reached("in step")

    def evaluate(self):
        return {"bbox": {"AP": self.last_step / 9}}

    def reached(self, place):
        if self.kill == (self.iter, place):
            if place == "in row":
                with self.path.open("ab") as file:
                    file.write(b'{"iteration": 3, "lo')
            raise Killed

    def save(self):
        buffer = io.BytesIO()
        torch.save(self.state_dict(), buffer)
        self.checkpoint = buffer.getvalue()

    def run(self, checkpoint=None):
        """Train. Returns the last checkpoint."""
        start = 0
        self.checkpoint = checkpoint
        if checkpoint is not None:
            self.load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=True))
            start = self.iter + 1
        self.last_step = start - 1
        try:
            self.train(start, self.max_iter)
        except Killed:
            assert self.kill
        return self.checkpoint


class Place(HookBase):
    """A place at which the loop may be killed. Two of the places save checkpoints, as Detectron2 and GracefulStop do
    there."""

    def __init__(self, name):
        self.name = name

    def after_step(self):
        trainer = self.trainer
        done = trainer.iter + 1
        if self.name == "after checkpoint" and (done % trainer.checkpoints == 0 or done == trainer.max_iter):
            trainer.save()
        if self.name == "by a signal" and trainer.kill == (trainer.iter, self.name) and done < trainer.max_iter:
            trainer.save()
        trainer.reached(self.name)


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_row_has_means_the_latest_values_and_nothing_old(tmp_path):
    path = tmp_path / "metrics.json"
    Loop(path, max_iter=12, period=5).run()
    first, second, last = rows(path)
    assert [row["iteration"] for row in (first, second, last)] == [4, 9, 11]
    for row, iterations in ((first, range(5)), (second, range(5, 10)), (last, range(10, 12))):
        assert row["loss"] == pytest.approx(sum(math.sin(t) / 3 for t in iterations) / len(iterations), rel=1e-15)
        assert row["lr"] == 1 / (max(iterations) + 1)
    assert second["rare/loss"] == pytest.approx((math.cos(6) + math.cos(9)) / 14, rel=1e-15)
    assert set(last) == {"iteration", "loss", "lr", "rare/count"}
    assert set(second) == {"iteration", "loss", "lr", "rare/loss"}


def test_results_are_in_the_row_of_their_iteration_and_the_last_ones_in_a_row_of_their_own(tmp_path):
    path = tmp_path / "metrics.json"
    Loop(path, max_iter=12, period=5, eval_period=4).run()
    assert [(row["iteration"], row.get("bbox/AP")) for row in rows(path)] == [
        (3, 3 / 9),
        (4, None),
        (7, 7 / 9),
        (9, None),
        (11, None),
        (12, 11 / 9),
    ]


@settings(max_examples=100, deadline=None)
@given(
    kills=st.lists(st.tuples(st.integers(0, 36), st.sampled_from(PLACES)), min_size=1, max_size=4),
    period=st.sampled_from([1, 4, 5, 6]),
    eval_period=st.sampled_from([0, 4, 6, 10]),
    checkpoints=st.sampled_from([1, 4, 5, 50]),
)
@example(kills=[(3, "after checkpoint")], period=4, eval_period=4, checkpoints=4)
@example(kills=[(3, "after row"), (36, "after checkpoint")], period=4, eval_period=4, checkpoints=4)
def test_a_run_killed_anywhere_leaves_the_same_bytes(kills, period, eval_period, checkpoints):
    with tempfile.TemporaryDirectory() as folder:
        arguments = {"period": period, "eval_period": eval_period, "checkpoints": checkpoints}
        whole, killed = Path(folder, "whole.json"), Path(folder, "killed.json")
        Loop(whole, **arguments).run()
        checkpoint = None
        for kill in sorted(kills, key=lambda kill: (kill[0], PLACES.index(kill[1]))):
            checkpoint = Loop(killed, kill=kill, **arguments).run(checkpoint)
        checkpoint = Loop(killed, **arguments).run(checkpoint)
        assert killed.read_bytes() == whole.read_bytes()
        Loop(killed, **arguments).run(checkpoint)  # nothing is left to do
        assert killed.read_bytes() == whole.read_bytes()


@settings(max_examples=30, deadline=None)
@given(first=st.integers(1, 36), period=st.integers(1, 6), eval_period=st.sampled_from([0, 4, 6]))
def test_a_run_of_n_iterations_that_is_made_longer_is_the_long_one(first, period, eval_period):
    with tempfile.TemporaryDirectory() as folder:
        whole, longer = Path(folder, "whole.json"), Path(folder, "longer.json")
        arguments = {"period": period, "eval_period": eval_period}
        Loop(whole, **arguments).run()
        Loop(longer, **arguments).run(Loop(longer, max_iter=first, **arguments).run())
        assert longer.read_bytes() == whole.read_bytes()


def test_an_evaluation_that_is_recorded_is_not_done_again(tmp_path):
    seen = []

    class Spy(Loop):
        def evaluate(self):
            seen.append(self.last_step)
            return super().evaluate()

    for place, expected in (("after row", [3, 36]), ("after evaluation", [3, 3, 36])):
        seen.clear()
        path = tmp_path / place
        checkpoint = Spy(path, eval_period=20, period=4, checkpoints=20, kill=(19, place)).run()
        Spy(path, eval_period=20, period=4, checkpoints=20).run(checkpoint)
        assert seen == [19 if t == 3 else t for t in expected]


def test_a_new_run_keeps_the_old_file_under_another_name(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    Loop(path, max_iter=3).run()
    old = path.read_bytes()
    Loop(path, max_iter=4).run()
    assert [row["iteration"] for row in rows(path)] == [3]
    assert (tmp_path / "new" / "metrics.previous.json").read_bytes() == old


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize(("make", "what"), [(os.mkfifo, "a pipe"), (os.mkdir, "a folder")])
def test_what_is_no_file_is_refused_before_training(tmp_path, make, what, resumed):
    """A pipe would wait for ever: a new run for a reader, a resumed one for a writer."""
    path = tmp_path / "metrics.json"
    make(path)
    loop = Loop(path, max_iter=10)
    with pytest.raises(UserError, match=rf"{path} is {what}.*, not a file: the rows of a run"):
        loop.train(4 if resumed else 0, 10)


def test_a_checkpoint_without_a_state_goes_on_and_what_is_no_row_is_dropped(tmp_path, caplog):
    path = tmp_path / "metrics.json"
    rows_before = ['{"iteration": 2, "loss": 1}', "nothing", '{"iteration": 3, "loss": 2}', '{"iteration": 9}']
    path.write_text("\n".join([*rows_before, "[1]", "[" * 100_000, '{"iteration": 1}']))
    loop = Loop(path, max_iter=10, period=5)
    loop.last_step = 3
    with caplog.at_level(logging.INFO):
        loop.train(4, 10)
    assert f"{path}: dropped 4 rows that are damaged or cut short, the first in line 2" in caplog.messages
    assert f"{path}: dropped 1 rows after iteration 3" in caplog.messages
    assert [row["iteration"] for row in rows(path)] == [2, 3, 4, 9]
    assert rows(path)[:2] == [{"iteration": 2, "loss": 1}, {"iteration": 3, "loss": 2}]


def test_a_full_disk_is_told_with_the_files_name_and_the_next_run_repairs_the_line(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    loop = Loop(path, checkpoints=3)
    monkeypatch.setattr(metrics.os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        loop.run()
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:-7])
    Loop(path).run(loop.checkpoint)
    Loop(tmp_path / "whole.json").run()
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_numbers_that_are_not_finite_are_written(tmp_path):
    class Poisoned(Loop):
        def run_step(self):
            self.storage.put_scalar("loss", {1: math.nan, 2: math.inf, 3: -math.inf, 4: math.inf}.get(self.iter, 0))

    Poisoned(tmp_path / "metrics.json", max_iter=6, period=2).run()
    a, b, c = (row["loss"] for row in rows(tmp_path / "metrics.json"))
    assert math.isnan(a) and math.isnan(b) and c == math.inf


def test_what_is_measured_is_not_reproducible():
    row = {"iteration": 1, "a/total_loss": 2, "time": 3, "a/time": 4, "eta_seconds": 5, "b/images_per_second": 6}
    assert reproducible(row) == {"iteration": 1, "a/total_loss": 2}


def test_tensorboard_shows_each_iteration_once_after_a_run_was_resumed_or_begun_anew(tmp_path):
    def train(start, end, value):
        loop = Loop(tmp_path / "metrics.json", max_iter=end)
        loop.register_hooks([TensorBoardEvents(str(tmp_path / "events"), period=2)])
        loop.run_step = lambda: loop.storage.put_scalar("number", value, smoothing_hint=False)
        loop.train(start, end)
        events = EventAccumulator(str(tmp_path / "events")).Reload()
        return [(event.step, event.value) for event in events.Scalars("number")]

    assert train(0, 8, 1.0) == [(1, 1), (3, 1), (5, 1), (7, 1)]
    assert train(4, 8, 2.0) == [(1, 1), (3, 1), (5, 2), (7, 2)]
    assert train(0, 4, 3.0) == [(1, 3), (3, 3)]


class Tempered(nn.Module):
    def __init__(self):
        super().__init__()
        self.likelihood = Likelihood(0.05)


def test_temperature_and_memory_are_put_where_they_are_written(tmp_path):
    model = Tempered()
    Loop(tmp_path / "a.json", max_iter=7, period=5, extra=[RunScalars(model, 5)]).run()
    assert [row["temperature"] for row in rows(tmp_path / "a.json")] == pytest.approx([0.05, 0.05])
    assert all(30 < row["peak_memory_mib"] < 1e5 for row in rows(tmp_path / "a.json"))
    nn.init.constant_(model.likelihood.log_scale, 9.0)  # below its floor
    Loop(tmp_path / "b.json", max_iter=5, period=5, extra=[RunScalars(model, 5)]).run()
    assert rows(tmp_path / "b.json")[0]["temperature"] == Likelihood.MIN_TEMPERATURE
    assert model.likelihood.log_scale.item() == 9.0
    Loop(tmp_path / "c.json", max_iter=5, period=5, extra=[RunScalars(nn.Linear(1, 1), 5)]).run()
    assert "temperature" not in rows(tmp_path / "c.json")[0]
