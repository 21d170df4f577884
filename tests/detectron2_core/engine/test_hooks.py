"""Hooks on short trainings of a model with one weight."""

import math

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import SimpleTrainer, hooks
from detectron2.solver import LRMultiplier
from detectron2.utils.events import EventWriter, get_event_storage
from fvcore.common.param_scheduler import LinearParamScheduler
from torch import nn


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch):
        return {"loss": self.weight * batch}


def train(registered, iterations, start=0, lr=0.1, fail_at=None):
    model = Line()
    data = [torch.tensor(math.nan if i == fail_at else 1.0) for i in range(iterations)]
    trainer = SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=lr))
    trainer.register_hooks(registered(trainer) if callable(registered) else registered)
    trainer.train(start, start + iterations)
    return trainer


def test_callback_hook_calls_what_it_is_given():
    calls = []
    hook = hooks.CallbackHook(
        before_train=lambda trainer: calls.append(("before_train", trainer.iter)),
        after_train=lambda trainer: calls.append(("after_train", trainer.iter)),
        after_step=lambda trainer: calls.append(("after_step", trainer.iter)),
    )
    train([hook, hooks.CallbackHook(before_step=lambda trainer: calls.append(("before_step", trainer.iter)))], 2)
    assert calls == [
        ("before_train", 0),
        ("before_step", 0),
        ("after_step", 0),
        ("before_step", 1),
        ("after_step", 1),
        ("after_train", 2),
    ]


@pytest.mark.parametrize("warmup", [1, 4])
def test_iteration_timer_stores_the_time_after_warmup(warmup):
    trainer = train([hooks.IterationTimer(warmup_iter=warmup)], 10, start=20)
    times = trainer.storage.history("time").values()
    assert [iteration for _, iteration in times] == list(range(20 + warmup - 1, 30))
    assert all(0 < seconds < 60 for seconds, _ in times)


class CountingWriter(EventWriter):
    def __init__(self):
        self.written, self.closed = [], 0

    def write(self):
        self.written.append(get_event_storage().iter)

    def close(self):
        self.closed += 1


@pytest.mark.parametrize("iterations, expected", [(10, [3, 7, 9, 10]), (8, [3, 7, 8]), (2, [1, 2])])
def test_periodic_writer_writes_each_period_at_the_end_and_after_it(iterations, expected):
    writer = CountingWriter()
    train([hooks.PeriodicWriter([writer], period=4)], iterations)
    assert writer.written == expected
    assert writer.closed == 1


def test_periodic_writer_wants_writers():
    with pytest.raises(AssertionError):
        hooks.PeriodicWriter([print])


def test_periodic_checkpointer_saves_each_period_and_the_end(tmp_path):
    def registered(trainer):
        checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path), optimizer=trainer.optimizer)
        return [hooks.PeriodicCheckpointer(checkpointer, 3)]

    train(registered, 7, lr=0.5)
    files = {path.name for path in tmp_path.glob("*.pth")}
    assert files == {"model_0000002.pth", "model_0000005.pth", "model_final.pth"}
    first = torch.load(tmp_path / "model_0000002.pth")
    assert first["iteration"] == 2
    assert first["model"]["weight"].item() == pytest.approx(1 - 0.5 * 3)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize(
    "mode, metrics, saved_at, best",
    [
        ("max", [0.3, 0.4, 0.35, 0.5], [9, 19, 40], 0.5),
        ("min", [1.0, 0.8, 0.9, 0.9], [9, 19], 0.8),
        ("min", [math.nan, 0.8, 0.9, math.nan], [19], 0.8),
    ],
)
def test_best_checkpointer_saves_when_the_metric_gets_better(tmp_path, mode, metrics, saved_at, best):
    saved = []

    class Recording(DetectionCheckpointer):
        def save(self, name, **kwargs):
            super().save(name, **kwargs)
            saved.append((name, kwargs["iteration"]))

    values = iter(metrics)
    found = []

    def registered(trainer):
        checkpointer = Recording(trainer.model, str(tmp_path))
        best_hook = hooks.BestCheckpointer(10, checkpointer, "bbox/AP", mode=mode, file_prefix="finest")
        found.append(best_hook)
        return [hooks.EvalHook(10, lambda: {"bbox": {"AP": next(values)}}), best_hook]

    train(registered, 40)
    assert saved == [("finest", iteration) for iteration in saved_at]
    assert found[0].best_metric == best
    weight = torch.load(tmp_path / "finest.pth")["model"]["weight"].item()
    assert weight == pytest.approx(1 - 0.1 * min(saved_at[-1] + 1, 40))


def test_best_checkpointer_without_its_metric_saves_nothing(tmp_path):
    def registered(trainer):
        return [hooks.BestCheckpointer(2, DetectionCheckpointer(trainer.model, str(tmp_path)), "bbox/AP")]

    train(registered, 4)
    assert list(tmp_path.iterdir()) == []


