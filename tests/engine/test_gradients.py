"""Gradients averaged over ranks that use different parameters."""

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
