"""TaskBalancedAdamW compared with a plain loop over the paper's equations, and with torch.optim.AdamW."""

import contextlib
import copy
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from uniperceiver_v2.solver import TaskBalancedAdamW, TaskGradient, gradient_norm, task_balanced

TASKS = {"a": (0.5, 1.0), "b": (0.3, 2.0), "c": (0.2, 0.25)}
# Which of the parameters each task reaches.
REACH = {"a": (0, 1), "b": (0, 2), "c": (0, 1, 2)}
SHAPES = ((4, 3), (5,), (2, 2, 2))


def draw_tasks(steps: int) -> list[str]:
    generator = torch.Generator().manual_seed(3)
    ratios = torch.tensor([ratio for ratio, _ in TASKS.values()])
    return [list(TASKS)[i] for i in torch.multinomial(ratios, steps, True, generator=generator)]


def set_gradients(parameters: list[torch.nn.Parameter], task: str, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for index, parameter in enumerate(parameters):
        gradient = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 10 ** (step % 5 - 2)
        parameter.grad = gradient.to(parameter.dtype) if index in REACH[task] else None


def reference(parameters, groups, tasks, drawn, gradients_of, betas, eps):
    """The paper's update, number by number. ``groups`` has (lr, weight decay) of each parameter."""
    values = [p.detach().double().flatten().tolist() for p in parameters]
    m = [[0.0] * len(v) for v in values]
    n = [[0.0] * len(v) for v in values]
    for t, task in enumerate(drawn, start=1):
        ratio, weight = tasks[task]
        gradients = gradients_of(task, t - 1)
        norm = math.sqrt(sum(g * g for parameter in gradients for g in parameter))
        for i, parameter in enumerate(gradients):
            lr, decay = groups[i]
            for j, raw in enumerate(parameter):
                g = weight * raw / norm
                m[i][j] = betas[0] * m[i][j] + (1 - betas[0]) / ratio * g
                n[i][j] = betas[1] * n[i][j] + (1 - betas[1]) / ratio * g * g
                m_hat = m[i][j] / (1 - betas[0] ** t)
                n_hat = n[i][j] / (1 - betas[1] ** t)
                values[i][j] -= lr * decay * values[i][j]
                values[i][j] -= lr * m_hat / (math.sqrt(n_hat) + eps)
    return values


def make_parameters(dtype=torch.float64) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for s in SHAPES]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_equals_the_papers_equations_over_many_steps_tasks_and_groups(dtype, tolerance):
    parameters = make_parameters(dtype)
    groups = [(1e-2, 0.1), (1e-2, 0.1), (3e-3, 0.0)]
    betas, eps, drawn = (0.8, 0.95), 1e-8, draw_tasks(200)

    def gradients_of(task, step):
        holders = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
        set_gradients(holders, task, step)
        zero = torch.zeros
        return [(zero(h.shape) if h.grad is None else h.grad).double().flatten().tolist() for h in holders]

    expected = reference(parameters, groups, TASKS, drawn, gradients_of, betas, eps)
    optimizer = TaskBalancedAdamW(
        [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 3e-3, "weight_decay": 0.0}],
        lr=1e-2,
        betas=betas,
        eps=eps,
        weight_decay=0.1,
        tasks=TASKS,
    )
    for step, task in enumerate(drawn):
        set_gradients(parameters, task, step)
        optimizer.step(task=task)
    for parameter, values in zip(parameters, expected):
        actual = parameter.detach().double().flatten()
        torch.testing.assert_close(actual, torch.tensor(values, dtype=torch.float64), rtol=tolerance, atol=tolerance)


