"""Several draws of tasks in an iteration: the step's formula, and the same run on any number of processes."""

import itertools
import json
import math
import time
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import nn

from uniperceiver_v2 import ranks
from uniperceiver_v2.config.checks import check_config
from uniperceiver_v2.data.order import CountFrom
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.engine.metrics import reproducible
from uniperceiver_v2.engine.schedules import TaskSchedule
from uniperceiver_v2.errors import UserError

from .test_resume import assert_same

RATIOS = {"lines": 2 / 3, "signs": 1 / 3}


@pytest.fixture(autouse=True)
def one_group_afterwards():
    yield
    ranks.set_task_groups(1)


def exact(trainer_class):
    """In float64, without dropout. A rank takes its share of a batch."""

    class Exact(trainer_class):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg).double()
            model.dropout.p = 0.0
            return model

        @classmethod
        def build_task_loader(cls, cfg, task, numbers):
            for batch in super().build_task_loader(cfg, task, numbers):
                share = batch[ranks.rank_in_group() :: ranks.group_size()]
                yield [{**item, "x": item["x"].double()} for item in share]

    return Exact


def make(trainer_class, cfg, **changes):
    cfg = cfg.clone()
    cfg.DATASETS.TEST = ()
    for key, value in changes.items():
        cfg.merge_from_list([key.replace("__", "."), value])
    torch.manual_seed(0)
    return trainer_class(cfg)


def weights_of(trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def on_ranks(work, world_size: int, processes, folder: Path) -> list:
    """What ``work`` returns on each rank."""
    folder.mkdir(exist_ok=True)

    def save() -> None:
        torch.save(work(), folder / f"{comm.get_rank()}.pth")

    for pid in processes.fork_ranks(save, folder, world_size):
        assert processes.exit_code(pid) == 0
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(world_size)]


def test_groups_have_the_draws_of_one_group_and_never_the_same_batch():
    one, three = TaskSchedule(RATIOS, 3), TaskSchedule(RATIOS, 3, groups=3)
    drawn = [[three.task_at(t, group) for group in range(3)] for t in range(3000)]
    assert [*itertools.chain(*drawn)] == [one.task_at(t) for t in range(9000)]  # over two borders of blocks
    for task in RATIOS:
        start = 1001
        numbers = [three.batch_numbers(task, start, range(group, group + 1)) for group in range(3)]
        taken = [iter(of_group) for of_group in numbers]
        found = [next(taken[g]) for t in range(start, 3000) for g in range(3) if drawn[t][g] == task]
        first = sum(row.count(task) for row in drawn[:start])
        assert found == list(range(first, first + len(found)))
        assert list(itertools.islice(numbers[2], 5)) == list(itertools.islice(numbers[2], 5))  # begins anew
        assert next(iter(three.batch_numbers(task, start, range(3)))) == first


def plain_formula(cfg, model: nn.Module, trainer_class, iterations: int) -> tuple[torch.Tensor, list[list[str]]]:
    """The weights after some iterations of two groups by the equations in docs/architecture.md, and the tasks."""
    schedule = TaskSchedule(RATIOS, cfg.SEED)
    batches = {task: iter(trainer_class.build_task_loader(cfg, task, CountFrom(0))) for task in RATIOS}
    beta1, beta2 = cfg.SOLVER.BETAS
    parameters = list(model.parameters())
    m, n = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    drawn = []
    for t in range(1, iterations + 1):
        drawn.append([schedule.task_at(2 * (t - 1) + group) for group in (0, 1)])
        first, second = [0.0] * len(parameters), [0.0] * len(parameters)
        for task in drawn[-1]:
            loss = sum(model(next(batches[task])).values())
            gradients = torch.autograd.grad(loss, parameters, materialize_grads=True, allow_unused=True)
            norm = math.sqrt(sum(g.square().sum().item() for g in gradients))
            for i, g in enumerate(gradients):
                normalised = cfg.TASKS[task].GRADIENT_WEIGHT * g / norm
                first[i] = first[i] + normalised / RATIOS[task] / 2
                second[i] = second[i] + normalised**2 / RATIOS[task] / 2
        with torch.no_grad():
            for i, p in enumerate(parameters):
                m[i] = beta1 * m[i] + (1 - beta1) * first[i]
                n[i] = beta2 * n[i] + (1 - beta2) * second[i]
                if p.ndim == 2:
                    p -= cfg.SOLVER.BASE_LR * cfg.SOLVER.WEIGHT_DECAY * p
                m_hat, n_hat = m[i] / (1 - beta1**t), n[i] / (1 - beta2**t)
                p -= cfg.SOLVER.BASE_LR * m_hat / (n_hat.sqrt() + cfg.SOLVER.EPS)
    return torch.cat([p.detach().flatten() for p in parameters]), drawn


