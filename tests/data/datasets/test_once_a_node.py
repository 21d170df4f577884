"""Listings that the processes of a machine share: parsed once, in memory once, and safe against processes that die."""

import json
import logging
import os
import signal
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetFromList, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.data.datasets import once_a_node
from uniperceiver_v2.data.datasets.formats import register_image_folder
from uniperceiver_v2.data.datasets.once_a_node import OneCopy, parsed_once
from uniperceiver_v2.errors import UserError

NAMES = ["boat", "dog"]


@pytest.fixture
def shared(monkeypatch, tmp_path, catalogs) -> Path:
    """Two processes on this machine, and the folder of what they share."""
    monkeypatch.setattr(once_a_node, "processes_here", lambda: 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"uniperceiver_v2-listings-{os.getuid()}"


@pytest.fixture
def coco(tmp_path) -> Path:
    """Registers "boats", in COCO's format."""
    path = tmp_path / "boats.json"
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in range(1, 6)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 7 + i % 2, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0}
        for i in range(1, 6)
    ]
    categories = [{"id": 7, "name": "boat"}, {"id": 8, "name": "dog"}]
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    register_coco_instances("boats", {}, str(path), str(tmp_path))
    return path


def in_processes(*works) -> list[int]:
    """The exit codes of forked processes, one for each function: 1 if it raises. They begin together."""
    pids = []
    for work in works:
        pid = os.fork()
        if not pid:
            code = 1
            try:
                work()
                code = 0
            finally:
                os._exit(code)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


@pytest.mark.parametrize("kind", ["coco", "folder"])
def test_one_of_two_processes_parses(shared, coco, tmp_path, monkeypatch, kind):
    if kind == "folder":
        for name in NAMES:
            (tmp_path / "tree" / name).mkdir(parents=True)
            (tmp_path / "tree" / name / "a.jpg").write_bytes(b"")
        register_image_folder("animals", str(tmp_path / "tree"))
    dataset = "boats" if kind == "coco" else "animals"
    plain, calls, answers = DatasetCatalog.get, tmp_path / "calls", tmp_path / "answers"
    answers.mkdir()

    def counted(name):
        with open(calls, "a") as file:
            file.write("x")
        time.sleep(0.3)  # the other one is here by then
        return plain(name)

    monkeypatch.setattr(DatasetCatalog, "get", counted)

    def work(number):
        records = load_dataset(dataset)
        metadata = MetadataCatalog.get(dataset)
        ids = metadata.get("thing_dataset_id_to_contiguous_id")
        (answers / str(number)).write_text(repr((records, metadata.thing_classes, ids)))

    assert in_processes(lambda: work(1), lambda: work(2), lambda: work(3)) == [0, 0, 0]
    assert calls.read_text() == "x"
    monkeypatch.setattr(once_a_node, "processes_here", lambda: 1)
    work(0)
    assert len({path.read_text() for path in answers.iterdir()}) == 1


def test_a_file_that_changes_is_parsed_again(shared, coco):
    records = load_dataset("boats")
    assert load_dataset("boats") == records
    content = json.loads(coco.read_text())
    content["annotations"] = content["annotations"][:4]
    coco.write_text(json.dumps(content))
    assert sum(len(record["annotations"]) for record in load_dataset("boats")) == 4


def test_a_process_that_dies_while_it_parses_leaves_the_work_to_the_next(shared, coco, tmp_path):
    def dies():
        parsed_once("boats", lambda: os.kill(os.getpid(), signal.SIGKILL))

    assert in_processes(dies) == [-signal.SIGKILL]
    assert in_processes(lambda: load_dataset("boats")) == [0]


def test_what_is_wrong_with_a_dataset_is_said_by_each_process(shared, coco, caplog):
    coco.write_text("{")
    for _ in range(2):
        with pytest.raises(UserError, match="cut short or damaged"):
            load_dataset("boats")
    coco.unlink()
    with pytest.raises(UserError, match="is missing"):
        load_dataset("boats")
    assert "by each process" not in caplog.text


@pytest.mark.parametrize("damage", [b"", b"\x80\x05garbage"])
def test_a_damaged_file_is_not_believed(shared, coco, damage, caplog):
    records = load_dataset("boats")
    (file,) = shared.glob("*.records")
    file.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert load_dataset("boats") == records
    assert "parsed once more" in caplog.text


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_nothing_is_read_from_a_folder_that_others_can_write(shared, coco, caplog, mode):
    shared.mkdir()
    shared.chmod(mode)
    with caplog.at_level(logging.WARNING):
        records = load_dataset("boats")
        items = OneCopy([1, 2])
    assert len(records) == 5
    assert [items[0], items[1]] == [1, 2]
    assert caplog.text.count("only this user can write") == 2
    assert not list(shared.iterdir())


def test_what_killed_processes_left_is_removed_after_a_week(shared, coco):
    shared.mkdir(mode=0o700)
    for name, days in (("old.items", 8), ("young.items", 1)):
        (shared / name).write_bytes(b"")
        os.utime(shared / name, (time.time() - days * 86400,) * 2)
    load_dataset("boats")
    assert not (shared / "old.items").exists()
    assert (shared / "young.items").exists()


def test_the_file_is_removed_when_its_process_ends(shared, coco):
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=load_dataset, args=("boats",))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert [path.suffix for path in shared.iterdir()] == [".lock"]


def own_bytes() -> int:
    """Bytes of memory that no other process shares."""
    kib = sum(int(x.split()[1]) for x in Path("/proc/self/smaps_rollup").read_text().splitlines() if "Private" in x)
    return 1024 * kib


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux")
def test_two_processes_have_one_copy_of_the_items_in_memory(shared, tmp_path):
    meeting = tmp_path / "meeting"
    meeting.mkdir()

    def work(number, serialize):
        items = [{"id": i, "text": f"{i:01000d}"} for i in range(30_000)]  # 30 MB
        before = own_bytes()
        found = DatasetFromList(items, copy=False, serialize=serialize)
        assert found[29_999] == items[29_999] and found[0] == items[0] and len(found) == 30_000
        for index in range(0, 30_000, 50):  # each page is looked at
            found[index]
        (meeting / f"{serialize}{number}").write_text("")
        while len(list(meeting.glob(f"{serialize}?"))) < 2:
            time.sleep(0.01)
        (tmp_path / f"grown{number}").write_text(str(own_bytes() - before))
        (meeting / f"{serialize}{number}done").write_text("")
        while len(list(meeting.glob(f"{serialize}?done"))) < 2:
            time.sleep(0.01)

    grown = {}
    for serialize in (True, OneCopy):
        assert in_processes(*(partial(work, number, serialize) for number in (1, 2))) == [0, 0]
        grown[serialize] = [int((tmp_path / f"grown{n}").read_text()) for n in (1, 2)]
    assert min(grown[True]) > 25e6, grown
    assert max(grown[OneCopy]) < 15e6, grown


def test_equal_lists_share_a_file_and_others_do_not(shared):
    lists = [OneCopy([{"a": np.arange(3)}, "b"]), OneCopy([{"a": np.arange(3)}, "b"]), OneCopy(["c"])]
    assert len(list(shared.glob("*.items"))) == 2
    assert lists[1][1] == "b"
    assert lists[2][0] == "c"
    assert len(lists[0]) == 2
    assert lists[0][0]["a"].tolist() == [0, 1, 2]
