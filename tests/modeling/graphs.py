"""What tests of torch.compile share: a backend that counts graphs, and a compiler without memories."""

import logging

import pytest
import torch


class Graphs(list):
    """A backend that records the graphs and runs them unchanged."""

    def __call__(self, graph: torch.fx.GraphModule, inputs: list):
        self.append(graph)
        return graph.forward


@pytest.fixture(autouse=True)
def fresh():
    """Removes graphs of other tests. Also keeps pytest from recording each compilation, which takes ten times as
    long."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    trace = logging.getLogger("torch.__trace")
    level = trace.level
    trace.setLevel(logging.WARNING)
    yield
    trace.setLevel(level)
    torch.compiler.reset()