def test_is_adamw_for_one_task_whose_weight_is_the_gradients_norm():
    ours, theirs = make_parameters(), make_parameters()
    optimizer = TaskBalancedAdamW(ours, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1, tasks={"a": (1.0, 1.0)})
    adamw = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
    for step in range(50):
        set_gradients(ours, "c", step)
        set_gradients(theirs, "c", step)
        optimizer.tasks["a"] = (1.0, gradient_norm(ours))
        optimizer.step(task="a")
        adamw.step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_first_moment_tracks_the_sum_of_the_tasks_gradients():
    """E[m] = Σ_k g_k over the draws, also for rarely drawn tasks and for parameters that not all tasks use."""
    parameters = make_parameters()
    beta, steps, burn_in = 0.9, 6000, 200
    optimizer = TaskBalancedAdamW(parameters, lr=0.0, betas=(beta, 0.99), tasks=TASKS)
    fixed = {}
    for index, task in enumerate(TASKS):
        set_gradients(parameters, task, 5 * index)  # the same scale for all: step % 5 is 0
        fixed[task] = [None if p.grad is None else p.grad.clone() for p in parameters]
    total, total_of_squares = 0.0, 0.0
    for step, task in enumerate(draw_tasks(steps)):
        for p, g in zip(parameters, fixed[task]):
            p.grad = None if g is None else g.clone()
        optimizer.step(task=task)
        if step >= burn_in:
            m = torch.cat([optimizer.state[p]["exp_avg"].flatten() for p in parameters])
            total, total_of_squares = total + m, total_of_squares + m**2
    count = steps - burn_in
    mean = total / count
    deviation = (total_of_squares / count - mean**2).sqrt()
    # Successive moments are correlated over about (1+β)/(1-β) steps.
    standard_error = deviation * math.sqrt((1 + beta) / (1 - beta) / count)

    expected = torch.zeros_like(mean)
    for task, (_, weight) in TASKS.items():
        flat = torch.cat(
            [torch.zeros(p.numel()).double() if g is None else g.flatten() for p, g in zip(parameters, fixed[task])]
        )
        expected += weight * flat / flat.norm()
    assert ((mean - expected).abs() < 4 * standard_error).all()
    assert standard_error.max() < 0.1 * expected.abs().max()


def test_an_unreached_parameter_moves_on_and_its_moments_decay():
    parameters = make_parameters()
    optimizer = TaskBalancedAdamW(parameters, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0, tasks=TASKS)
    set_gradients(parameters, "b", 0)
    optimizer.step(task="b")
    before = parameters[2].detach().clone()
    state = copy.deepcopy(optimizer.state[parameters[2]])
    set_gradients(parameters, "a", 1)
    optimizer.step(task="a")
    torch.testing.assert_close(optimizer.state[parameters[2]]["exp_avg"], 0.9 * state["exp_avg"])
    torch.testing.assert_close(optimizer.state[parameters[2]]["exp_avg_sq"], 0.99 * state["exp_avg_sq"])
    assert (parameters[2] != before).all()


def test_a_zero_gradient_changes_nothing_at_the_first_step_and_is_finite():
    parameters = make_parameters()
    before = [p.detach().clone() for p in parameters]
    optimizer = TaskBalancedAdamW(parameters, lr=1e-2, weight_decay=0.0, tasks=TASKS)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    optimizer.step(task="a")
    for p in parameters:
        p.grad = None
    optimizer.step(task="b")
    assert optimizer.last_gradient_norm == 0.0
    for p, old in zip(parameters, before):
        assert torch.equal(p, old)


def test_gradients_below_the_floor_are_not_blown_up():
    parameters = make_parameters()
    optimizer = TaskBalancedAdamW(parameters, betas=(0.0, 0.99), tasks=TASKS, norm_floor=1e-3)
    for p in parameters:
        p.grad = torch.full_like(p, 1e-6)
    optimizer.step(task="a")
    torch.testing.assert_close(optimizer.state[parameters[0]]["exp_avg"], torch.full(SHAPES[0], 1e-3 / 0.5).double())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused_and_changes_nothing(bad):
    parameters = make_parameters()
    optimizer = TaskBalancedAdamW(parameters, tasks=TASKS)
    set_gradients(parameters, "c", 0)
    optimizer.step(task="c")
    before = copy.deepcopy(([p.detach() for p in parameters], optimizer.state_dict()))
    parameters[0].grad[0, 0] = bad
    with pytest.raises(FloatingPointError, match="'c'"):
        optimizer.step(task="c")
    for p, old in zip(parameters, before[0]):
        assert torch.equal(p, old)
    torch.testing.assert_close(optimizer.state_dict(), before[1], rtol=0, atol=0)


