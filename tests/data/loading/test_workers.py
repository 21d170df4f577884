"""Workers that are killed: the batches are the same as without, and other processes are not affected."""

import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time

import pytest
from torch.utils.data import DataLoader

from uniperceiver_v2.data.loading.test import TestLoader
from uniperceiver_v2.data.loading.train import MAX_WORKER_FAILURES, TrainingBatches, TrainLoader
from uniperceiver_v2.data.loading.workers import WorkerDied, Workers
from uniperceiver_v2.data.order import CountFrom, SampleOrder
from uniperceiver_v2.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
RECORDS = [{"number": number} for number in range(50)]


def as_it_is(record: dict) -> dict:
    return record


def slowly(record: dict) -> dict:
    time.sleep(0.05)
    return record


def loader(mapper, workers: int, start_batch: int = 0) -> TrainLoader:
    batches = TrainingBatches(RECORDS, mapper, SampleOrder(50, "boats", 0), batch_size=2, rank=0, world_size=1)
    return TrainLoader(
        batches, numbers=CountFrom(start_batch), num_workers=workers, max_corrupt_share=0.0, task_name="boats"
    )


def workers_of(iterate) -> list:
    """The worker processes that ``iterate`` starts."""
    before = set(multiprocessing.active_children())
    iterate()
    return [process for process in multiprocessing.active_children() if process not in before]


def kill(process, number: int = signal.SIGKILL) -> None:
    os.kill(process.pid, number)
    process.join()


@pytest.fixture(autouse=True)
def usual_handler():
    """Checks that a test leaves the handler of SIGCHLD unchanged."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    after = signal.signal(signal.SIGCHLD, before)
    assert after is signal.SIG_DFL


@pytest.mark.parametrize(("workers", "victim"), [(1, 0), (3, 0), (3, 2)])
def test_batches_go_on_after_a_worker_is_killed_between_two(logged, workers, victim):
    expected = list(itertools.islice(loader(as_it_is, 0, start_batch=4), 40))
    batches = iter(loader(as_it_is, workers, start_batch=4))
    found = []
    processes = workers_of(lambda: found.extend(itertools.islice(batches, 7)))
    assert len(processes) == workers
    kill(processes[victim])
    sum(range(1000))  # a step of training, which must not be interrupted
    found += itertools.islice(batches, 33)
    assert found == expected
    (message,) = [message for message in logged() if "worker" in message]
    assert "task boats" in message and "SIGKILL" in message and "batch 11" in message
    # The others of the dead one's are ended too.
    batches.close()
    assert not any(process.is_alive() for process in processes)


def test_batches_go_on_after_a_worker_is_killed_while_it_is_waited_for(logged, tmp_path):
    victim = tmp_path / "victim"

    def kill_itself_once(record: dict) -> dict:
        if record["number"] == 7 and not victim.exists():
            victim.write_text(str(os.getpid()))
            time.sleep(0.2)  # time to be waited for
            os.kill(os.getpid(), signal.SIGSEGV)
        return record

    start = time.perf_counter()
    found = list(itertools.islice(loader(kill_itself_once, 2), 40))
    assert time.perf_counter() - start < 4  # torch's own look would take five seconds
    assert victim.exists() and found == list(itertools.islice(loader(as_it_is, 0), 40))
    assert len([message for message in logged() if "SIGSEGV" in message]) == 1


def test_sigbus_is_told_with_both_of_its_causes(logged, tmp_path):
    def kill_itself_once(record: dict) -> dict:
        if not (tmp_path / "victim").exists():
            (tmp_path / "victim").touch()
            os.kill(os.getpid(), signal.SIGBUS)
        return record

    list(itertools.islice(loader(kill_itself_once, 1), 2))
    (message,) = [message for message in logged() if "SIGBUS" in message]
    assert "/dev/shm" in message and "index of shards" in message


def test_workers_that_die_each_time_end_the_run_with_advice(logged):
    def leave(record: dict) -> dict:
        if record["number"] == 7:
            os._exit(3)
        return record

    order = SampleOrder(50, "boats", 0)
    due = [order.index_at(p) for p in range(50)].index(7) // 2
    found = []
    with pytest.raises(UserError) as caught:
        for batch in loader(leave, 1):
            found.append(batch)
    assert found == list(itertools.islice(loader(as_it_is, 0), len(found)))
    assert due - 1 <= len(found) <= due  # the one before is lost if the worker had no time to hand it over
    message = str(caught.value)
    for part in (
        "task boats",
        f"batch {len(found)} ",
        "ended with code 3",
        "memory",
        "DATALOADER.NUM_WORKERS",
        "--resume",
    ):
        assert part in message
    assert len([message for message in logged() if "new workers" in message]) >= MAX_WORKER_FAILURES - 1


def test_a_worker_whose_files_are_closed_before_it_has_an_exit_code_is_told_from_other_errors():
    def leave_slowly(record: dict) -> dict:
        os.closerange(3, 1024)  # the kernel does this first when a process ends
        time.sleep(0.3)
        os._exit(3)

    class Interrupted:
        """As if a batch's memory were asked for just now."""

        def __next__(self):
            multiprocessing.connection.wait([process.sentinel])
            raise ConnectionResetError

    workers = Workers(DataLoader(RECORDS, collate_fn=leave_slowly, batch_size=2, num_workers=1))
    (process,) = workers._processes
    started, workers._iterator = workers._iterator, Interrupted()
    with pytest.raises(WorkerDied, match="ended with code 3"):
        next(workers)
    del started


