"""MODEL.UNIPERCEIVER_V2.DECODER.COMPILE: the unified decoder by torch.compile, where the machine can."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .unified_decoder import UnifiedDecoder

logger = logging.getLogger(__name__)


def compile_decoder(decoder: UnifiedDecoder, device: str) -> None:
    """:meth:`UnifiedDecoder.compile_layers`, for use on `device`. Results do not depend on it, so that a machine that
    cannot compile, often for want of a C++ compiler, says so and goes on as if it had not been asked to."""
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
