"""Writes a model as ONNX files.

    python -m uniperceiver_v2.export --output DIRECTORY [--zoo digit_scenes/small] [--precision fp32 int8]
    python -m uniperceiver_v2.export --output DIRECTORY --config-file output/RUN/config.yaml \
        --opts MODEL.WEIGHTS output/RUN/model_final.pth

docs/export.md describes the files.
"""

from __future__ import annotations

import os
import sys
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..config import load_config
from ..errors import UserError, exit_code
from ..predictor import Predictor
from . import PRECISIONS, export

DEFAULT_MODEL = "digit_scenes/small"


def parser() -> ArgumentParser:
    options = ArgumentParser(prog="python -m uniperceiver_v2.export", description="Write a model as ONNX files.")
    model = options.add_mutually_exclusive_group()
    model.add_argument(
        "--zoo", metavar="NAME", help=f"a model of the zoo, by default {DEFAULT_MODEL}, or its directory"
    )
    model.add_argument("--config-file", metavar="FILE", help="settings of a run; weights are its MODEL.WEIGHTS")
    options.add_argument("--output", required=True, metavar="DIRECTORY", help="is created")
    options.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="by default all three")
    options.add_argument(
        "--check", type=int, default=12, metavar="N", help="batches of random sizes to compare with PyTorch"
    )
    options.add_argument(
        "--evaluate",
        nargs="+",
        default=(),
        metavar="DATASET",
        help="test sets of detection and captioning: what each precision loses",
    )
    options.add_argument("--opts", nargs=REMAINDER, default=[], metavar="KEY VALUE", help="settings, at the very end")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The program. Returns its exit code."""
    args = parser().parse_args(argv)
    return exit_code(lambda: run(args))


def run(args: Namespace) -> None:
    """
    Raises:
        UserError: an option or the model cannot be used, or the files differ from the model.
        OSError: a file cannot be written.
    """
    content = export(load(args), args.output, args.precision, trials=args.check, evaluate=args.evaluate)
    for part in content["parts"].values():
        for precision, name in part["files"].items():
            files = [path for path in Path(args.output).glob(f"{name}*") if path.name in (name, f"{name}.data")]
            print(f"{name:24} {precision} {sum(path.stat().st_size for path in files) / 2**20:8.1f} MiB")
    for name, value in content.get("checked", {}).get("largest_differences", {}).items():
        print(f"largest difference of {name:32} {value:.1e}")
    for dataset, found in content.get("figures", {}).items():
        for precision, values in found.items():
            print(f"{dataset} {precision:8} " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))


def load(args: Namespace) -> Predictor:
    """
    Raises:
        UserError: the model cannot be loaded.
    """
    if args.config_file:
        return Predictor(load_config(args.config_file, args.opts, training=False, datasets=False), device="cpu")
    if args.opts:
        raise UserError("--opts are settings of a --config-file; a model of the zoo has its own")
    name = os.path.expanduser(args.zoo or DEFAULT_MODEL)
    known = Predictor.from_pretrained if os.path.isdir(name) else Predictor.from_zoo
    return known(name, device="cpu")


if __name__ == "__main__":
    sys.exit(main())
