"""The command ``uniperceiver-v2``: the programs of this project under one name.

    uniperceiver-v2 train --config-file configs/digit_scenes/uniperceiver_v2_tiny.yaml
    torchrun --nproc_per_node 2 -m uniperceiver_v2_commands train --config-file ...

It is no part of the package, whose import takes seconds: the list of commands is there at once.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import runpy
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

PROG = "uniperceiver-v2"


class Command(NamedTuple):
    """A program: a module that ``python -m`` runs, or a function of a file."""

    help: str
    module: str = ""
    file: str = ""  # its place in the repository
    function: str = "main"


COMMANDS = {
    "train": Command("train and evaluate a model", file="projects/uniperceiver_v2/train_net.py", function="run"),
    "predict": Command("ask a model about pictures, videos or a camera", file="projects/uniperceiver_v2/demo/demo.py"),
    "serve": Command("ask a model on a web page", module="uniperceiver_v2.web"),
    "report": Command("write a page about runs", module="uniperceiver_v2.report"),
    "export": Command("write a model as ONNX files", module="uniperceiver_v2.export"),
    "calibrate": Command("make scores say how often they are right", module="uniperceiver_v2.calibrate"),
    "new": Command("write a configuration for a folder of your data", module="uniperceiver_v2.new"),
    "prepare": Command("write digit_scenes, the default training data", file="datasets/prepare_digit_scenes.py"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The program. Returns its exit code, 2 if there is no such command."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        print(usage())
        return 0 if given else 2
    if given[0] == "--version":
        print(PROG, importlib.metadata.version(PROG))
        return 0
    name, *rest = given
    if name not in COMMANDS:
        close = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(COMMANDS)}"
        print(f"error: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    command = COMMANDS[name]
    sys.argv = [f"{PROG} {name}", *rest]  # all programs read it, and name themselves by it
    return _run_file(command) if command.file else _run_module(name, command.module)


def usage() -> str:
    """What ``--help`` prints."""
    lines = [f"  {name:10}{command.help}" for name, command in COMMANDS.items()]
    end = f"`{PROG} COMMAND --help` prints the options of a command."
    return "\n".join([f"usage: {PROG} [--help | --version] COMMAND ...", "", *lines, "", end])


def _run_file(command: Command) -> int:
    path = _shipped(command.file)
    # The file is imported by its name, so that the processes that it starts find its functions again.
    sys.path.insert(0, str(path.parent))
    program = getattr(importlib.import_module(path.stem), command.function)
    return int(program() or 0)


def _shipped(path: str) -> Path:
    """``uniperceiver_v2.files.shipped`` without the import of its package: not every program needs PyTorch."""
    spec = importlib.util.spec_from_file_location("_files", Path(__file__).with_name("uniperceiver_v2") / "files.py")
    assert spec is not None and spec.loader is not None
    files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(files)
    found: Path = files.shipped(path)
    return found


def _run_module(name: str, module: str) -> int:
    if importlib.util.find_spec(module) is None:
        print(f"error: this version of the package cannot {name}: it has no {module}", file=sys.stderr)
        return 1
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            raise  # a message, which Python prints
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
