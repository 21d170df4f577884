"""A process of two that stops without an end: the other one ends by its number, and the run goes on afterwards."""

import itertools
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from .small_run import command, differences, start, wait_for, write_config

SILENCE = 5  # seconds
OPTIONS = ("SOLVER.MAX_ITER", "12", "SOLVER.SHARDING", "full", "SOLVER.CHECKPOINT_FORMAT", "parts")
OPTIONS += ("SOLVER.CHECKPOINTS_IN_BACKGROUND", "True", "PROCESSES.SILENCE", str(SILENCE))


def start_two(config: Path, output: Path) -> list[subprocess.Popen]:
    """Both processes of a run, without a starter that would end one with the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    arguments = [*command(config, output, "--resume"), *OPTIONS]
    return [start(arguments, output.parent, RANK=rank, LOCAL_RANK=rank, **meeting) for rank in "01"]


@pytest.fixture(scope="module")
def spared(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("spared")
    processes = start_two(write_config(folder), folder / "run")
    assert [process.wait() for process in processes] == [0, 0], (folder / "output.txt").read_text()[-4000:]
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(("writing", "stopped"), [*itertools.product((False, True), (0, 1))])
def test_the_other_process_ends_and_the_run_goes_on(config, spared, tmp_path, writing, stopped):
    output, other = tmp_path / "run", 1 - stopped
    processes = start_two(config, output)
    wait_for((output / "last_checkpoint").exists, processes[0])
    if writing:
        wait_for(lambda: list(output.glob(".model_*.parts.tmp")), processes[0])
    processes[stopped].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    codes = [processes[rank].wait(120) for rank in (other, stopped)]
    seconds = time.monotonic() - began
    print(f"process {stopped} stopped {'in writing' if writing else 'in training'}: noticed after {seconds:.1f} s")
    assert codes == [1, -signal.SIGKILL] and seconds < 2 * SILENCE
    said = (tmp_path / "output.txt").read_text()
    assert f"error (process {other}): no sign of life for {SILENCE} seconds from process {stopped} on " in said
    assert not writing or list(output.glob(".model_*.parts.tmp"))
    assert [process.wait() for process in start_two(config, output)] == [0, 0]
    assert (output / "log.txt").read_text().count("Starting training from iteration 0") == 1
    assert differences(output, spared) == [] and not list(output.glob(".*"))
