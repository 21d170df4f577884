"""Checkpointed blocks: the same numbers, computed twice, without storing activations in between."""

import copy

import pytest
import torch
from torch import nn

from uniperceiver_v2.modeling.layers import checkpoint_blocks


class Block(nn.Module):
    """Counts its forward passes. Dropout shows whether both passes draw the same random numbers."""

    def __init__(self):
        super().__init__()
        self.linear, self.dropout, self.runs = nn.Linear(8, 8), nn.Dropout(0.5), 0

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        self.runs += 1
        return x + scale * self.dropout(torch.tanh(self.linear(x)))


def saved_bytes(run) -> int:
    """The bytes that ``run`` keeps for its backward pass."""
    total = 0

    def pack(x: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        run()
    return total


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    torch.manual_seed(1)
    output = model(x)
    return [output, *torch.autograd.grad(output.square().sum(), list(model.parameters()))]


@pytest.fixture
def stack() -> nn.Sequential:
    return nn.Sequential(*(Block() for _ in range(3)))


def test_the_same_numbers_and_names_from_two_runs(stack):
    x, before = torch.randn(5, 8), copy.deepcopy(stack)
    checkpoint_blocks(stack)
    assert stack.state_dict().keys() == before.state_dict().keys()
    assert all(isinstance(block, Block) and type(block).__name__ == "Block" for block in stack)
    for found, expected in zip(gradients(stack, x), gradients(before, x), strict=True):
        assert torch.equal(found, expected)
    assert [block.runs for block in stack] == [2, 2, 2]
    assert [block.runs for block in before] == [1, 1, 1]


def test_only_inputs_are_kept(stack):
    x = torch.randn(1000, 8)
    plain = saved_bytes(lambda: stack(x))
    checkpoint_blocks(stack)
    assert saved_bytes(lambda: stack(x)) <= 3 * x.nbytes < plain / 2


def test_one_run_in_evaluation_and_without_gradients(stack):
    checkpoint_blocks(stack)
    with torch.no_grad():
        stack(torch.randn(2, 8))
    stack.eval()(torch.randn(2, 8)).sum().backward()
    assert [block.runs for block in stack] == [2, 2, 2]


def test_named_arguments_and_a_second_call_of_the_function(stack):
    x = torch.randn(2, 8)
    checkpoint_blocks(stack)
    checkpoint_blocks(stack)
    assert torch.equal(stack[0](x, scale=0.0), x)
    stack[1](x, scale=2.0).sum().backward()
    assert stack[1].runs == 2


def test_a_copy_has_weights_of_its_own(stack):
    checkpoint_blocks(stack)
    other = copy.deepcopy(stack)
    nn.init.zeros_(other[0].linear.weight)
    nn.init.zeros_(other[0].linear.bias)
    x = torch.randn(2, 8)
    assert torch.equal(other[0](x), x)
    assert not torch.equal(stack[0](x), x)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.Sequential(nn.SyncBatchNorm(4))])
def test_running_statistics_are_refused(stack, norm):
    with pytest.raises(ValueError, match=r"keeps running statistics.*twice"):
        checkpoint_blocks([stack[0], norm])
    stack(torch.randn(2, 8)).sum().backward()
    assert stack[0].runs == 1  # all or nothing
