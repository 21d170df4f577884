"""Corpora in shards of lines: which texts are read, in which order, with how little memory."""

import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uniperceiver_v2.data import build_task_train_loader, load_dataset, register_image_text_shards, register_text_shards
from uniperceiver_v2.data.datasets import text_shards
from uniperceiver_v2.data.datasets.texts import tidy
from uniperceiver_v2.data.order import CountFrom, ShardOrder
from uniperceiver_v2.errors import UnreadableImage, UserError

from ..conftest import CAPTIONS, TEXTS
from ..loading.test_build import assert_same, take
from .test_shards import pairs_of, write_shard

TASK = {**TEXTS, "DATASETS": ["books_train"], "IMS_PER_BATCH": 5}


@pytest.fixture
def folder(tmp_path, catalogs):
    """Eleven shards of texts about their place, registered as books_train."""
    for shard in range(11):
        lines = [f"shard {shard} has a text number {n}" for n in range(4 + shard % 3)]
        (tmp_path / f"{shard:05d}.txt").write_text("\n".join(lines) + "\n")
    register_text_shards("books_train", str(tmp_path / "*.txt"))
    return tmp_path


def texts_in(path) -> list[str]:
    records = text_shards.TextShards([text_shards._load_shard(str(path), text_shards.Stamp(*_stamp(path)))])
    return [records[n]["text"] for n in range(len(records))]


def _stamp(path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def test_all_texts_are_read_by_their_places(folder):
    records = load_dataset("books_train")
    lines = [line for path in sorted(folder.glob("*.txt")) for line in path.read_text().splitlines()]
    assert [records[n]["text"] for n in range(len(records))] == lines
    assert (records[0]["text_id"], records[5]["text_id"]) == ("00000.txt:0", "00001.txt:1")
    assert len(list(folder.glob("*.index.npy"))) == 11


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8), st.integers(1, 9))
def test_any_file_gives_its_lines_whatever_the_size_of_a_part(tmp_path, lines, size):
    path = tmp_path / "x.txt"
    content = "\n".join(lines).encode()
    path.write_bytes(content)
    expected = [tidy(line.decode()) for line in content.split(b"\n") if line]
    before, text_shards._AT_A_TIME = text_shards._AT_A_TIME, size
    try:
        found = np.concatenate(list(text_shards._lines(str(path))))
    finally:
        text_shards._AT_A_TIME = before
    assert [tidy(content[o : o + n].decode()) for o, n in found] == expected


def test_batches_follow_from_their_number_whatever_the_workers(folder, config):
    cfg = config(texts=TASK)
    batches = take(build_task_train_loader(cfg, "texts"), 24)
    assert_same(take(build_task_train_loader(cfg, "texts", CountFrom(17)), 7), batches[17:])
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_same(take(build_task_train_loader(cfg, "texts"), 12), batches[:12])
    records = load_dataset("books_train")
    order = records.order("texts", cfg.SEED)
    assert isinstance(order, ShardOrder)
    ids = [sample["text_id"] for batch in batches for sample in batch]
    assert ids == [records[order.index_at(n)]["text_id"] for n in range(120)]
    assert sorted(ids[: len(records)]) == sorted(records[n]["text_id"] for n in range(len(records)))


def test_the_index_is_used_until_its_shard_changes(folder, monkeypatch):
    load_dataset("books_train")
    text_shards._load_shard.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(text_shards, "_lines", lambda path: pytest.fail("the index is there"))
        records = load_dataset("books_train")
    path = folder / "00003.txt"
    path.write_text("another text\n")
    with pytest.raises(UserError, match=r"00003\.txt was changed while it was in use"):
        [records[n] for n in range(len(records))]
    assert texts_in(path) == ["another text"]
    (folder / "00003.txt.index.npy").write_bytes(b"damaged")
    text_shards._load_shard.cache_clear()
    assert texts_in(path) == ["another text"]


def test_neither_lines_nor_their_places_are_kept_in_memory(tmp_path):
    path = tmp_path / "large.txt"
    with open(path, "w") as file:
        file.writelines(f"this is the text with the number {n} of many\n" for n in range(200_000))
    texts_in_first = text_shards._load_shard(str(path), text_shards.Stamp(*_stamp(path)))
    assert len(texts_in_first.lines) == 200_000
    text_shards._load_shard.cache_clear()
    tracemalloc.start()
    records = text_shards.TextShards([text_shards._load_shard(str(path), text_shards.Stamp(*_stamp(path)))])
    assert records[123_456]["text"] == "this is the text with the number 123456 of many"
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 200_000  # bytes; the places alone have 3.2 million


def test_long_and_broken_texts(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes("é".encode() * 40_000 + b"\n\xff left\n \t\n")
    records = text_shards.TextShards([text_shards._load_shard(str(path), text_shards.Stamp(*_stamp(path)))])
    assert records[0]["text"] == "é" * 32768 and records[1]["text"] == "\ufffd left"
    with pytest.raises(UnreadableImage, match=r"x\.txt: the text at byte 80008 has only white space"):
        records[2]


def test_shards_of_another_kind_and_missing_ones_are_named(folder, config, catalogs):
    write_shard(folder / "0.tar", pairs_of(0))
    register_image_text_shards("pairs_train", str(folder / "*.tar"))
    cfg = config(texts={**TASK, "DATASETS": ["pairs_train"]}, captions={**CAPTIONS, "DATASETS": ["books_train"]})
    for task, dataset in (("texts", "pairs_train"), ("captions", "books_train")):
        with pytest.raises(UserError, match=f"'{dataset}' is not for this kind of task"):
            build_task_train_loader(cfg, task)
    with pytest.raises(UserError, match=r"wikipedia_train.*missing.*wikipedia/\*\.txt"):
        load_dataset("wikipedia_train")