def settings_of_the_formula(cfg):
    cfg = cfg.clone()
    cfg.DATASETS.TEST = ()
    cfg.TASKS.signs.GRADIENT_WEIGHT = 3.0
    cfg.SOLVER.update({"MAX_ITER": 12, "WARMUP_ITERS": 0, "STEPS": (), "LR_SCHEDULER_NAME": "WarmupMultiStepLR"})
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.TASK_GROUPS = 0.1, 2
    return cfg


@pytest.fixture
def expected(toy_trainer, cfg):
    """(weights by the formula, settings)"""
    from detectron2.utils.events import EventStorage

    cfg = settings_of_the_formula(cfg)
    torch.manual_seed(0)
    with EventStorage():
        weights, drawn = plain_formula(cfg, exact(toy_trainer).build_model(cfg), exact(toy_trainer), 12)
    assert any(a == b for a, b in drawn) and any(a != b for a, b in drawn)  # the same task twice, and two tasks
    return weights, cfg


def test_the_step_is_the_papers_with_means_over_the_draws(toy_trainer, expected):
    weights, cfg = expected
    trainer = make(exact(toy_trainer), cfg)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as PyTorch's, that the rate is scheduled before a step
        trainer.train()
    torch.testing.assert_close(weights_of(trainer), weights, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("world_size", [2, 4])
def test_each_group_has_its_own_ranks(toy_trainer, expected, processes, tmp_path, world_size):
    weights, cfg = expected

    def work() -> torch.Tensor:
        trainer = make(exact(toy_trainer), cfg)
        trainer.train()
        return weights_of(trainer)

    found = on_ranks(work, world_size, processes, tmp_path)
    assert all(torch.equal(found[0], other) for other in found)
    torch.testing.assert_close(found[0], weights, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["TaskBalancedAdamW", "AdamW"])
def test_four_groups_train_alike_on_one_process_and_on_two(toy_trainer, cfg, processes, tmp_path, optimizer):
    """Bit for bit, dropout included, for a rank computes whole draws in both cases."""
    changes = {"SOLVER__TASK_GROUPS": 4, "SOLVER__OPTIMIZER": optimizer, "SOLVER__MAX_ITER": 15}

    def work() -> torch.Tensor:
        trainer = make(toy_trainer, cfg, **changes)
        trainer.train()
        return weights_of(trainer)

    one, other = on_ranks(work, 2, processes, tmp_path)
    assert torch.equal(one, other)
    assert torch.equal(one, work())


def test_adamw_steps_by_the_mean_gradient_of_the_draws(toy_trainer, cfg):
    def gradients(**changes) -> dict[str, torch.Tensor]:
        trainer = make(exact(toy_trainer), cfg, SOLVER__OPTIMIZER="AdamW", SOLVER__WARMUP_ITERS=0, **changes)
        for group in trainer.optimizer.param_groups:
            group["lr"] = 0.0
        trainer.train()
        zero = torch.zeros(1, dtype=torch.float64)
        return {name: zero if p.grad is None else p.grad for name, p in trainer.model.named_parameters()}

    cfg.SEED = next(seed for seed in range(99) if len({TaskSchedule(RATIOS, seed).task_at(t) for t in (0, 1)}) == 2)
    found = gradients(SOLVER__TASK_GROUPS=2, SOLVER__MAX_ITER=1)
    lines, signs = (gradients(TASKS__NAMES=[task], SOLVER__MAX_ITER=1) for task in RATIOS)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, (lines[name] + signs[name]) / 2)