def test_the_state_survives_a_file_of_tensors_alone(tmp_path):
    def run(parameters, optimizer, first, last):
        for step, task in list(enumerate(draw_tasks(40)))[first:last]:
            set_gradients(parameters, task, step)
            optimizer.step(task=task)

    straight = make_parameters()
    run(straight, TaskBalancedAdamW(straight, tasks=TASKS), 0, 40)

    first = make_parameters()
    optimizer = TaskBalancedAdamW(first, tasks=TASKS)
    run(first, optimizer, 0, 20)
    torch.save({"optimizer": optimizer.state_dict(), "weights": first}, tmp_path / "state.pth")
    saved = torch.load(tmp_path / "state.pth", weights_only=True)
    second = [torch.nn.Parameter(p.detach().clone()) for p in saved["weights"]]
    optimizer = TaskBalancedAdamW(second, lr=7.0, tasks=TASKS)
    optimizer.load_state_dict(saved["optimizer"])
    run(second, optimizer, 20, 40)
    for a, b in zip(straight, second):
        assert torch.equal(a, b)


def scaled_step(parameters: list[torch.nn.Parameter], optimizer, scaler, task: str, step: int, way: str) -> None:
    """A step with the gradients of :func:`set_gradients`, scaled as for half precision."""
    set_gradients(parameters, task, step)
    gradients = [p.grad for p in parameters]
    optimizer.zero_grad()
    loss = sum((p * g).sum() for p, g in zip(parameters, gradients) if g is not None)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    if way == "scaler":
        scaler.step(optimizer, task=task)
    else:  # as the trainer does, which counts the steps that were skipped
        with contextlib.suppress(FloatingPointError):
            optimizer.step(task=task)
    scaler.update()