def test_best_checkpointer_knows_two_modes(tmp_path):
    with pytest.raises(AssertionError):
        hooks.BestCheckpointer(1, DetectionCheckpointer(Line(), str(tmp_path)), "bbox/AP", mode="best")


def test_lr_hook_steps_a_torch_scheduler_and_stores_the_rate():
    def registered(trainer):
        return [hooks.LRScheduler(scheduler=torch.optim.lr_scheduler.StepLR(trainer.optimizer, 3))]

    trainer = train(registered, 7)
    stored = [value for value, _ in trainer.storage.history("lr").values()]
    assert stored == pytest.approx([0.1] * 3 + [0.01] * 3 + [0.001])
    assert trainer.model.weight.item() == pytest.approx(1 - sum(stored))


def test_lr_hook_takes_a_multiplier_of_the_optimizers_rate():
    trainer = train([hooks.LRScheduler(scheduler=LinearParamScheduler(1.0, 0.0))], 4)
    stored = [value for value, _ in trainer.storage.history("lr").values()]
    assert stored == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_lr_hook_goes_on_from_its_state():
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def make(optimizer):
        trainer = SimpleTrainer(model, [torch.tensor(0.0)] * 10, optimizer)
        scheduler = LRMultiplier(optimizer, LinearParamScheduler(1.0, 0.0), max_iter=8)
        trainer.register_hooks([hooks.LRScheduler(scheduler=scheduler)])
        return trainer

    first = make(optimizer)
    first.train(0, 3)
    second = make(torch.optim.SGD(model.parameters(), lr=1.0))
    second.load_state_dict(first.state_dict())
    second.train(3, 8)
    stored = [value for value, _ in second.storage.history("lr").values()]
    assert stored == pytest.approx([5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_the_rate_of_the_largest_or_commonest_group_is_shown():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(6)]

    def shown(*groups):
        optimizer = torch.optim.SGD([{"params": params, "lr": lr} for params, lr in groups], lr=1.0)
        return hooks.LRScheduler.get_best_param_group_id(optimizer)

    assert shown((parameters[:1], 1.0), (parameters[1:4], 2.0), (parameters[4:], 3.0)) == 1
    assert shown((parameters[:1], 1.0), (parameters[1:2], 2.0), (parameters[2:3], 2.0)) == 1


@pytest.mark.parametrize(
    "iterations, period, after_train, expected",
    [(30, 15, True, [14, 30]), (31, 15, True, [14, 29, 31]), (20, 0, True, [20]), (30, 15, False, [14])],
)
def test_eval_hook_evaluates_each_period_and_after_training(iterations, period, after_train, expected):
    calls = []

    def evaluate():
        calls.append(get_event_storage().iter)
        return {"task": {"sub": {"metric": len(calls)}, "whole": 0.5}}

    trainer = train([hooks.EvalHook(period, evaluate, eval_after_train=after_train)], iterations)
    assert calls == expected
    stored = trainer.storage.history("task/sub/metric").values()
    assert stored == [(float(i + 1), iteration) for i, iteration in enumerate(expected)]
    assert trainer.storage.history("task/whole").latest() == 0.5


def test_eval_hook_takes_no_result_and_refuses_what_is_no_number():
    trainer = train([hooks.EvalHook(0, lambda: None)], 2)
    assert set(trainer.storage.histories()) == {"total_loss", "data_time", "rank_data_time"}
    with pytest.raises(ValueError, match="bbox/AP"):
        train([hooks.EvalHook(1, lambda: {"bbox": {"AP": "high"}})], 2)


def test_a_failed_training_is_not_evaluated():
    calls = []
    with pytest.raises(FloatingPointError):
        train([hooks.EvalHook(0, lambda: calls.append(1))], 5, fail_at=2)
    assert calls == []


def test_precise_bn_puts_the_statistics_of_its_batches():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(2)

        def forward(self, batch):
            get_event_storage().put_scalar("forwards", 1)
            return {"loss": self.norm(batch).square().mean()}

    model = Net()
    data = [torch.randn(6, 2) for _ in range(4)]
    precise = [torch.randn(6, 2) * 3 + 5 for _ in range(4)]
    trainer = SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([hooks.PreciseBN(0, model, precise, 3)])
    trainer.train(0, 4)
    seen = torch.cat(precise[:3])
    torch.testing.assert_close(model.norm.running_mean, seen.mean(0))
    # fvcore's estimate is of the population: no correction by n - 1.
    torch.testing.assert_close(model.norm.running_var, seen.var(0, unbiased=False))
    assert len(trainer.storage.history("forwards").values()) == 4


def test_precise_bn_of_a_model_without_batch_norm_does_nothing():
    """Not even its loader is opened."""

    class Unread:
        def __iter__(self):
            raise AssertionError("data was asked for")

    model = Line()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks.PreciseBN(1, model, Unread(), 5).update_stats()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
