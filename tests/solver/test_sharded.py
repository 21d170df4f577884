"""Parameters that are divided among two processes. The steps equal those of one process with whole parameters."""

import math
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp
import torch.distributed.tensor
import torch.multiprocessing as mp

from uniperceiver_v2.solver import TaskBalancedAdamW, gradient_norm

TASKS = {"a": (0.6, 1.0), "b": (0.4, 2.0)}
SETTINGS = {"lr": 1e-2, "betas": (0.8, 0.95), "weight_decay": 0.1, "tasks": TASKS}
STEPS = 20
# Shape, and the dimension along which it is split: evenly, unevenly, with nothing left for the second rank; None for
# a DTensor that is whole everywhere, "plain" for a tensor as without sharding.
PARAMETERS = (((4, 3), 0), ((5,), 0), ((1, 3), 0), ((2, 6), 1), ((2, 2), None), ((3,), "plain"))
REACH = {"a": (0, 1, 2, 4, 5), "b": (0, 3)}

pytestmark = pytest.mark.skipif(
    not hasattr(torch.distributed.tensor, "distribute_tensor"), reason="this PyTorch has no public DTensor"
)


def whole_tensors(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape, _ in PARAMETERS]


def train(parameters: list[torch.nn.Parameter], share_out) -> tuple[list[float], TaskBalancedAdamW]:
    """The norms of the gradients of all steps, and the optimizer."""
    optimizer = TaskBalancedAdamW([{"params": parameters[:3]}, {"params": parameters[3:], "lr": 3e-3}], **SETTINGS)
    norms = []
    for step in range(STEPS):
        task = "b" if step % 3 == 0 else "a"
        gradients = whole_tensors(100 + step)
        for index, parameter in enumerate(parameters):
            parameter.grad = share_out(index, gradients[index]) if index in REACH[task] else None
        optimizer.step(task=task)
        norms.append(optimizer.last_gradient_norm)
        assert gradient_norm(parameters) == norms[-1]
    return norms, optimizer


def network() -> torch.nn.Sequential:
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1)).double()


def train_network(model: torch.nn.Module, batch: torch.Tensor) -> list[float]:
    optimizer = TaskBalancedAdamW(model.parameters(), **SETTINGS)
    norms = []
    for _ in range(5):
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step(task="a")
        norms.append(optimizer.last_gradient_norm)
    return norms


def batch() -> torch.Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def run_rank(rank: int, folder: str) -> None:
    """One of two processes. Collects everything that the tests check."""
    torch.set_num_threads(1)
    meeting, patience = f"file://{folder}/meeting", timedelta(minutes=1)
    dist.init_process_group("gloo", meeting, rank=rank, world_size=2, timeout=patience)
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    found = {}

    def share_out(index: int, tensor: torch.Tensor) -> torch.Tensor:
        dimension = PARAMETERS[index][1]
        if dimension == "plain":
            return tensor
        placement = dist.tensor.Replicate() if dimension is None else dist.tensor.Shard(dimension)
        return dist.tensor.distribute_tensor(tensor, mesh, [placement])

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()

    parameters = [torch.nn.Parameter(share_out(i, t)) for i, t in enumerate(whole_tensors(0))]
    found["norms"], optimizer = train(parameters, share_out)
    found["parameters"] = [whole(p) for p in parameters]
    found["moments"] = [whole(optimizer.state[p]["exp_avg_sq"]) for p in parameters]

    # Only the second rank has the number that is not finite.
    parameters[0].grad = share_out(0, torch.ones(4, 3, dtype=torch.float64))
    if rank == 1:
        parameters[0].grad.to_local()[0, 0] = math.inf
    try:
        optimizer.step(task="a")
    except FloatingPointError as error:
        found["refused"] = str(error), [whole(p) for p in parameters]

    # A gradient that is a sum over ranks still to be formed, and one that the second rank does not have.
    partial = torch.nn.Parameter(share_out(4, torch.zeros(2, 2, dtype=torch.float64)))
    part = torch.full((2, 2), 1.0 + rank, dtype=torch.float64)
    partial.grad = dist.tensor.DTensor.from_local(part, mesh, [dist.tensor.Partial()])
    parameters[0].grad = share_out(0, torch.ones(4, 3, dtype=torch.float64))
    if rank == 1:
        parameters[0].grad = None
    found["partial"] = gradient_norm([partial, parameters[0]])

    if hasattr(dist.fsdp, "fully_shard"):
        model = network()
        for layer in (model[0], model[2], model):
            dist.fsdp.fully_shard(layer, mesh=mesh)
        found["fsdp"] = train_network(model, batch().chunk(2)[rank]), [whole(p) for p in model.parameters()]
    torch.save(found, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.start_processes(run_rank, (str(folder),), nprocs=2, start_method="fork")
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


def test_each_rank_takes_the_step_of_one_process(ranks):
    parameters = [torch.nn.Parameter(t) for t in whole_tensors(0)]
    norms, optimizer = train(parameters, lambda index, tensor: tensor)
    moments = [optimizer.state[p]["exp_avg_sq"] for p in parameters]
    for found in ranks:
        assert found["norms"] == pytest.approx(norms, rel=1e-12)
        torch.testing.assert_close(found["parameters"], [p.detach() for p in parameters], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found["moments"], moments, rtol=1e-12, atol=1e-12)
    assert ranks[0]["norms"] == ranks[1]["norms"]


def test_both_refuse_a_gradient_that_is_not_finite_on_one(ranks):
    for found in ranks:
        message, parameters = found["refused"]
        assert "'a'" in message
        assert all(map(torch.equal, parameters, found["parameters"]))


def test_a_sum_over_ranks_counts_as_formed_and_a_shard_without_gradient_as_zero(ranks):
    assert [found["partial"] for found in ranks] == [pytest.approx(math.sqrt(4 * 3.0**2 + 2 * 3))] * 2


@pytest.mark.skipif(not hasattr(torch.distributed.fsdp, "fully_shard"), reason="this PyTorch has no fully_shard")
def test_a_fully_sharded_model_trains_as_a_whole_one_on_the_whole_batch(ranks):
    model = network()
    norms = train_network(model, batch())
    for found in ranks:
        assert found["fsdp"][0] == pytest.approx(norms, rel=1e-12)
        torch.testing.assert_close(found["fsdp"][1], [p.detach() for p in model.parameters()], rtol=1e-12, atol=1e-12)