@pytest.mark.parametrize("way", ["scaler", "trainer"])
def test_a_step_by_scaled_gradients_is_that_without_scaling(way):
    plain, scaled = make_parameters(torch.float32), make_parameters(torch.float32)
    expected, optimizer = TaskBalancedAdamW(plain, tasks=TASKS), TaskBalancedAdamW(scaled, tasks=TASKS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for step, task in enumerate(draw_tasks(12)):
        set_gradients(plain, task, step)
        expected.step(task=task)
        scaled_step(scaled, optimizer, scaler, task, step, way)
        assert optimizer.last_gradient_norm == expected.last_gradient_norm
    assert all(map(torch.equal, scaled, plain))
    assert scaler.get_scale() == 2.0**12


@pytest.mark.parametrize("way", ["scaler", "trainer"])
def test_a_step_by_infinite_scaled_gradients_is_skipped_and_the_scale_halves(way):
    parameters = make_parameters(torch.float32)
    optimizer = TaskBalancedAdamW(parameters, tasks=TASKS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaled_step(parameters, optimizer, scaler, "c", 0, way)
    before = copy.deepcopy(([p.detach() for p in parameters], optimizer.state_dict()))

    scaler.update(new_scale=2.0**127)  # times step 4's gradients of about 100 is more than float32 can hold
    scaled_step(parameters, optimizer, scaler, "c", 4, way)
    assert scaler.get_scale() == 2.0**126
    assert all(map(torch.equal, parameters, before[0]))
    torch.testing.assert_close(optimizer.state_dict(), before[1], rtol=0, atol=0)

    scaler.update(new_scale=2.0**12)
    scaled_step(parameters, optimizer, scaler, "c", 4, way)
    assert all(group["step"] == 2 for group in optimizer.param_groups)
    assert not any(map(torch.equal, parameters, before[0]))


def test_a_step_takes_as_many_operations_for_many_parameters_as_for_few():
    class Counter(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.count += 1
            return function(*args, **(kwargs or {}))

    def operations(parameters: list[torch.nn.Parameter]) -> int:
        optimizer = TaskBalancedAdamW(parameters, tasks=TASKS)
        for _ in range(2):  # the first step makes the moments
            for index, p in enumerate(parameters):
                p.grad = torch.ones_like(p) if index % 3 else None
            with Counter() as counter:
                optimizer.step(task="a")
        return counter.count

    few, many = operations(make_parameters()), operations([p for _ in range(20) for p in make_parameters()])
    assert few == many < 30


@pytest.mark.parametrize("reached", [(0, 1, 2, 3), (1, 3)])
def test_blocks_change_no_bit(monkeypatch, reached):
    """Parameters larger than a block, one of them transposed in memory, and smaller parameters that share a block."""
    shapes = ((5, 9), (3,), (6, 8), (2, 2))

    def trained(block: int) -> list[torch.Tensor]:
        monkeypatch.setattr(task_balanced, "_BLOCK_ELEMENTS", block)
        generator = torch.Generator().manual_seed(0)
        parameters = [torch.nn.Parameter(torch.randn(s, generator=generator)) for s in shapes]
        parameters[2].data = parameters[2].data.T.contiguous().T
        optimizer = TaskBalancedAdamW(parameters, tasks=TASKS)
        for _ in range(3):
            for index, p in enumerate(parameters):
                p.grad = torch.randn(p.shape, generator=generator) if index in reached else None
            optimizer.step(task="b")
        return [*parameters, *(moment for p in parameters for moment in optimizer.state[p].values())]

    whole = trained(2**20)
    for block in (1, 7, 16, 48):
        assert all(map(torch.equal, trained(block), whole))


def test_no_operation_of_the_update_leaves_the_cache(monkeypatch):
    """On a CPU. An update with one pass over the whole model for each operation would read the memory a dozen times."""
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            if "foreach" in str(function) and "norm" not in str(function):
                largest = max(largest, sum(t.numel() for t in args[0]))
            return function(*args, **(kwargs or {}))

    monkeypatch.setattr(task_balanced, "_BLOCK_ELEMENTS", 16)
    parameters = [torch.nn.Parameter(torch.ones(s)) for s in (100, 8, 7, 6, 30)]
    for p in parameters:
        p.grad = torch.ones_like(p)
    with Sizes():
        TaskBalancedAdamW(parameters, tasks=TASKS).step(task="a")
    assert 8 < largest <= 16


def test_a_closure_computes_the_gradient():
    parameter = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = TaskBalancedAdamW([parameter], lr=0.1, weight_decay=0.0, tasks={"a": (1.0, 1.0)})

    def closure():
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure, task="a").item() == 9.0
    assert parameter.item() == pytest.approx(2.9)


@pytest.mark.parametrize(
    "settings",
    [
        {"tasks": {}},
        {"tasks": {"a": (0.0, 1.0)}},
        {"tasks": {"a": (1.5, 1.0)}},
        {"tasks": {"a": (1.0, 0.0)}},
        {"tasks": TASKS, "lr": -1.0},
        {"tasks": TASKS, "betas": (1.0, 0.9)},
        {"tasks": TASKS, "norm_floor": 0.0},
    ],
)
def test_settings_outside_their_range_are_refused(settings):
    with pytest.raises(ValueError):
        TaskBalancedAdamW(make_parameters(), **settings)


def test_a_step_is_by_the_gradient_of_a_task_or_by_draws():
    optimizer = TaskBalancedAdamW(make_parameters(), tasks=TASKS)
    for arguments in ({}, {"task": "a", "draws": [TaskGradient("a", {}, 1.0)]}):
        with pytest.raises(TypeError, match="either a task or draws"):
            optimizer.step(**arguments)


def test_gradient_norm_is_that_of_all_parameters_together():
    parameters = make_parameters(torch.float32)
    set_gradients(parameters, "b", 4)
    flat = torch.cat([p.grad.double().flatten() for p in parameters if p.grad is not None])
    assert gradient_norm(parameters) == pytest.approx(flat.norm().item(), rel=1e-6)
