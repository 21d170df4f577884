"""The loop of iterations: order of calls, losses, gradients, metrics and state."""

import gc
import time
import weakref

import pytest
import torch
from detectron2.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detectron2.utils.events import get_event_storage
from torch import nn


class Line(nn.Module):
    """Two losses that are linear in one weight, so that gradients are known."""

    def __init__(self, calls=None):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.calls = [] if calls is None else calls

    def forward(self, batch):
        self.calls.append("forward")
        return {"loss_a": self.weight * batch, "loss_b": self.weight * 0 + 2.0}


class Recorder(HookBase):
    def __init__(self, name, calls):
        self.name, self.calls = name, calls

    def note(self, what):
        self.calls.append(f"{self.name}.{what}@{self.trainer.iter}")

    def before_train(self):
        self.note("before_train")

    def after_train(self):
        self.note("after_train")

    def before_step(self):
        self.note("before_step")

    def after_backward(self):
        self.note("after_backward")

    def after_step(self):
        self.note("after_step")


class Stateful(HookBase):
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state_dict):
        self.value = state_dict["value"]


def make_trainer(model=None, data=None, lr=0.1, **options):
    model = Line() if model is None else model
    data = [torch.tensor(float(i)) for i in range(100)] if data is None else data
    return SimpleTrainer(model, data, torch.optim.SGD(model.parameters(), lr=lr), **options)


def test_hooks_are_called_in_order_around_each_iteration():
    calls = []
    trainer = make_trainer(Line(calls))
    trainer.register_hooks([Recorder("first", calls), None, Recorder("second", calls)])
    trainer.train(3, 5)

    def both(what, iteration):
        return [f"first.{what}@{iteration}", f"second.{what}@{iteration}"]

    expected = both("before_train", 3)
    for iteration in (3, 4):
        expected += both("before_step", iteration) + ["forward"]
        expected += both("after_backward", iteration) + both("after_step", iteration)
    assert calls == expected + both("after_train", 5)
    assert (trainer.start_iter, trainer.iter, trainer.max_iter) == (3, 5, 5)


def test_events_of_a_step_are_stored_at_its_iteration():
    class Reporter(HookBase):
        def after_step(self):
            get_event_storage().put_scalar("seen", self.trainer.iter)

    trainer = make_trainer()
    trainer.register_hooks([Reporter()])
    trainer.train(2, 5)
    assert trainer.storage.history("seen").values() == [(2.0, 2), (3.0, 3), (4.0, 4)]


def test_a_failed_training_still_ends_its_hooks_and_says_so():
    class Failing(TrainerBase):
        def run_step(self):
            if self.iter == 2:
                raise RuntimeError("out of luck")

    calls = []
    trainer = Failing()
    trainer.register_hooks([Recorder("hook", calls)])
    with pytest.raises(RuntimeError, match="out of luck"):
        trainer.train(0, 5)
    assert calls[-2:] == ["hook.before_step@2", "hook.after_train@2"]


def test_a_trainer_base_has_no_step():
    with pytest.raises(NotImplementedError):
        TrainerBase().train(0, 1)


def test_only_hooks_are_registered():
    with pytest.raises(AssertionError):
        TrainerBase().register_hooks([print])


def test_hooks_do_not_keep_their_trainer_alive():
    trainer = TrainerBase()
    hook = HookBase()
    trainer.register_hooks([hook])
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()


def test_steps_follow_the_gradient_of_the_summed_losses():
    trainer = make_trainer(lr=0.1)
    trainer.train(0, 4)
    # d(loss_a + loss_b)/dw is the batch: 0, 1, 2, 3.
    assert trainer.model.weight.item() == pytest.approx(1 - 0.1 * (0 + 1 + 2 + 3))


def test_losses_are_stored_by_name_with_their_total():
    trainer = make_trainer(lr=0.0)
    trainer.train(0, 3)
    assert trainer.storage.history("loss_a").values() == [(0.0, 0), (1.0, 1), (2.0, 2)]
    assert trainer.storage.history("loss_b").values() == [(2.0, 0), (2.0, 1), (2.0, 2)]
    assert trainer.storage.history("total_loss").values() == [(2.0, 0), (3.0, 1), (4.0, 2)]
    assert all(seconds >= 0 for seconds, _ in trainer.storage.history("data_time").values())


def test_a_single_loss_is_the_total():
    class Single(Line):
        def forward(self, batch):
            return super().forward(batch)["loss_a"]

    trainer = make_trainer(Single())
    trainer.train(0, 2)
    assert trainer.model.weight.item() == pytest.approx(0.9)
    assert trainer.storage.history("total_loss").values() == [(0.0, 0), (1.0, 1)]
    assert "loss_a" not in trainer.storage.histories()


def test_metrics_are_gathered_every_period_only():
    trainer = make_trainer(gather_metric_period=3)
    trainer.train(0, 10)
    for name in ("total_loss", "loss_a", "data_time"):
        assert [iteration for _, iteration in trainer.storage.history(name).values()] == [2, 5, 8]


def test_asynchronous_metrics_are_complete_and_in_order(monkeypatch):
    write = SimpleTrainer.write_metrics

    def write_slowly(*args):
        time.sleep(0.01)
        write(*args)

    monkeypatch.setattr(SimpleTrainer, "write_metrics", staticmethod(write_slowly))
    trainer = make_trainer(lr=0.0, async_write_metrics=True)
    trainer.train(0, 10)
    assert trainer.storage.history("loss_a").values() == [(float(i), i) for i in range(10)]


