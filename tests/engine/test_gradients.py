"""Gradients averaged over ranks that use different parameters."""

from unittest import mock

import pytest
import torch

from uniperceiver_v2.engine import gradients
from uniperceiver_v2.engine.gradients import GradientAverager, broadcast_state

SHAPES = ((3, 5), (7,), (2, 2), (4,))


def gradient(rank: int, index: int) -> torch.Tensor | None:
    """Rank 0 uses the parameters 0 and 1, rank 1 the parameters 0 and 2. No rank uses the last one."""
    if index not in ((0, 1), (0, 2))[rank]:
        return None
    return torch.randn(SHAPES[index], generator=torch.Generator().manual_seed(10 * rank + index))


def average(rank: int, dtypes: list[torch.dtype]) -> tuple[list[torch.nn.Parameter], list[float]]:
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in zip(SHAPES, dtypes)]
    for index, parameter in enumerate(parameters):
        found = gradient(rank, index)
        parameter.grad = None if found is None else found.to(parameter.dtype)
    return parameters, GradientAverager(parameters).average([torch.tensor(float(rank)), 2.0])


def test_gradients_and_numbers_are_means_over_the_ranks(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET_BYTES", 70)  # several buckets, one of them too small for its gradient
    dtypes = [torch.float32, torch.float32, torch.float64, torch.float32]

    def work() -> None:
        rank = torch.distributed.get_rank()
        parameters, numbers = average(rank, dtypes)
        torch.save(([p.grad for p in parameters], numbers), tmp_path / f"{rank}.pth")

    for pid in processes.fork_ranks(work, tmp_path):
        assert processes.exit_code(pid) == 0
    for rank in (0, 1):
        found, numbers = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert numbers == [0.5, 2.0]
        for index, dtype in enumerate(dtypes):
            of_ranks = [gradient(r, index) for r in (0, 1)]
            if index == 3:
                assert found[index] is None  # as on one rank
                continue
            expected = sum((g for g in of_ranks if g is not None), torch.zeros(SHAPES[index])) / 2
            assert torch.equal(found[index], expected.to(dtype))


def test_one_rank_keeps_its_gradients():
    parameters, numbers = average(0, [torch.float32] * 4)
    assert numbers == [0.0, 2.0]
    assert torch.equal(parameters[0].grad, gradient(0, 0))
    assert parameters[2].grad is None


def test_all_ranks_start_from_the_firsts_parameters_and_buffers(processes, tmp_path):
    def work() -> None:
        torch.manual_seed(torch.distributed.get_rank())
        model = torch.nn.BatchNorm1d(3)
        torch.nn.init.normal_(model.weight)
        model.running_mean.normal_()
        broadcast_state(model)
        torch.manual_seed(0)
        first = torch.nn.BatchNorm1d(3)
        torch.nn.init.normal_(first.weight)
        first.running_mean.normal_()
        assert torch.equal(model.weight, first.weight)
        assert torch.equal(model.running_mean, first.running_mean)

    for pid in processes.fork_ranks(work, tmp_path):
        assert processes.exit_code(pid) == 0


class Branches(torch.nn.Module):
    """Layers of which each backward pass reaches some."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(3, 3) for _ in range(6))

    def forward(self, x: torch.Tensor, reached: list[int]) -> torch.Tensor:
        for index in reached:
            x = torch.tanh(self.layers[index](x))
        return x.square().mean()


# For each step, the layers that each rank reaches. What is expected from the step before comes, comes on one rank only,
# or does not come. More comes than expected, before what is expected and behind it.
ALL = [0, 1, 2, 3, 4, 5]
REACHED = [
    *([ALL] * 3, [ALL] * 3, [[0, 1]] * 3, [[0, 1], [0, 5], [0]], [ALL, ALL, [0]], [[0, 3]] * 3),
    *([[1]] * 3, [[0, 1]] * 3, [[1]] * 3, [[1], [1], [0, 1]], [ALL] * 3, [ALL] * 3),
]


def averaged(overlapped: bool, micro_batches: int, **options) -> tuple[list, list[int]]:
    """The gradients of all steps, and how many messages each step has sent before its average."""
    model, rank = Branches(), torch.distributed.get_rank()
    averager = GradientAverager(model.parameters(), **options)
    found, early = [], []
    for step, reached in enumerate(REACHED):
        model.zero_grad()
        for part in range(micro_batches):
            x = torch.randn(5, 3, generator=torch.Generator().manual_seed(100 * step + 10 * part + rank))
            layers = reached[rank] if part == micro_batches - 1 else reached[0]
            if overlapped and part == micro_batches - 1:
                averager.expect_last_backward("a task")
            with mock.patch.object(torch.distributed, "all_reduce", wraps=torch.distributed.all_reduce) as sending:
                model(x, layers).backward()
        early.append(sending.call_count)
        averager.average([])
        found.append([None if p.grad is None else p.grad.clone() for p in model.parameters()])
    return found, early


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_gradients_travel_in_the_backward_pass_and_have_the_same_bytes(processes, tmp_path, monkeypatch, micro_batches):
    monkeypatch.setattr(gradients, "_LEAST_BUCKETS", 3)  # two layers in a bucket

    def work() -> None:
        overlapped, early = averaged(True, micro_batches)
        after, _ = averaged(False, micro_batches)
        torch.save((overlapped, after, early), tmp_path / f"{torch.distributed.get_rank()}.pth")

    for pid in processes.fork_ranks(work, tmp_path, 3):
        assert processes.exit_code(pid) == 0
    ranks = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(3)]
    for overlapped, after, early in ranks:
        for step, (one, other) in enumerate(zip(overlapped, after, strict=True)):
            for a, b, c in zip(one, other, ranks[0][0][step], strict=True):
                assert (a is None) == (b is None) == (c is None)
                assert a is None or (torch.equal(a, b) and torch.equal(a, c))
        assert early[0] == 0 and early[1] == early[-1] == 3  # all of them, on each rank


def test_gradients_travel_as_bfloat16(processes, tmp_path):
    def work() -> None:
        half, _ = averaged(True, 1, in_bfloat16=True)
        whole, _ = averaged(False, 1)
        torch.save((half, whole), tmp_path / f"{torch.distributed.get_rank()}.pth")

    for pid in processes.fork_ranks(work, tmp_path):
        assert processes.exit_code(pid) == 0
    ranks = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    (half, whole), (other, _) = ranks
    for step in (0, 1, len(REACHED) - 1):
        for a, b, c in zip(half[step], whole[step], other[step], strict=True):
            assert torch.equal(a, c) and not torch.equal(a, b)
            torch.testing.assert_close(a, b, rtol=2**-7, atol=2**-7 * b.abs().max().item())