def test_accumulated_parts_give_the_whole_batchs_training(toy_trainer, cfg):
    whole, parts = (
        make(exact(toy_trainer), cfg, SOLVER__TASK_GROUPS=2, SOLVER__MAX_ITER=15, SOLVER__ACCUMULATION_STEPS=steps)
        for steps in (1, 4)
    )
    whole.train()
    parts.train()
    torch.testing.assert_close(weights_of(whole), weights_of(parts), rtol=1e-9, atol=1e-11)


def test_sums_and_gathered_rows_stay_in_the_group(processes, tmp_path):
    def work() -> list:
        ranks.set_task_groups(2)
        rank = comm.get_rank()
        row = torch.full((1, 2), float(rank), requires_grad=True)
        gathered = ranks.gather_from_ranks(row)
        (gathered * torch.tensor([[1.0], [10.0]]) * (rank + 1)).sum().backward()
        sums = ranks.sum_over_ranks(torch.tensor(float(rank)))
        divisor = ranks.mean_divisor(sums)
        return [gathered.detach()[:, 0].tolist(), row.grad[0, 0].item(), sums.item(), divisor.item()]

    found = on_ranks(work, 4, processes, tmp_path)
    # A row's gradient is that of the sum of its group's losses: rank 0's is 1·(1 + 2), rank 3's is 10·(3 + 4).
    assert found[0] == [[0, 1], 3, 1, 0.5]
    assert found[1] == [[0, 1], 30, 1, 0.5]
    assert found[2] == [[2, 3], 7, 5, 2.5]
    assert found[3] == [[2, 3], 70, 5, 2.5]


@pytest.mark.parametrize(
    ("count", "group"), [(2, ranks.process_group), (2, ranks.gradient_group), (1, ranks.gradient_group)]
)
def test_groups_wait_as_long_as_the_processes_do(processes, tmp_path, count, group):
    """A group has the time limit that it is given, not PyTorch's."""
    over = tmp_path / "over"

    def work() -> None:
        ranks.set_task_groups(count, timedelta(seconds=3))
        own = group()
        if comm.get_rank() == 0:
            with pytest.raises(RuntimeError, match=r"(?i)timed out waiting for 3000 ?ms|timed out waiting 3000 ?ms"):
                dist.all_reduce(torch.ones(1), group=own)
            over.touch()
        deadline = time.monotonic() + 30
        while not over.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert over.exists()

    pids = processes.fork_ranks(work, tmp_path, 2 * count)
    assert [processes.exit_code(pid) for pid in pids] == [0] * 2 * count


def poison(trainer_class, task: str, is_bad):
    class Poisoned(trainer_class):
        @classmethod
        def build_task_loader(cls, cfg, name, numbers):
            for n, batch in zip(numbers, super().build_task_loader(cfg, name, numbers)):
                bad = name == task and is_bad(n)
                yield [{**item, "x": item["x"] * math.nan if bad else item["x"], "image_id": n} for item in batch]

    return Poisoned


