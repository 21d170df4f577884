"""Batches that a thread fetches ahead: the same ones as without, and processes are started by the main thread alone."""

import itertools
import multiprocessing
import os
import signal
import threading

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from uniperceiver_v2.data.loading.ahead import BatchesAhead
from uniperceiver_v2.data.loading.train import TrainingBatches, TrainLoader
from uniperceiver_v2.data.loading.transport import send_batch
from uniperceiver_v2.data.order import CountFrom, SampleOrder
from uniperceiver_v2.errors import UnreadableImage, UserError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
TASKS = ["boats", "cars", "boats", "boats", "cars", "cars", "boats", "cars"]
RECORDS = [{"number": number} for number in range(10)]


def as_it_is(record: dict) -> dict:
    return record


def loader(task: str, workers: int, mapper=as_it_is, share: float = 0.0) -> TrainLoader:
    batches = TrainingBatches(RECORDS, mapper, SampleOrder(10, task, 0), batch_size=2, rank=0, world_size=1)
    return TrainLoader(batches, numbers=CountFrom(0), num_workers=workers, max_corrupt_share=share, task_name=task)


def taken(ahead: BatchesAhead, tasks: list[str]) -> list:
    nexts = [*tasks[1:], None]
    return [ahead.take([task], [then] if then else [])[task] for task, then in zip(tasks, nexts)]


def two_tasks(workers: int) -> BatchesAhead:
    return BatchesAhead({task: loader(task, workers) for task in ("boats", "cars")}, as_it_is)


def test_the_thread_changes_no_batch():
    state = torch.get_rng_state()
    assert taken(two_tasks(2), TASKS) == taken(two_tasks(0), TASKS)
    assert torch.equal(torch.get_rng_state(), state), "workers took from the random numbers of training"


def test_the_next_batch_is_fetched_before_it_is_asked_for():
    class Slow:
        num_workers = 1

        def __init__(self):
            self.second = threading.Event()

        def __iter__(self):
            yield "first"
            self.second.set()
            yield "second"

    slow = Slow()
    ahead = BatchesAhead({"boats": slow}, lambda batch: f"ready {batch}")
    assert ahead.take(["boats"], ["boats"]) == {"boats": "ready first"}
    assert slow.second.wait(10), "nothing fetches while the first batch is computed"
    assert ahead.take(["boats"], []) == {"boats": "ready second"}


def test_only_the_main_thread_starts_processes(monkeypatch):
    starts = []
    start = TrainLoader._start_workers
    monkeypatch.setattr(
        TrainLoader,
        "_start_workers",
        lambda self, done: starts.append(threading.current_thread()) or start(self, done),
    )
    before = set(multiprocessing.active_children())
    ahead, expected = two_tasks(1), taken(two_tasks(0), TASKS)
    starts.clear()
    found = [ahead.take(["boats"], ["cars"])["boats"]]
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    found += taken(ahead, TASKS[1:])
    assert found == expected
    assert starts == 3 * [threading.main_thread()]  # of two tasks, and of one once more


def refuse_seven(record: dict) -> dict:
    if record["number"] == 7:
        raise UserError("boat 7 is no boat")
    return record


def test_an_error_is_raised_when_its_batch_is_due():
    ahead = BatchesAhead({"boats": loader("boats", 1, refuse_seven)}, as_it_is)
    place = [SampleOrder(10, "boats", 0).index_at(p) for p in range(10)].index(7) // 2
    assert len(taken(ahead, ["boats"] * (place - 1))) == place - 1 > 0
    ahead.take(["boats"], ["boats"])
    with pytest.raises(UserError, match="boat 7"):
        ahead.take(["boats"], [])


def unreadable_seven(record: dict) -> dict:
    if record["number"] == 7:
        raise UnreadableImage("boat 7 has sunk")
    return record


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_count_once_their_batch_is_taken(workers):
    ahead = BatchesAhead({"boats": loader("boats", workers, unreadable_seven, 0.5)}, as_it_is)
    counts = []
    for _ in range(5):
        ahead.take(["boats"], ["boats"])
        counts.append(ahead.num_unreadable["boats"])
    place = [SampleOrder(10, "boats", 0).index_at(p) for p in range(10)].index(7) // 2
    assert counts[:place] == place * [0] and counts[place:] == (5 - place) * [1]


def test_images_and_masks_are_sent_and_the_rest_stays():
    instances = Instances((4, 5), gt_boxes=Boxes(torch.rand(2, 4)), gt_masks=BitMasks(torch.ones(2, 4, 5).bool()))
    image = torch.zeros(3, 4, 5, dtype=torch.uint8)
    batch = [{"image": image, "instances": instances}, {"frames": image[None]}, {"token_ids": torch.zeros(3)}]
    sent = send_batch(batch, torch.device("meta"))
    assert sent[0]["image"].device.type == sent[1]["frames"].device.type == "meta"
    assert sent[0]["image"].dtype == torch.uint8, "an image is four times as large as a float"
    assert sent[0]["instances"].gt_masks.tensor.device.type == "meta"
    assert sent[0]["instances"].gt_boxes.device.type == sent[2]["token_ids"].device.type == "cpu"


def test_nothing_beyond_the_last_batch_is_fetched():
    fetched = []

    class Counted:
        num_workers = 1

        def __iter__(self):
            for number in itertools.count():
                fetched.append(number)
                yield number

    ahead = BatchesAhead({"boats": Counted()}, lambda batch: batch)
    assert taken(ahead, ["boats"] * 3) == [0, 1, 2]
    ahead.close()
    ahead._thread.join(10)
    assert fetched == [0, 1, 2] and not ahead._thread.is_alive()
