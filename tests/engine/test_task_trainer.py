"""The inner loop: sampling modes, accumulation, float16, skipped steps."""

import itertools
import logging
import math
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from uniperceiver_v2.engine.schedules import MixedSchedule, TaskSchedule
from uniperceiver_v2.shared_noise import shared_normal


def make(trainer_class, cfg, **changes):
    cfg = cfg.clone()
    cfg.DATASETS.TEST = ()
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    torch.manual_seed(0)
    trainer = trainer_class(cfg)
    trainer.model.dropout.p = 0.0
    return trainer


def gradient_of(trainer_class, cfg, **changes) -> dict[str, torch.Tensor]:
    """The gradient of the first iteration, which changes no weight."""
    trainer = make(trainer_class, cfg, SOLVER__OPTIMIZER="AdamW", SOLVER__MAX_ITER=1, SOLVER__WARMUP_ITERS=0, **changes)
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    trainer.train()
    zero = torch.zeros(1)
    return {name: zero if p.grad is None else p.grad for name, p in trainer.model.named_parameters()}


def test_mixed_sampling_is_the_sum_of_all_tasks_weighed_by_their_ratios(toy_trainer, cfg):
    mixed = gradient_of(toy_trainer, cfg, SOLVER__SAMPLING="mixed")
    lines = gradient_of(toy_trainer, cfg, TASKS__NAMES=["lines"])
    signs = gradient_of(toy_trainer, cfg, TASKS__NAMES=["signs"])
    for name, value in mixed.items():
        torch.testing.assert_close(value, 2 / 3 * lines[name] + 1 / 3 * signs[name])


def test_mixed_sampling_takes_the_next_batch_of_every_task(toy_trainer, cfg):
    schedule = MixedSchedule({"signs": 1.0, "lines": 3.0})
    assert schedule.tasks_at(5) == {"lines": 0.75, "signs": 0.25}
    assert list(itertools.islice(schedule.batch_numbers("signs", 5, range(1)), 3)) == [5, 6, 7]
    trainer = make(toy_trainer, cfg, SOLVER__SAMPLING="mixed", SOLVER__OPTIMIZER="AdamW", SOLVER__MAX_ITER=20)
    trainer.train()
    latest = trainer.storage.latest()
    total = 2 / 3 * latest["lines/total_loss"][0] + 1 / 3 * latest["signs/total_loss"][0]
    assert latest["total_loss"][0] == pytest.approx(total)
    assert "grad_norm" in latest


@pytest.mark.parametrize("optimizer", ["TaskBalancedAdamW", "AdamW"])
@pytest.mark.parametrize("steps", [2, 3, 8])
def test_accumulated_parts_give_the_whole_batchs_training(toy_trainer, cfg, optimizer, steps):
    def final(**changes):
        trainer = make(toy_trainer, cfg, SOLVER__OPTIMIZER=optimizer, SOLVER__MAX_ITER=15, **changes)
        trainer.train()
        losses = [value for value, _ in trainer.storage.history("total_loss").values()]
        return losses, [p.detach().clone() for p in trainer.model.parameters()]

    whole, parts = final(), final(SOLVER__ACCUMULATION_STEPS=steps)
    torch.testing.assert_close(torch.tensor(whole[0]), torch.tensor(parts[0]), rtol=1e-5, atol=1e-6)
    for a, b in zip(whole[1], parts[1]):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_shared_noise_is_that_of_the_iteration_in_all_its_parts(toy_trainer, cfg):
    """Whichever iteration a run starts from."""

    def numbers(start: int = 0, **changes) -> dict[int, set[float]]:
        trainer, found = make(toy_trainer, cfg, SOLVER__MAX_ITER=8, **changes), defaultdict(list)
        trainer.model.register_forward_pre_hook(lambda *_: found[trainer.iter].append(shared_normal(1, 3)[0]))
        trainer.start_iter = start
        trainer.train()
        assert all(len(parts) == 3 for parts in found.values())
        return {t: set(parts) for t, parts in found.items()}

    found = numbers(SOLVER__ACCUMULATION_STEPS=3)
    assert sorted(found) == list(range(8))
    assert all(len(parts) == 1 for parts in found.values())
    assert len(set.union(*found.values())) == 8
    later = numbers(5, SOLVER__ACCUMULATION_STEPS=3)
    assert later == {t: found[t] for t in range(5, 8)}
    assert numbers(5, SOLVER__ACCUMULATION_STEPS=3, SEED=cfg.SEED + 1) != later


