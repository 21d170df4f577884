"""The transport from workers: batches arrive unchanged, and errors are raised as in the worker."""

import itertools
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from uniperceiver_v2.data.loading.test import TestLoader
from uniperceiver_v2.data.loading.train import TrainingBatches, TrainLoader
from uniperceiver_v2.data.loading.transport import pack, unpack
from uniperceiver_v2.data.order import CountFrom, SampleOrder
from uniperceiver_v2.errors import UserError

RECORDS = [{"number": number} for number in range(10)]
MESSAGE = "boats.json: annotation 7 is no boat"


def refuse_seven(record: dict) -> dict:
    if record["number"] == 7:
        raise UserError(MESSAGE)
    return record


def fail_at_seven(record: dict) -> dict:
    return {"number": record["number"], "inverse": 1 / (record["number"] - 7)}


def train_loader(mapper, workers: int) -> TrainLoader:
    batches = TrainingBatches(RECORDS, mapper, SampleOrder(10, "boats", 0), batch_size=2, rank=0, world_size=1)
    return TrainLoader(batches, numbers=CountFrom(0), num_workers=workers, max_corrupt_share=0.0, task_name="boats")


def evaluation_loader(mapper, workers: int) -> TestLoader:
    return TestLoader(RECORDS, mapper, batch_size=2, num_workers=workers)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("build", [train_loader, evaluation_loader])
def test_a_user_error_arrives_as_it_was_raised(build, workers):
    seen = []
    with pytest.raises(UserError) as caught:
        for batch in itertools.islice(build(refuse_seven, workers), 10):
            seen += [sample["number"] for sample in batch]
    assert str(caught.value) == MESSAGE
    # What was made before is delivered before.
    order = [SampleOrder(10, "boats", 0).index_at(p) for p in range(10)] if build is train_loader else list(range(10))
    assert seen == order[: order.index(7) // 2 * 2]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("build", [train_loader, evaluation_loader])
def test_any_other_error_keeps_its_traceback(build, workers):
    with pytest.raises(ZeroDivisionError) as caught:
        list(itertools.islice(build(fail_at_seven, workers), 10))
    in_worker = "fail_at_seven" in str(caught.value)
    assert in_worker == (workers > 0)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells the memory")
def test_workers_do_not_hold_what_the_main_process_has_freed():
    """A forked worker has the main process's heap, with 160 MiB that are free below a block in use."""
    blocks = [torch.ones(2**14, dtype=torch.uint8) for _ in range(10_000)]
    last = blocks[-1]
    del blocks
    (sample, _) = next(iter(train_loader(lambda record: {"held": torch.tensor(_resident())}, 1)))
    assert _resident() - sample["held"].item() > 100 * 2**20
    assert bool(last.all())


def _resident() -> int:
    """Bytes of the process, without those of files."""
    kib = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(kib.split()[1])


def test_packing_keeps_content_and_makes_tensors_that_can_be_changed():
    instances = Instances((4, 5), gt_boxes=Boxes(torch.rand(2, 4)), gt_masks=BitMasks(torch.ones(2, 4, 5)))
    sample = {"image": torch.arange(60, dtype=torch.uint8).reshape(3, 4, 5), "instances": instances, "names": ("a",)}
    made = [sample, UserError(MESSAGE)]
    unpacked, error = unpack(pack(made))
    assert isinstance(error, UserError) and str(error) == MESSAGE
    assert unpacked.keys() == sample.keys() and unpacked["names"] == ("a",)
    assert unpacked["image"].dtype == torch.uint8 and torch.equal(unpacked["image"], sample["image"])
    assert unpacked["instances"].image_size == (4, 5)
    for name in ("gt_boxes", "gt_masks"):
        assert torch.equal(unpacked["instances"].get(name).tensor, instances.get(name).tensor)
    unpacked["image"] += 1
    unpacked["instances"].gt_boxes.tensor.mul_(2)
    assert not torch.equal(unpacked["image"], sample["image"])
    assert not torch.equal(unpacked["instances"].gt_boxes.tensor, instances.gt_boxes.tensor)


@pytest.mark.parametrize(("left", "warns"), [(4000, True), (2**30, False)])
def test_little_shared_memory_is_told(monkeypatch, caplog, left, warns):
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_bavail=left, f_frsize=1))
    monkeypatch.setattr(logging.getLogger("uniperceiver_v2"), "propagate", True)
    batches = iter(train_loader(lambda record: {"image": torch.zeros(1000)}, 1))
    next(batches)
    next(batches)
    told = [x.getMessage() for x in caplog.records if "shared memory" in x.getMessage()]
    assert len(told) == warns
    assert all("boats" in x and "--shm-size" in x and "NUM_WORKERS" in x for x in told)
