"""Processes of a run: how they find each other, pass signals on and report errors."""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from argparse import Namespace

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm

from uniperceiver_v2.engine import processes as module
from uniperceiver_v2.engine import run_in_processes, starters, world_size
from uniperceiver_v2.engine.members import Member, check_members
from uniperceiver_v2.engine.processes import agree_on_start
from uniperceiver_v2.errors import UserError

CPU = CfgNode({"MODEL": {"DEVICE": "cpu"}, "PROCESSES": {"TIMEOUT": 1800, "SILENCE": 300}})


def arguments(**changes) -> Namespace:
    return Namespace(
        **{"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", "resume": False, **changes}
    )


def start_all(store: dist.Store, delays: list[float]) -> list[tuple[str, bool]]:
    """The result of each rank, if the ranks arrive with the given delays in seconds."""
    found: dict[int, tuple[str, bool]] = {}

    def arrive(rank: int) -> None:
        time.sleep(delays[rank])
        found[rank] = agree_on_start(store, rank, len(delays))

    threads = [threading.Thread(target=arrive, args=(rank,), daemon=True) for rank in range(len(delays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    return [found[rank] for rank in range(len(delays))]


@pytest.mark.parametrize("delays", [(0.0, 0.0, 0.0), (0.0, 0.1, 0.3), (0.3, 0.0, 0.1)])
def test_every_start_in_a_store_has_a_name_of_its_own_that_all_processes_agree_on(delays):
    """Late processes find the data of an earlier start and must not use it."""
    store = dist.HashStore()
    starts = [start_all(store, delays) for _ in range(3)]
    for start in starts:
        assert len(set(start)) == 1
    assert len({start[0][0] for start in starts}) == 3
    assert [start[0][1] for start in starts] == [True, False, False]


def test_a_process_of_which_nobody_else_is_left_waits_for_the_others():
    store = dist.HashStore()
    first = start_all(store, [0.0, 0.0])
    alone = threading.Thread(target=agree_on_start, args=(store, 0, 2), daemon=True)
    alone.start()
    alone.join(timeout=0.3)
    assert alone.is_alive()  # rank 1's word is that of the start before
    assert agree_on_start(store, 1, 2)[0] != first[0][0]
    alone.join(timeout=20)
    assert not alone.is_alive()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, 137)])
def test_the_code_of_a_child_is_that_of_the_program(monkeypatch, processes, number, code):
    """SIGTERM to the program reaches its children, which end by themselves. A killed child ends the program, too."""

    def child() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
        time.sleep(30)

    def launched(*_, **__) -> None:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        time.sleep(0.5)
        os.kill(process.pid if number == signal.SIGKILL else os.getpid(), number)
        process.join()
        raise torch.multiprocessing.ProcessExitedException(
            "a process has ended", error_index=0, error_pid=process.pid, exit_code=process.exitcode
        )

    monkeypatch.setattr(module, "launch", launched)

    def program() -> None:
        raise SystemExit(run_in_processes(lambda args: None, arguments(num_gpus=2), CPU))

    assert processes.exit_code(processes.fork(program)) == code


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (UserError("no data"), "error: no data"),
        (FloatingPointError("not finite"), "error: not finite"),
        (OSError(28, "No space left on device", "metrics.json"), "No space left on device: 'metrics.json'"),
    ],
)
def test_a_mistake_is_one_line_and_code_1(capsys, mistake, message):
    def main(args: Namespace) -> None:
        raise mistake

    assert run_in_processes(main, arguments(), CPU) == 1
    assert message in capsys.readouterr().err


def test_another_error_keeps_its_traceback():
    def main(args: Namespace) -> None:
        raise OSError(2, "No such file or directory")

    with pytest.raises(OSError, match="No such file"):
        run_in_processes(main, arguments(), CPU)


def test_torchrun_and_num_gpus_exclude_each_other(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert world_size(arguments()) == 6
    with pytest.raises(UserError, match="--num-gpus"):
        world_size(arguments(num_gpus=2))


TOLD = {
    "RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch):
    """environment(**variables): those alone of the ones that tell of other processes."""
    sizes = (*SRUN, "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "TORCHELASTIC_RUN_ID")
    for name in (*TOLD, *sizes):
        monkeypatch.setenv(name, "")  # so that what the program sets is undone as well
        monkeypatch.delenv(name)

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"RANK": "0", "WORLD_SIZE": "2"},
            "WORLD_SIZE is 2, but MASTER_ADDR, MASTER_PORT not",
        ),
        ({**TOLD, "MASTER_PORT": ""}, "WORLD_SIZE is 4, but MASTER_PORT not"),
        ({**TOLD, "RANK": "one"}, "WORLD_SIZE is 4"),
        ({"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "0"}, "SLURM_STEP_NUM_TASKS is 8: srun"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun"),
        ({"PMI_SIZE": "2"}, "mpirun"),
    ],
)
def test_processes_that_do_not_know_of_each_other_are_refused(environment, variables, expected):
    environment(**variables)
    with pytest.raises(UserError) as caught:
        world_size(arguments())
    assert expected in str(caught.value) and "torchrun --nproc_per_node" in str(caught.value)