def poison(trainer_class, task: str, batches: range, value: float = math.nan):
    """Puts a number into some batches of a task that makes the loss infinite or NaN."""

    class Poisoned(trainer_class):
        @classmethod
        def build_task_loader(cls, cfg, name, numbers):
            for n, batch in zip(numbers, super().build_task_loader(cfg, name, numbers)):
                for index, item in enumerate(batch):
                    item["image_id"] = 100 * n + index
                if name == task and n in batches:
                    batch[0]["x"][0] = value
                yield batch

    return Poisoned


def iterations_of(task: str) -> list[int]:
    schedule = TaskSchedule({"lines": 2 / 3, "signs": 1 / 3}, seed=3)
    return [t for t in range(60) if schedule.task_at(t) == task]


@pytest.mark.parametrize("optimizer", ["TaskBalancedAdamW", "AdamW"])
def test_a_step_that_is_not_finite_is_skipped_and_counted(toy_trainer, cfg, optimizer, caplog):
    trainer = make(poison(toy_trainer, "signs", range(5, 7)), cfg, SOLVER__OPTIMIZER=optimizer)
    steps = []
    step = trainer.optimizer.step
    trainer.optimizer.step = lambda *args, **kwargs: (steps.append(trainer.iter), step(*args, **kwargs))
    with caplog.at_level(logging.WARNING, "uniperceiver_v2"):
        trainer.train()
    skipped = iterations_of("signs")[5:7]
    if optimizer == "AdamW":
        assert [t for t in range(60) if t not in steps] == skipped
    assert trainer.storage.latest()["signs/skipped_steps"][0] == 2
    assert "lines/skipped_steps" not in trainer.storage.latest()
    assert trainer.state_dict()["_trainer"]["skipped"]["all"] == {"signs": 2}
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    warnings = [r.getMessage() for r in caplog.records if "not finite" in r.getMessage()]
    assert len(warnings) == 2
    assert f"task 'signs' has a loss or a gradient that is not finite in iteration {skipped[0]}" in warnings[0]
    assert "with the images 500, 501, 502" in warnings[0]


def test_a_skipped_step_changes_neither_weights_nor_moments(toy_trainer, cfg):
    first = iterations_of("signs")[0]
    changed = {}
    for name, trainer_class in (("poisoned", poison(toy_trainer, "signs", range(1))), ("clean", toy_trainer)):
        trainer = make(trainer_class, cfg, SOLVER__MAX_ITER=first + 1, SOLVER__WEIGHT_AVERAGING=0.0)
        before = {}

        def remember(trainer=trainer, before=before):
            if trainer.iter == first:
                before["weights"] = [p.detach().clone() for p in trainer.model.parameters()]
                before["moments"] = [v.clone() for s in trainer.optimizer.state.values() for v in s.values()]

        run_step = trainer.run_step
        trainer.run_step = lambda run_step=run_step, remember=remember: (remember(), run_step())
        trainer.train()
        moments = [v for s in trainer.optimizer.state.values() for v in s.values()]
        pairs = [*zip(before["weights"], trainer.model.parameters()), *zip(before["moments"], moments)]
        changed[name] = any(not torch.equal(a, b) for a, b in pairs)
    assert changed == {"poisoned": False, "clean": True}


def test_training_stops_after_too_many_skipped_steps_of_a_task_in_a_row(toy_trainer, cfg):
    """Steps of the other task in between do not count."""
    trainer = make(poison(toy_trainer, "signs", range(2, 60)), cfg, SOLVER__MAX_SKIPPED_STEPS=3)
    last = iterations_of("signs")[4]
    with pytest.raises(FloatingPointError, match=rf"'signs'.* iteration {last} \(signs/loss_sign nan.*images 400, 401"):
        trainer.train()
    assert trainer.iter == last


