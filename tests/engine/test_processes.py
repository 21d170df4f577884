"""How the processes of a run find each other, pass signals on and tell mistakes."""

import multiprocessing
import os
import signal
import threading
import time
from argparse import Namespace

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode

from uniperceiver_v2.engine import processes as module
from uniperceiver_v2.engine import run_in_processes, world_size
from uniperceiver_v2.engine.processes import agree_on_start
from uniperceiver_v2.errors import UserError

CPU = CfgNode({"MODEL": {"DEVICE": "cpu"}})


def arguments(**changes) -> Namespace:
    return Namespace(
        **{"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto", "resume": False, **changes}
    )


def start_all(store: dist.Store, delays: list[float]) -> list[tuple[str, bool]]:
    """What each rank comes to, if they arrive so many seconds late."""
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
    """Late processes find what an earlier start has left, and must not take it for their own."""
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
    """SIGTERM to the program reaches its children, who end by themselves; a child that is killed ends it as well."""

    def child() -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
        time.sleep(30)

    def launched(*_) -> None:
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