@pytest.mark.parametrize(
    ("variables", "changes", "expected"),
    [
        ({}, {}, 1),
        ({"RANK": "0", "WORLD_SIZE": "1"}, {}, 1),
        ({**TOLD, "RANK": "0", "WORLD_SIZE": "1"}, {}, 1),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, {}, 1),  # a batch script, which runs once
        ({"WORLD_SIZE": "2", "RANK": "1"}, {"num_machines": 2, "machine_rank": 1}, 2),  # the arguments say who is there
        (TOLD, {}, 4),
    ],
)
def test_one_process_and_processes_that_are_told_of_each_other_run(environment, variables, changes, expected):
    environment(**variables)
    assert world_size(arguments(**changes)) == expected


PLAIN = {name: TOLD[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "70012",
    "SLURM_STEP_ID": "0",
}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("gpu[07-09,12],login1", "gpu07"),
        ("gpu[7]", "gpu7"),
        ("node-a,node-b", "node-a"),
        ("rack1-gpu[01,03]-ib", "rack1-gpu01-ib"),
    ],
)
def test_processes_of_srun_meet_on_the_first_host(environment, hosts, first):
    environment(**{**SRUN, "SLURM_STEP_NODELIST": hosts})
    assert starters.told_by_starter() == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": first,
        "MASTER_PORT": "15012",
    }
    assert world_size(arguments()) == 4


def test_srun_may_start_one_launcher_on_each_machine(environment):
    environment(**SRUN)
    assert world_size(arguments(num_machines=4, machine_rank=3)) == 4


@pytest.mark.parametrize(
    ("told", "local"),
    [
        ({"RANK": "{rank}", "WORLD_SIZE": "2"}, {}),
        ({"SLURM_PROCID": "{rank}", "SLURM_STEP_NUM_TASKS": "2"}, {"SLURM_LOCALID": "{rank}"}),
    ],
)
def test_processes_of_other_starters_find_each_other(environment, processes, tmp_path, told, local):
    """Two processes with the fewest variables of a starter are one run, and know their places on the machine."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}

    def main(args: Namespace) -> None:
        (tmp_path / f"{comm.get_rank()} of {comm.get_world_size()}, {comm.get_local_rank()} here").touch()

    def program(rank: int) -> None:
        environment(**meeting, **{name: value.format(rank=rank) for name, value in {**told, **local}.items()})
        raise SystemExit(run_in_processes(main, arguments(), CPU))

    pids = [processes.fork(lambda rank=rank: program(rank)) for rank in range(2)]
    assert [processes.exit_code(pid) for pid in pids] == [0, 0]
    assert sorted(os.listdir(tmp_path)) == ["0 of 2, 0 here", "1 of 2, 1 here"]


def member(host: str, device: str = "cuda", gpus: int = 2, local_rank: int = 0, local_size: int = 1) -> Member:
    return Member(host, 1, 0, device, gpus, local_rank, local_size)


@pytest.mark.parametrize(
    ("members", "mistake"),
    [
        ([member("gpu1"), member("gpu2", device="cpu", gpus=0)], "PyTorch sees no GPU on gpu2, while gpu1"),
        ([member("gpu1"), member("gpu1", local_rank=2)], r"started on gpu1 than PyTorch sees GPUs there \(2\)"),
        (
            [member("a", local_size=2), member("a", local_rank=1, local_size=2), member("b")],
            "same number of processes: a has 2, b has 1",
        ),
    ],
)
def test_hosts_that_cannot_train_together_are_named(members, mistake):
    with pytest.raises(UserError, match=mistake):
        check_members(members)
    check_members(members[:1])


def test_a_mistake_is_told_before_the_processes_part(environment, monkeypatch, capsys):
    """Leaving the group may wait for a process that is gone."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        environment(**{**TOLD, "RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": str(free.getsockname()[1])})
    environment(TORCHELASTIC_RUN_ID="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    told = []
    leave = dist.destroy_process_group
    monkeypatch.setattr(dist, "destroy_process_group", lambda: (told.append(capsys.readouterr().err), leave()))
    monkeypatch.setattr(comm, "create_local_process_group", lambda count: None)

    def main(args: Namespace) -> None:
        raise UserError("no data")

    assert run_in_processes(main, arguments(), CPU) == 1
    assert told == ["error (process 0): no data\n"]


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_process_that_has_stopped_ends_the_run_by_its_name(environment, processes, capfd, stopped):
    """Process 0 also keeps the store, through which signs of life go."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        environment(**{**PLAIN, "WORLD_SIZE": "2", "MASTER_PORT": str(free.getsockname()[1])})
    cfg = CPU.clone()
    cfg.PROCESSES.SILENCE = 1

    def main(args: Namespace) -> None:
        time.sleep(1.5)  # a busy process gives signs of life
        comm.synchronize()
        if comm.get_rank() == stopped:
            os.kill(os.getpid(), signal.SIGSTOP)
        comm.synchronize()

    def program(rank: int) -> None:
        environment(RANK=str(rank))
        raise SystemExit(run_in_processes(main, arguments(), cfg))

    pids = [processes.fork(lambda rank=rank: program(rank)) for rank in range(2)]
    codes = [processes.exit_code(pid) for pid in pids]
    assert codes[1 - stopped] == 1 and codes[stopped] == -signal.SIGKILL
    told = capfd.readouterr().err
    assert f"error (process {1 - stopped}): no sign of life for 1 seconds from process {stopped} on " in told
    assert socket.gethostname() in told