def test_mixed_sampling_blames_the_task_whose_losses_are_not_finite(toy_trainer, cfg):
    settings = {"SOLVER__SAMPLING": "mixed", "SOLVER__OPTIMIZER": "AdamW", "SOLVER__MAX_SKIPPED_STEPS": 2}
    trainer = make(poison(toy_trainer, "signs", range(3, 60)), cfg, **settings)
    with pytest.raises(FloatingPointError, match=r"task 'signs'.* iteration 4 .*images 400, 401"):
        trainer.train()
    assert trainer.state_dict()["_trainer"]["skipped"]["all"] == {"signs": 2}


def test_a_good_step_in_between_starts_the_count_anew(toy_trainer, cfg):
    trainer = make(poison(toy_trainer, "signs", range(0, 60, 2)), cfg, SOLVER__MAX_SKIPPED_STEPS=2)
    trainer.train()
    steps = len(iterations_of("signs"))
    skipped = trainer.state_dict()["_trainer"]["skipped"]
    assert trainer.iter == 60
    assert skipped["all"] == {"signs": (steps + 1) // 2}
    assert skipped["all"]["signs"] > 2
    assert skipped["in_row"] == {"lines": 0, "signs": steps % 2}


def test_both_ranks_skip_what_one_of_them_cannot_use(toy_trainer, cfg, processes, tmp_path):
    def work() -> None:
        rank = torch.distributed.get_rank()
        trainer_class = poison(toy_trainer, "lines", range(3, 4)) if rank == 1 else toy_trainer
        trainer = make(trainer_class, cfg, SOLVER__MAX_ITER=20, OUTPUT_DIR=str(tmp_path / "out"))
        trainer.train()
        weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
        torch.save((weights, dict(trainer._trainer._skipped)), tmp_path / f"{rank}.pth")

    for pid in processes.fork_ranks(work, tmp_path):
        assert processes.exit_code(pid) == 0
    (first, counts), (second, others) = (torch.load(tmp_path / f"{r}.pth", weights_only=True) for r in (0, 1))
    assert torch.equal(first, second)
    assert first.isfinite().all()
    assert counts == others == {"lines": 1}


FLOAT16 = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__PRECISION": "float16"}


def test_float16_lowers_a_scale_that_is_too_high_and_blames_no_task(toy_trainer, cfg):
    trainer = make(toy_trainer, cfg, SOLVER__MAX_SKIPPED_STEPS=1, **FLOAT16)
    trainer._trainer._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**28)
    trainer.train()
    scales = [value for value, _ in trainer.storage.history("loss_scale").values()]
    assert scales[0] == 2.0**27
    assert 1 < scales[-1] < 2.0**27
    assert trainer.state_dict()["_trainer"]["skipped"]["all"] == {}
    assert all(p.isfinite().all() for p in trainer.model.parameters())


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("optimizer", ["TaskBalancedAdamW", "AdamW"])
def test_the_loss_curve_in_half_precision_stays_within_three_percent(toy_trainer, cfg, precision, optimizer):
    def losses(**changes) -> torch.Tensor:
        trainer = make(toy_trainer, cfg, SOLVER__OPTIMIZER=optimizer, **changes)
        if trainer._trainer._scaler is not None:
            trainer._trainer._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        trainer.train()
        return torch.tensor([value for value, _ in trainer.storage.history("total_loss").values()])

    half, full = losses(SOLVER__AMP__ENABLED=True, SOLVER__AMP__PRECISION=precision), losses()
    assert not torch.equal(half, full)
    torch.testing.assert_close(half, full, rtol=0.03, atol=0.01)


def test_float16_resumes_with_its_scale(toy_trainer, cfg):
    make(toy_trainer, cfg, SOLVER__MAX_ITER=20, **FLOAT16).train()
    saved = torch.load(Path(cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)["trainer"]["_trainer"]["scaler"]
    trainer = make(toy_trainer, cfg, **FLOAT16)
    trainer.resume_or_load(resume=True)
    assert trainer._trainer._scaler.state_dict() == saved
