"""The command line of this package."""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..config import load_config
from ..data import load_dataset
from ..errors import UserError, exit_code
from ..files import TINY_CONFIG, TRAIN, write_atomically
from ..kinds import configured_task
from ..predictor.pretrained import MODEL_ZOO, TEXT_ENCODER, WEIGHTS, zoo_directory
from . import __doc__ as meaning
from .choosing import Start, configuration, shown_path
from .looking import counted, look_at, summary


def trained_and_tested(config_file: str) -> str:
    """How many records each task and each test of a configuration has, for the user.

    Raises:
        UserError: the data cannot be trained on as the configuration says.
    """
    cfg = load_config(config_file)
    tasks = [configured_task(cfg, name) for name in cfg.TASKS.NAMES]
    trained = [(task.name, task.kind.training_data(cfg, task)[0], "to train on") for task in tasks]
    tested = [(name, load_dataset(name), "to test on") for name in cfg.DATASETS.TEST]
    return "\n".join(
        f"  {name}: {counted(len(records), 'text' if 'text' in records[0] else 'picture')} {use}"
        for name, records, use in trained + tested
    )


def _start(base: Path | None, weights: str) -> Start:
    """What training starts from.

    Raises:
        UserError: it is not there.
    """
    if weights in MODEL_ZOO:
        if base is not None:
            raise UserError(f"--weights: {weights} of the zoo comes with its own configuration; leave out --base")
        directory = zoo_directory(weights)
        parts = (shown_path(directory / name, Path.cwd()) for name in (WEIGHTS, TEXT_ENCODER))
        return Start(directory / "config.yaml", *parts)
    if weights and not os.path.isfile(weights):
        raise UserError(f"--weights: there is no checkpoint {weights}; the zoo has {', '.join(sorted(MODEL_ZOO))}")
    base = base or TINY_CONFIG
    if not base.is_file():
        raise UserError(f"--base: there is no configuration {base}")
    return Start(base, weights)


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m uniperceiver_v2.new", description=(meaning or "").partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="the folder of your data")
    parser.add_argument("--output", type=Path, help="the configuration to write; by default FOLDER's name with .yaml")
    parser.add_argument("--base", type=Path, help="the configuration that gives the model; by default the tiny one")
    parser.add_argument(
        "--weights",
        default="",
        help="a checkpoint of that model to start from, "
        "or without --base a model of the zoo, such as digit_scenes/small",
    )
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """
    Raises:
        UserError: an option or the data cannot be used.
        OSError: the configuration cannot be written.
    """
    output = args.output or Path(f"{args.folder.resolve().name}.yaml")
    if output.exists():
        raise UserError(f"{output} exists already: remove it, or give another name by --output")
    start = _start(args.base, args.weights)
    seen, problems, unused = look_at(args.folder)
    print(summary(seen, problems, unused))
    text = configuration(seen, start, output)
    write_atomically(str(output), lambda file: file.write(text.encode()))
    print(f"\n{output} is written.")
    print(trained_and_tested(str(output)))
    print(f"\nTrain by: {TRAIN} --config-file {shlex.quote(str(output))}")