def test_a_draw_that_is_not_finite_is_left_out_on_all_ranks(toy_trainer, cfg, processes, tmp_path, caplog):
    """All draws of "signs" are bad: training is that by the other draws, and no step is lost."""

    def work() -> list:
        trainer = make(
            poison(toy_trainer, "signs", lambda n: True),
            cfg,
            SOLVER__TASK_GROUPS=2,
            SOLVER__MAX_ITER=20,
            SOLVER__MAX_SKIPPED_STEPS=99,
        )
        trainer.train()
        losses = len(trainer.storage.history("lines/total_loss").values()) if comm.is_main_process() else 0
        steps = [group["step"] for group in trainer.optimizer.param_groups]
        return [weights_of(trainer), dict(trainer._trainer._skipped), losses, steps]

    draws = [[TaskSchedule(RATIOS, cfg.SEED, 2).task_at(t, g) for g in (0, 1)] for t in range(20)]
    signs = [*itertools.chain(*draws)].count("signs")
    first, second = on_ranks(work, 2, processes, tmp_path)
    assert torch.equal(first[0], second[0]) and first[0].isfinite().all()
    assert first[1] == second[1] == {"signs": signs} and signs > 5
    assert first[2] == 40 - signs
    steps = sum(row != ["signs", "signs"] for row in draws)
    assert first[3] == second[3] == [steps] * len(first[3]) and steps < 20
    assert torch.equal(first[0], work()[0])


def test_too_many_skipped_draws_in_a_row_end_all_ranks(toy_trainer, cfg, processes, tmp_path):
    def work() -> str:
        trainer = make(
            poison(toy_trainer, "signs", lambda n: n >= 2), cfg, SOLVER__TASK_GROUPS=2, SOLVER__MAX_SKIPPED_STEPS=3
        )
        with pytest.raises(FloatingPointError) as error:
            trainer.train()
        return f"{trainer.iter} {error.value}"

    schedule = TaskSchedule(RATIOS, cfg.SEED)
    last = [draw for draw in range(99) if schedule.task_at(draw) == "signs"][4]  # the batches 2, 3 and 4
    first, second = on_ranks(work, 2, processes, tmp_path)
    assert first == second
    assert first.startswith(f"{last // 2} task 'signs'")
    assert "with the images 4, 4, 4, 4, 4, 4, 4, 4;" in first


def test_float16_has_one_scale_on_all_ranks(toy_trainer, cfg, processes, tmp_path):
    def work() -> list:
        trainer = make(
            toy_trainer,
            cfg,
            SOLVER__TASK_GROUPS=2,
            SOLVER__MAX_SKIPPED_STEPS=1,
            SOLVER__AMP__ENABLED=True,
            SOLVER__AMP__PRECISION="float16",
        )
        trainer._trainer._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=5)
        trainer.train()
        scales = [value for value, _ in trainer.storage.history("loss_scale").values()]
        return [weights_of(trainer), scales, dict(trainer._trainer._skipped)]

    first, second = on_ranks(work, 2, processes, tmp_path)
    assert torch.equal(first[0], second[0]) and first[0].isfinite().all()
    assert first[1] == second[1] and first[2] == second[2] == {}
    assert {b / a for a, b in itertools.pairwise(first[1])} == {0.5, 1, 2}  # lowered by overflows, and raised again


def rows_of(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "metrics.json").read_text().splitlines()]


def test_metrics_hold_the_losses_and_scalars_of_every_draw(toy_trainer, cfg, processes, tmp_path):
    def work() -> dict:
        trainer = make(toy_trainer, cfg, SOLVER__TASK_GROUPS=2)
        trainer.train()
        histories = trainer.storage.histories().items() if comm.is_main_process() else ()
        return {name: len(history.values()) for name, history in histories}

    counts = on_ranks(work, 2, processes, tmp_path)[0]
    drawn = TaskSchedule(RATIOS, cfg.SEED, 2).draws_before(60)
    for task, loss in (("lines", "loss_square"), ("signs", "loss_sign")):
        for name in (loss, "total_loss", "temperature", "grad_norm", "time", "data_time"):
            assert counts[f"{task}/{name}"] == drawn[task], name
    assert counts["total_loss"] == counts["exchange_time"] == counts["wait_time"] == 60
    keys = {key for row in rows_of(cfg.OUTPUT_DIR) for key in row}
    assert {"lines/temperature", "signs/temperature", "exchange_time"} <= keys


