"""torch.compile of modules in place, where the machine can compile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Backend = str | Callable
# The most graphs of a function. They differ by mask, past, gradients, widths, strides and sizes of 1, and the default
# limit is 8.
GRAPHS = 64


def compile_modules(modules: Iterable[nn.Module], backend: Backend = "inductor") -> None:
    """Lets torch.compile compile each module, in place, on first use. Parameters keep their names.

    A graph serves all batch sizes, heights, widths and lengths, except that a size of 1 needs a graph of its own.
    Modules with the same code and the same shapes of parameters share graphs.

    Args:
        backend: the argument of torch.compile.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, GRAPHS)
    # Sizes that happen to be equal, as those of a square image, would become one symbol, and the next image that is no
    # square would need another graph.
    torch.fx.experimental._config.use_duck_shape = False
    for module in modules:
        module.compile(dynamic=True, backend=backend)


def can_compile(device: str) -> bool:
    """Whether torch.compile works on a device.

    Many machines cannot compile, often because they have no C++ compiler. As the results are the same, they get a
    warning and run uncompiled.
    """
    try:
        torch.compile(_next)(torch.zeros(8, device=device))
    except Exception as error:  # compilers fail in many ways
        reason = str(error).strip().splitlines()[0]
        logger.warning(
            "MODEL.UNIPERCEIVER_V2.COMPILE is left out, as torch.compile does not work here (is there a C++ "
            f"compiler?): {reason}"
        )
        return False
    return True


def _next(x: Tensor) -> Tensor:
    return x + 1
