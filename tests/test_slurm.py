"""tools/slurm.sh, with programs in the place of Slurm's own and of the training."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "tools" / "slurm.sh"
# The "training" ends with $CODE, by itself or at the signal. srun passes signals on, which exec does as well.
COMMANDS = {
    "srun": 'shift; exec "$@"',
    "scontrol": 'echo "$@" > requeued',
    "training": 'trap "exit $CODE" USR1; echo "$@" "cores $SRUN_CPUS_PER_TASK" > started; '
    "while $WAITS; do sleep 0.02; done; exit $CODE",
}


@pytest.mark.parametrize(
    ("signalled", "code", "requeued"),
    [(True, 138, True), (True, 1, False), (False, 0, False), (False, 137, False)],
    ids=["stopped by the time limit", "failed after the signal", "complete", "killed by somebody else"],
)
def test_only_a_run_that_its_time_limit_has_stopped_is_queued_again(tmp_path, signalled, code, requeued):
    for name, body in COMMANDS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "training"),
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "12",
        "CODE": str(code),
        "WAITS": "true" if signalled else "false",
    }
    run = subprocess.Popen([SCRIPT, "--config-file", "c.yaml", "OUTPUT_DIR", "out"], cwd=tmp_path, env=environment)
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        time.sleep(0.01)
    if signalled:
        run.send_signal(signal.SIGUSR1)
    assert run.wait(timeout=30) == code
    assert "--resume --config-file c.yaml OUTPUT_DIR out cores 12" in (tmp_path / "started").read_text()
    assert (tmp_path / "requeued").exists() == requeued