def test_a_run_in_two_halves_or_on_one_process_is_the_whole_run_on_two(real_cfg, processes, tmp_path):
    real_cfg.SOLVER.TASK_GROUPS, real_cfg.SOLVER.MAX_ITER = 2, 8

    def train(name: str, workers: int, resume: bool, until: int | None = None) -> None:
        cfg = real_cfg.clone()
        cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = str(tmp_path / name), workers
        torch.manual_seed(int(resume))  # nothing may be left to the state of a generator
        trainer = UniPerceiverTrainer(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.max_iter = until or trainer.max_iter
        trainer.train()

    def on_two() -> None:
        train("whole", 0, resume=False)
        train("halves", 1, resume=False, until=5)
        train("halves", 0, resume=True)

    pids = [*processes.fork_ranks(on_two, tmp_path), processes.fork(lambda: train("alone", 0, resume=False))]
    assert [processes.exit_code(pid) for pid in pids] == [0, 0, 0]

    def outcome(name: str) -> tuple[dict, list[dict]]:
        checkpoint = torch.load(tmp_path / name / "model_final.pth", weights_only=True)
        return checkpoint, [reproducible(row) for row in rows_of(str(tmp_path / name))]

    whole = outcome("whole")
    assert whole[1]
    for name in ("halves", "alone"):
        assert_same(whole, outcome(name), name)


@pytest.mark.parametrize(
    ("changes", "world_size", "message"),
    [
        (["SOLVER.TASK_GROUPS", 2], 3, "3 processes and 2 groups cannot be divided equally"),
        (["SOLVER.TASK_GROUPS", 0], 1, "must be at least 1, not 0"),
        (["SOLVER.TASK_GROUPS", 2, "SOLVER.SAMPLING", "mixed", "SOLVER.OPTIMIZER", "AdamW"], 2, "'unmixed'"),
        (["SOLVER.TASK_GROUPS", 2, "TASKS.signs.IMS_PER_BATCH", 3], 4, "2 processes cannot share 3 equally"),
        (["SOLVER.TASK_GROUPS", 2, "SOLVER.ACCUMULATION_STEPS", 5], 8, "the 4 of a process are fewer"),
    ],
)
def test_settings_that_groups_cannot_have(cfg, changes, world_size, message):
    for task in cfg.TASKS.NAMES:
        cfg.TASKS[task].DATASETS = ["toy_lines_test"]
    check_config(cfg, training=True, world_size=2)
    cfg.merge_from_list(changes)
    with pytest.raises(UserError, match=message):
        check_config(cfg, training=True, world_size=world_size)


def test_the_ranks_of_a_group_share_a_batch(cfg):
    for task in cfg.TASKS.NAMES:
        cfg.TASKS[task].DATASETS = ["toy_lines_test"]
    cfg.TASKS.signs.IMS_PER_BATCH = 2
    cfg.SOLVER.TASK_GROUPS = 4
    check_config(cfg, training=True, world_size=8)
    check_config(cfg, training=True, world_size=2)
    cfg.SOLVER.TASK_GROUPS = 2
    with pytest.raises(UserError, match="4 processes cannot share 2 equally"):
        check_config(cfg, training=True, world_size=8)


def test_parameters_that_are_split_over_processes_are_refused(toy_trainer, cfg):
    class Split(nn.Parameter):
        def to_local(self):
            raise AssertionError("not reached")

    class Sharded(toy_trainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            model.line.bias = Split(torch.zeros(1))
            return model

    make(toy_trainer, cfg, SOLVER__TASK_GROUPS=2)
    with pytest.raises(UserError, match="TASK_GROUPS"):
        make(Sharded, cfg, SOLVER__TASK_GROUPS=2)
