"""train_net.py under faults: torchrun and its restarts, and the campaign of kills (``make test-faults``)."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .small_run import command, differences, finish, start, state, wait_for, workers_of

KILLS = 50  # make test-kills: 1,000
KILLS_IN_PARTS = 30


@pytest.mark.slow
def test_torchrun_starts_a_run_anew_from_its_last_checkpoint_when_a_rank_is_killed(config, tmp_path):
    short = ("SOLVER.MAX_ITER", "12")
    killed, spared = tmp_path / "killed", tmp_path / "spared"
    process = start([*command(config, killed, ranks=2, restarts=1), *short], tmp_path)
    wait_for((killed / "last_checkpoint").exists, process)
    os.kill(workers_of(process.pid)[1], signal.SIGKILL)
    assert process.wait() == 0, (tmp_path / "output.txt").read_text()[-4000:]
    log = (killed / "log.txt").read_text()
    assert log.count("Starting training from iteration") == 2
    assert log.count("Starting training from iteration 0") == 1
    finish([*command(config, spared, ranks=2), *short], tmp_path)
    assert differences(killed, spared) == []


@pytest.mark.slow
def test_two_machines_start_a_run_anew_together(config, tmp_path):
    """Two torchruns on one machine represent two machines. Each counts its own restarts."""
    short = ("SOLVER.MAX_ITER", "12")
    killed, spared = tmp_path / "killed", tmp_path / "spared"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launch = command(config, killed, ranks=2, restarts=2)
    launch[launch.index("--standalone")] = "--nnodes=2"
    launch[launch.index("--nproc_per_node=2")] = "--nproc_per_node=1"
    launch[3:3] = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=1", "--local-addr=127.0.0.1"]
    agents = [start([*launch, *short], tmp_path) for _ in range(2)]
    try:
        wait_for((killed / "last_checkpoint").exists, agents[0])
        os.kill(workers_of(agents[1].pid)[0], signal.SIGKILL)
        codes = [agent.wait(timeout=240) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert codes == [0, 0], (tmp_path / "output.txt").read_text()[-4000:]
    assert (killed / "log.txt").read_text().count("Starting training from iteration 0") == 1
    finish([*command(config, spared, ranks=2), *short], tmp_path)
    assert differences(killed, spared) == []


@pytest.mark.slow
@pytest.mark.parametrize(("campaign", "kills"), [("kills.py", KILLS), ("kills_in_parts.py", KILLS_IN_PARTS)])
def test_runs_killed_at_many_random_moments_lose_nothing(tmp_path, campaign, kills):
    arguments = [str(Path(__file__).with_name(campaign)), "--kills", str(kills), "--output", str(tmp_path)]
    ended = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
    print(ended.stdout)
    assert ended.returncode == 0, ended.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_run_of_two_ranks_ends_in_the_same_bytes_whichever_is_killed(config, tmp_path, sharding):
    """Every third kill waits until a checkpoint is being written. Every other run writes its checkpoints while training
    goes on."""
    killed, spared = tmp_path / "killed", tmp_path / "spared"
    began = time.monotonic()
    how = ("SOLVER.SHARDING", sharding)
    finish([*command(config, spared, ranks=2), *how], tmp_path)
    duration = time.monotonic() - began
    chance, kills, in_writing = random.Random(2), 0, 0
    while kills < 5:
        background = ("SOLVER.CHECKPOINTS_IN_BACKGROUND", str(kills % 2 == 0))
        process = start([*command(config, killed, "--resume", ranks=2), *how, *background], tmp_path)
        moment = time.monotonic() + chance.uniform(0.05, 0.9) * duration
        writing = kills % 3 == 2
        while process.poll() is None:
            if writing and list(killed.glob(".model*.tmp")):
                in_writing += 1
                break
            if not writing and time.monotonic() > moment:
                break
            time.sleep(0.001)
        if process.poll() is None:
            os.kill(chance.choice(workers_of(process.pid) or [process.pid]), signal.SIGKILL)
            assert process.wait() != 0
            kills += 1
        if (killed / "model_final.pth").exists():  # go back to the middle, so that there is a run to kill
            (killed / "model_final.pth").unlink()
            (killed / "last_checkpoint").write_text("model_0000002.pth")
    finish([*command(config, killed, "--resume", ranks=2), *how], tmp_path)
    print(f"{kills} kills on two ranks, sharding {sharding}, {in_writing} of them while a checkpoint was being written")
    assert differences(killed, spared) == []


@pytest.mark.slow
def test_a_run_with_divided_parameters_goes_on_with_other_numbers_of_processes(config, tmp_path):
    """Each part is killed while a checkpoint is being written in the background, and the next has other processes."""
    output = tmp_path / "out"
    options = ("SOLVER.SHARDING", "full", "SOLVER.CHECKPOINTS_IN_BACKGROUND", "True")
    for ranks in (2, 4, 1, 2):
        process = start([*command(config, output, "--resume", ranks=ranks), *options], tmp_path)
        there = len(list(output.glob("model_*.pth")))
        wait_for(
            lambda n=there: len(list(output.glob("model_*"))) > n and list(output.glob(".model*.tmp")), process, 900
        )
        os.kill((workers_of(process.pid) if ranks > 1 else [process.pid])[0], signal.SIGKILL)
        assert process.wait() != 0
    finish([*command(config, output, "--resume", ranks=4), *options], tmp_path)
    log = (output / "log.txt").read_text()
    starts = [int(text.split()[0]) for text in log.split("Starting training from iteration ")[1:]]
    assert len(starts) == 5 and starts[0] == 0
    assert all(later > earlier for earlier, later in itertools.pairwise(starts))  # nothing that was written is lost
    assert all(value.isfinite().all() for value in state(output).values())


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system of 40 MiB, which takes root")
def test_a_full_file_system_leaves_the_last_checkpoint_to_go_on_from(config, tmp_path):
    disk, spared = tmp_path / "disk", tmp_path / "spared"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        process = start(command(config, disk / "out"), tmp_path)
        assert process.wait() == 1
        last = (tmp_path / "output.txt").read_text().splitlines()[-1]
        assert last.startswith(f"error: cannot write {disk / 'out'}/model_")
        assert last.endswith("older checkpoints are untouched")
        checkpoints = sorted((disk / "out").glob("model_*.pth"))
        assert (disk / "out" / "last_checkpoint").read_text() == checkpoints[-1].name
        for old in checkpoints[:-1]:
            old.unlink()  # space becomes available
        finish([*command(config, disk / "out", "--resume"), "SOLVER.CHECKPOINT_PERIOD", "1000"], tmp_path)
        finish(command(config, spared), tmp_path)
        assert differences(disk / "out", spared) == []
    finally:
        subprocess.run(["umount", str(disk)], check=False)
