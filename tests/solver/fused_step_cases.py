"""The fused step compared with the multi-tensor one.

``test_fused_step`` runs this file in a separate process, as Triton's interpreter has to be chosen before Triton is
imported. With a GPU it also runs the compiled kernel.
"""

import copy
import os

import pytest
import torch

from uniperceiver_v2.solver import TaskBalancedAdamW, TaskGradient, fused_step, task_balanced

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
TASKS = {"a": (0.5, 1.0), "b": (0.3, 2.0), "c": (0.2, 0.25)}
SHAPES = [(3000,), (7,), (1,), (0,), (40, 60), (8, 4, 3, 3), ()]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(fused_step, "CHUNK", 2048)  # so that parameters have several
    monkeypatch.setattr(fused_step, "BLOCK", 1024)
    applies = fused_step.in_one_order if DEVICE == "cpu" else fused_step.fused_step_applies
    monkeypatch.setattr(task_balanced, "fused_step_applies", applies)


def make_parameters() -> list[torch.nn.Parameter]:
    torch.manual_seed(1)
    parameters = [torch.nn.Parameter(torch.randn(s).to(DEVICE)) for s in SHAPES]
    parameters[5].data = parameters[5].data.contiguous(memory_format=torch.channels_last)
    return parameters


def make_optimizer(parameters: list[torch.nn.Parameter], fused: bool) -> TaskBalancedAdamW:
    groups = [
        {"params": parameters[:2]},
        {"params": parameters[2:5], "lr": 3e-3, "weight_decay": 0.0},
        {"params": []},
        {"params": parameters[5:], "lr": 0.0},
    ]
    return TaskBalancedAdamW(groups, lr=1e-2, betas=(0.8, 0.95), weight_decay=0.1, tasks=TASKS, fused=fused)


def gradients_of(parameters: list[torch.nn.Parameter], step: int, unaligned: bool = False) -> dict:
    """Some parameters have none. An unaligned gradient is a view, as of a bucket."""
    torch.manual_seed(100 + step)
    found = {}
    for index, p in enumerate(parameters):
        gradient = torch.randn(p.shape).to(DEVICE) * 10 ** (step % 4 - 2)
        if (index + step) % 3:
            bucket = torch.empty(p.numel() + 1, device=DEVICE)[1:].as_strided(p.shape, p.stride(), int(unaligned))
            found[p] = bucket.copy_(gradient)
    return found


@pytest.fixture
def launches(monkeypatch):
    found, plain = [], fused_step.fused_step
    monkeypatch.setattr(task_balanced, "fused_step", lambda groups: found.append(plain(groups)))
    return found


@pytest.mark.parametrize("unaligned", [False, True])
def test_equals_the_multi_tensor_step(launches, unaligned):
    ours, theirs = make_parameters(), make_parameters()
    fused, plain = make_optimizer(ours, True), make_optimizer(theirs, False)
    for step in range(12):
        for parameters, optimizer in ((ours, fused), (theirs, plain)):
            tasks = list(TASKS)[step % 3 :][: 1 + step % 2]  # one draw or two
            draws = [
                TaskGradient(task, gradients_of(parameters, 3 * step + i, unaligned), 2.0 + i)
                for i, task in enumerate(tasks)
            ]
            optimizer.step_of_draws(draws)
    assert len(launches) == 12
    for p, q in zip(ours, theirs):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
        assert p.stride() == q.stride()
        for key, value in fused.state[p].items():
            torch.testing.assert_close(value, plain.state[q][key], rtol=1e-5, atol=1e-6)
    assert [g["step"] for g in fused.param_groups] == [12, 12, 0, 12]
    assert fused.state_dict().keys() == plain.state_dict().keys()
    assert all("fused" not in group for group in fused.state_dict()["param_groups"])


def test_a_step_is_seen_by_what_looks_at_versions(launches):
    parameters = make_parameters()
    optimizer = make_optimizer(parameters, True)
    before = [p._version for p in parameters]
    optimizer.step_of_draws([TaskGradient("a", gradients_of(parameters, 0), 1.0)])
    assert launches
    assert all(p._version > old for p, old in zip(parameters, before))


@pytest.mark.parametrize("case", ["float64", "another order", "a part with gaps"])
def test_other_tensors_take_the_multi_tensor_step(launches, case):
    parameters = make_parameters()
    gradients = gradients_of(parameters, 0)
    if case == "float64":
        gradients = {p: g.double() for p, g in gradients.items()}
        for p in parameters:
            p.data = p.data.double()
    elif case == "another order":
        assert parameters[5] in gradients
        gradients[parameters[5]] = gradients[parameters[5]].contiguous()
    else:
        parameters[4].data = torch.randn(40, 120, device=DEVICE)[:, ::2]
    plain = make_optimizer(copy.deepcopy(parameters), False)
    optimizer = make_optimizer(parameters, True)
    others = dict(zip(parameters, (p for group in plain.param_groups for p in group["params"]), strict=True))
    optimizer.step_of_draws([TaskGradient("a", gradients, 1.0)])
    plain.step_of_draws([TaskGradient("a", {others[p]: g for p, g in gradients.items()}, 1.0)])
    assert not launches
    assert all(torch.equal(p, q) for p, q in others.items())
