"""One thread for the model: order, deadlines, errors."""

import threading
import time

import pytest

from uniperceiver_v2.web.worker import Deadline, TooLate, Worker


@pytest.fixture
def worker():
    made = Worker()
    yield made
    made.close()


def test_steps_run_one_at_a_time_in_a_thread_of_their_own(worker):
    running, most, threads = 0, 0, set()

    def step():
        nonlocal running, most
        running += 1
        most = max(most, running)
        threads.add(threading.current_thread())
        time.sleep(0.005)
        running -= 1

    callers = [threading.Thread(target=worker.run, args=(step,)) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert most == 1
    assert len(threads) == 1
    assert threading.current_thread() not in threads


def test_a_request_that_waits_too_long_is_told_and_never_begins(worker):
    release, begun = threading.Event(), []
    blocker = threading.Thread(target=worker.run, args=(release.wait,))
    blocker.start()
    with pytest.raises(TooLate, match=r"no answer within 0\.05 s"):
        worker.run(lambda: begun.append(1), Deadline(0.05))
    release.set()
    blocker.join()
    assert worker.run(lambda: "next", Deadline(30)) == "next"
    assert begun == []


def test_a_slow_step_is_left_and_the_next_request_is_answered(worker):
    release = threading.Event()
    with pytest.raises(TooLate):
        worker.run(release.wait, Deadline(0.05))
    release.set()
    assert worker.run(lambda: 7, Deadline(30)) == 7


def test_the_deadline_holds_for_all_steps_of_a_request_together(worker):
    deadline = Deadline(0.05)
    worker.run(lambda: None, deadline)
    time.sleep(0.06)
    with pytest.raises(TooLate):
        worker.run(lambda: None, deadline)


def test_a_steps_error_is_the_requests(worker):
    def step():
        raise TimeoutError("the step's own")

    with pytest.raises(TimeoutError, match="the step's own"):
        worker.run(step, Deadline(30))
