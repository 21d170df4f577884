"""Make one file of a checkpoint in parts:

    python -m uniperceiver_v2.checkpoint.whole output/RUN/model_0000099 model.pth

A file that ends with .pth has the whole state, so that training can go on from it. One that ends with .safetensors has
the weights alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from ..errors import UserError, exit_code
from ..files import write_atomically
from ..reading import CHECKSUM, read_tensors, require_finite, tensors_checksum
from .parts import is_parts, read_parts


def make_whole(checkpoint: str, file: str) -> None:
    """Write a checkpoint as one file.

    Args:
        checkpoint: a directory of parts, or a file of training.
        file: its ending decides what it becomes, ``.pth`` or ``.safetensors``.

    Raises:
        UserError: the checkpoint cannot be read or has no finite weights, or the file cannot be written.
    """
    if not file.endswith((".pth", ".safetensors")):
        raise UserError(f"{file}: its name has to end with .pth or .safetensors")
    if not os.path.exists(checkpoint):
        raise UserError(f"checkpoint not found: {checkpoint}")
    state = read_parts(checkpoint) if is_parts(checkpoint) else read_tensors(checkpoint, mapped=True)
    try:
        if file.endswith(".pth"):
            write_atomically(file, lambda opened: torch.save(state, opened))
        else:
            weights = {key: value.contiguous() for key, value in state.get("model", state).items()}
            require_finite(weights)
            content = save(weights, metadata={"format": "pt", CHECKSUM: tensors_checksum(weights)})
            write_atomically(file, lambda opened: opened.write(content))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot write {file}: {error}") from error


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a directory of parts, or a file of training")
    parser.add_argument("file", help="what to write, FILE.pth or FILE.safetensors")
    args = parser.parse_args(argv)
    return exit_code(lambda: make_whole(args.checkpoint, args.file))


if __name__ == "__main__":
    sys.exit(main())