def test_write_metrics_takes_a_prefix():
    trainer = make_trainer()
    trainer.train(0, 1)
    with trainer.storage:
        SimpleTrainer.write_metrics({"a": torch.tensor(1.0), "b": torch.tensor(2.0)}, 0.5, 7, prefix="other_")
    assert trainer.storage.history("other_total_loss").values() == [(3.0, 7)]
    assert trainer.storage.history("data_time").latest() == 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_training_stops_at_a_loss_that_is_not_finite(bad):
    data = [torch.tensor(1.0), torch.tensor(bad), torch.tensor(1.0)]
    trainer = make_trainer(data=data)
    with pytest.raises(FloatingPointError, match="iteration=1"):
        trainer.train(0, 3)
    # The step that would have spoiled the weights was not taken.
    assert torch.isfinite(trainer.model.weight)


@pytest.mark.parametrize("before_forward", [False, True])
def test_gradients_are_cleared_before_or_after_the_forward_pass(before_forward):
    calls = []
    model = Line(calls)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name in ("zero_grad", "step"):
        method = getattr(optimizer, name)
        setattr(optimizer, name, lambda name=name, method=method: (calls.append(name), method()))
    SimpleTrainer(model, [torch.tensor(1.0)], optimizer, zero_grad_before_forward=before_forward).train(0, 1)
    assert calls == (["zero_grad", "forward", "step"] if before_forward else ["forward", "zero_grad", "step"])


def test_a_model_in_eval_mode_is_not_trained():
    trainer = make_trainer()
    trainer.model.eval()
    with pytest.raises(AssertionError):
        trainer.train(0, 1)


def test_reset_data_loader_starts_the_new_one():
    trainer = make_trainer(data=[torch.tensor(1.0)] * 2, lr=0.0)
    trainer.train(0, 1)
    trainer.reset_data_loader(lambda: [torch.tensor(7.0)])
    trainer.train(1, 2)
    assert trainer.storage.history("loss_a").values() == [(7.0, 1)]


def test_state_holds_iteration_optimizer_and_hooks():
    model = Line()
    trainer = SimpleTrainer(model, [torch.tensor(1.0)] * 9, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    trainer.register_hooks([HookBase(), Stateful("kept"), Stateful("second of its class")])
    trainer.train(0, 3)
    state = trainer.state_dict()
    assert state["iteration"] == 3

    other_model = Line()
    other = SimpleTrainer(
        other_model, [torch.tensor(1.0)], torch.optim.SGD(other_model.parameters(), lr=99.0, momentum=0.9)
    )
    hook = Stateful("new")
    other.register_hooks([HookBase(), hook])
    other.load_state_dict(state)
    assert other.iter == 3
    assert hook.value == "kept"
    assert other.optimizer.param_groups[0]["lr"] == 0.1
    momentum = other.optimizer.state[other_model.weight]["momentum_buffer"]
    assert momentum.item() == pytest.approx(1 + 0.9 + 0.81)


def test_state_of_a_hook_that_is_gone_is_ignored():
    trainer = make_trainer()
    trainer.register_hooks([Stateful("kept")])
    other = make_trainer()
    other.load_state_dict(trainer.state_dict())
    assert other.iter == 0


class FakeScaler:
    """A gradient scaler with the scale 4 that records its calls."""

    def __init__(self):
        self.updates = 0

    def get_scale(self):
        return 4.0

    def scale(self, loss):
        return loss * 4

    def step(self, optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= 4
        optimizer.step()

    def update(self):
        self.updates += 1

    def state_dict(self):
        return {"updates": self.updates}

    def load_state_dict(self, state_dict):
        self.updates = state_dict["updates"]


def make_amp_trainer(**options):
    model = Line()
    data = [torch.tensor(float(i)) for i in range(100)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return AMPTrainer(model, data, optimizer, grad_scaler=FakeScaler(), **options)


def test_amp_scales_gradients_and_keeps_the_scalers_state(monkeypatch):
    # Neither the scaler nor the model touches a device; only the trainer asks for one.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    trainer = make_amp_trainer(log_grad_scaler=True)
    seen = []

    class Watch(HookBase):
        def after_backward(self):
            seen.append(self.trainer.model.weight.grad.item())

    trainer.register_hooks([Watch()])
    trainer.train(0, 4)
    assert seen == [0, 4, 8, 12]
    assert trainer.model.weight.item() == pytest.approx(1 - 0.1 * (0 + 1 + 2 + 3))
    assert trainer.storage.history("[metric]grad_scaler").values() == [(4.0, i) for i in range(4)]
    assert trainer.storage.history("loss_b").latest() == 2.0
    other = make_amp_trainer()
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.updates == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_amp_needs_a_device():
    with pytest.raises(AssertionError, match="CUDA"):
        make_amp_trainer().train(0, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a device")
def test_amp_runs_the_forward_pass_in_the_given_precision():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.dtypes = set()

        def forward(self, batch):
            out = self.linear(batch)
            self.dtypes.add(out.dtype)
            return {"loss": out.float().square().mean()}

    model = Net().cuda()
    data = [torch.ones(2, 4, device="cuda")] * 5
    trainer = AMPTrainer(model, data, torch.optim.SGD(model.parameters(), lr=0.1), precision=torch.bfloat16)
    trainer.train(0, 5)
    assert model.dtypes == {torch.bfloat16}
    losses = [value for value, _ in trainer.storage.history("total_loss").values()]
    assert losses[-1] < losses[0]


def test_amp_refuses_one_process_on_many_devices():
    model = nn.DataParallel(Line())
    with pytest.raises(AssertionError):
        AMPTrainer(model, [], torch.optim.SGD(model.parameters(), lr=0.1), grad_scaler=FakeScaler())
