"""MODEL.UNIPERCEIVER_V2.DECODER.COMPILE: torch.compile of the unified decoder, where the machine can compile."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .unified_decoder import UnifiedDecoder

logger = logging.getLogger(__name__)


def compile_decoder(decoder: UnifiedDecoder, device: str) -> None:
    """Calls :meth:`UnifiedDecoder.compile_layers` if torch.compile works on `device`.

    Many machines cannot compile, often because they have no C++ compiler. As the results are the same, they get a
    warning and run uncompiled.
    """
    try:
        torch.compile(_next)(torch.zeros(8, device=device))
    except Exception as error:  # compilers fail in many ways
        reason = str(error).strip().splitlines()[0]
        logger.warning(
            "MODEL.UNIPERCEIVER_V2.DECODER.COMPILE is left out, as torch.compile does not work here (is there a C++ "
            f"compiler?): {reason}"
        )
        return
    decoder.compile_layers()


def _next(x: Tensor) -> Tensor:
    return x + 1