def test_failures_with_batches_in_between_do_not_add_up():
    batches = iter(loader(as_it_is, 1))
    found = []
    for _ in range(MAX_WORKER_FAILURES + 1):
        (process,) = workers_of(lambda: found.append(next(batches))) or [multiprocessing.active_children()[-1]]
        kill(process, signal.SIGTERM)
    assert found == list(itertools.islice(loader(as_it_is, 0), MAX_WORKER_FAILURES + 1))


def test_a_death_is_not_raised_in_the_middle_of_a_step_nor_in_another_tasks_data(monkeypatch):
    # Another loader has set PyTorch's handler, which raises wherever the program is. PyTorch sets it once in a process.
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    foreign = iter(DataLoader(range(4), num_workers=1))
    next(foreign)
    assert signal.getsignal(signal.SIGCHLD).__module__.startswith("torch.")
    one, other = iter(loader(as_it_is, 1)), iter(loader(slowly, 1))
    first, second = workers_of(lambda: next(one)), workers_of(lambda: next(other))
    kill(first[0])
    deadline = time.monotonic() + 0.1
    while time.monotonic() < deadline:  # a step
        pass
    for _ in range(3):
        next(other)
    assert second[0].is_alive()
    assert next(one) == next(itertools.islice(loader(as_it_is, 0), 1, None))
    del foreign


def test_a_worker_that_dies_in_evaluation_ends_it_with_advice():
    def leave(record: dict) -> dict:
        if record["number"] == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        return record

    seen = []
    with pytest.raises(UserError, match=r"SIGKILL.*memory.*DATALOADER\.NUM_WORKERS"):
        for batch in TestLoader(RECORDS, leave, batch_size=2, num_workers=2):
            seen += batch
    assert seen == RECORDS[: len(seen)] and len(seen) <= 6


def test_a_handler_that_was_there_stays(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)

    def handler(*_):
        pass

    signal.signal(signal.SIGCHLD, handler)
    next(iter(loader(as_it_is, 1)))
    assert signal.signal(signal.SIGCHLD, signal.SIG_DFL) is handler


def test_a_worker_that_is_killed_with_a_lock_in_its_hands_does_not_stop_the_others():
    """In a thread, where PyTorch itself looks for dead workers, and then at the event that all share."""
    workers = Workers(DataLoader(RECORDS, batch_size=None, num_workers=1))
    event = workers._iterator._workers_done_event

    def hold_what_can_be_held() -> None:
        if hasattr(event, "_cond"):
            event._cond.acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    holder = multiprocessing.get_context("fork").Process(target=hold_what_can_be_held)
    holder.start()
    holder.join()
    kill(workers._processes[0])
    found = []

    def read_all() -> None:
        try:
            found.extend(workers)
        except WorkerDied as death:
            found.append(death)

    thread = threading.Thread(target=read_all, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive(), "it waits for a dead process"
    assert isinstance(found[-1], WorkerDied) and "SIGKILL" in str(found[-1])
