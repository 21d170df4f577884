"""Image-text pairs in WebDataset shards: which are read, in which order, and which cannot be read."""

import errno
import io
import multiprocessing
import os
import resource
import shutil
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from uniperceiver_v2.data import (
    build_task_train_loader,
    build_test_loader,
    load_dataset,
    register_image_text_shards,
    training_images_of_captions,
)
from uniperceiver_v2.data.datasets import shards as shards_module
from uniperceiver_v2.data.datasets.texts import encode
from uniperceiver_v2.data.order import SHARDS_AT_A_TIME, CountFrom, ShardOrder
from uniperceiver_v2.errors import UnreadableImage, UserError
from uniperceiver_v2.reading import disk, read_image
from uniperceiver_v2.reading.tars import LONGEST_NAME, MOST_GLOBAL

from ..conftest import CAPTIONS, RETRIEVAL
from ..loading.test_build import assert_same, take

PAIRS, SHARDS = 7, 3


def image_of(number: int, suffix: str = "png", **save) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (40 + number % 5, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix), **save)
    return buffer.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def pairs_of(shard: int, count: int = PAIRS) -> dict[str, bytes]:
    members = {}
    for number in range(count):
        key = f"{shard:05d}{number:04d}"
        suffix = ("png", "jpg", "webp", "jpeg")[number % 4]
        members[f"{key}.{suffix}"] = image_of(100 * shard + number, suffix)
        members[f"{key}.json"] = b'{"caption": "not this one"}'
        members[f"{key}.txt"] = f"picture {number} of\n shard {shard} ".encode()
    return members


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three shards of seven pairs each, in img2dataset's layout."""
    for shard in range(SHARDS):
        write_shard(tmp_path / f"{shard:05d}.tar", pairs_of(shard))
        (tmp_path / f"{shard:05d}_stats.json").write_text("{}")
        (tmp_path / f"{shard:05d}.parquet").write_bytes(b"PAR1")
    return tmp_path


@pytest.fixture
def web(folder, config, catalogs):
    """A configuration of both kinds of tasks that read the shards."""
    register_image_text_shards("web_train", str(folder / "*.tar"))
    data = {"DATASETS": ["web_train"], "IMS_PER_BATCH": 6}
    return config(captions={**CAPTIONS, **data}, pairs={**RETRIEVAL, **data})


def records_of(*paths: Path) -> shards_module.ShardRecords:
    return shards_module.ShardRecords(shards_module.load_each([str(path) for path in paths], shards_module._load_shard))


def test_pairs_are_what_the_webdataset_library_reads(folder, web):
    paths = sorted(str(path) for path in folder.glob("*.tar"))
    original = list(webdataset.WebDataset(paths, shardshuffle=False))
    records = load_dataset("web_train")
    assert len(records) == len(original) == PAIRS * SHARDS
    for index, theirs in enumerate(original):
        record = records[index]
        key, shard = theirs["__key__"], Path(theirs["__url__"])
        assert record["file_name"] == f"{shard}/{key}" and record["image_id"] == f"{shard.name}/{key}"
        assert record["captions"] == [" ".join(theirs["txt"].decode().split())]
        assert record["image_bytes"] == next(theirs[s] for s in ("png", "jpg", "webp", "jpeg") if s in theirs)


@pytest.mark.parametrize("orientation", [1, 6, None])
def test_an_images_bytes_give_the_pixels_of_its_file(tmp_path, orientation):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    content = image_of(3, "jpg", exif=exif if orientation else b"Exif\0\0broken")
    (tmp_path / "a.jpg").write_bytes(content)
    for image_format in ("RGB", "BGR"):
        record = {"file_name": str(tmp_path / "a.jpg"), "image_id": 0}
        expected = read_image(record, image_format)
        found = read_image({**record, "file_name": "none", "image_bytes": content}, image_format)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)


def test_samples_of_both_kinds(web, tokenizer):
    for task in ("captions", "pairs"):
        sample = take(build_task_train_loader(web, task), 1)[0][0]
        record = next(
            r for r in map(load_dataset("web_train").__getitem__, range(21)) if r["image_id"] == sample["image_id"]
        )
        assert sample["file_name"] == record["file_name"] and "image_bytes" not in sample
        captions, ids = sample["captions"], sample["caption_token_ids"]
        assert captions == record["captions"] and torch.equal(ids[0], encode(tokenizer, captions[0]))
        assert (sample["height"], sample["width"]) == read_image(record, "RGB").shape[:2]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("task", ["captions", "pairs"])
def test_workers_ranks_and_where_a_run_begins_change_no_batch(web, monkeypatch, task):
    whole = take(build_task_train_loader(web, task), 9)  # of 21 pairs, six at a time: into the third epoch
    for workers in (1, 3):
        web.DATALOADER.NUM_WORKERS = workers
        assert_same(take(build_task_train_loader(web, task, numbers=CountFrom(4)), 5), whole[4:])
    web.DATALOADER.NUM_WORKERS = 0
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    shares = []
    for rank in range(2):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        shares.append(take(build_task_train_loader(web, task, numbers=CountFrom(2)), 4))
    assert_same([a + b for a, b in zip(*shares, strict=True)], whole[2:6])
    ids = [sample["image_id"] for batch in whole for sample in batch]
    assert len(set(ids[:21])) == len(set(ids[21:42])) == 21 and ids[:21] != ids[21:42]


def test_where_the_shards_lie_changes_no_batch(web, folder, tmp_path_factory):
    expected = take(build_task_train_loader(web, "pairs"), 3)
    moved = tmp_path_factory.mktemp("moved")
    for path in folder.glob("*.tar"):
        shutil.copy(path, moved)
    register_image_text_shards("moved_train", str(moved / "{00000..00002}.tar"))
    web.TASKS.pairs.DATASETS = ["moved_train"]
    found = take(build_task_train_loader(web, "pairs"), 3)
    for key in ("image_id", "captions", "image"):
        assert_same([s[key] for batch in found for s in batch], [s[key] for batch in expected for s in batch])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30).filter(any), st.integers(0, 3))
def test_every_epoch_shows_each_record_once_from_few_shards_at_a_time(sizes, seed):
    order, total = ShardOrder(sizes, "pairs", seed), sum(sizes)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    positions = np.random.default_rng(0).permutation(2 * total)  # in any order
    found = np.empty(2 * total, dtype=int)
    for position in positions:
        found[position] = order.index_at(int(position))
    assert sorted(found[:total]) == sorted(found[total:]) == list(range(total))
    # Of no more shards than that is a record shown before and another one still to come.
    for epoch in (owner[found[:total]], owner[found[total:]]):
        places = [np.flatnonzero(epoch == shard) for shard in np.unique(epoch)]
        in_use = [sum(p[0] <= position <= p[-1] for p in places) for position in range(total)]
        assert max(in_use) <= SHARDS_AT_A_TIME


def test_the_order_of_a_seed_is_never_changed():
    order = ShardOrder([3, 0, 4, 5], "a", 0)
    assert [order.index_at(p) for p in range(14)] == [3, 0, 2, 8, 10, 5, 9, 4, 1, 6, 7, 11, 9, 3]
    order = ShardOrder([2] * 20, "a", 0)
    assert [order.index_at(p) for p in (0, 1, 15, 16, 31, 32, 39)] == [1, 39, 9, 15, 30, 11, 7]
    assert order.rng_at(3).integers(1000, size=3).tolist() == [963, 397, 6]
    firsts = [
        tuple(ShardOrder([100] * 50, task, seed).index_at(p) for p in range(5))
        for task, seed in (("a", 0), ("b", 0), ("a", 1))
    ]
    assert len(set(firsts)) == 3


def test_an_epochs_windows_mix_their_shards():
    order = ShardOrder([100] * 40, "a", 0)
    first = [order.index_at(p) // 100 for p in range(100 * SHARDS_AT_A_TIME)]
    assert len(set(first)) == SHARDS_AT_A_TIME and len(set(first[:100])) == SHARDS_AT_A_TIME
    assert sorted(set(first)) != list(range(min(first), min(first) + SHARDS_AT_A_TIME))  # nor neighbours on disk


BAD = {
    "000.jpg": b"no image at all",
    "000.txt": b"a caption",
    "001.jpg": image_of(1, "jpg"),
    "002.txt": b"a caption alone",
    "003.jpg": image_of(3, "jpg"),
    "003.txt": b" \n ",
    "004.jpg": image_of(4, "jpg")[:300],
    "004.txt": b"half an image",
    "005.jpg": image_of(5, "jpg"),
    "005.txt": b"\xff\xfe fine \xed\xa0\x80",
    "006.json": b"{}",
}


def test_bad_pairs_are_told_and_the_others_are_read(tmp_path, web):
    records = records_of(write_shard(tmp_path / "bad.tar", BAD))
    assert len(records) == 6  # a key with metadata only is not a pair
    for index, reason in ((1, "no caption"), (2, "no image"), (3, "empty caption")):
        with pytest.raises(UnreadableImage, match=rf"bad\.tar/00{index} has (an )?{reason}"):
            records[index]
    for index in (0, 4):
        with pytest.raises(UnreadableImage, match=rf"bad\.tar/00{index}: "):
            read_image(records[index], "RGB")
    assert "fine" in records[5]["captions"][0] and read_image(records[5], "RGB").shape == (40, 48, 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pairs_are_replaced_counted_and_named_once(web, folder, logged, workers):
    write_shard(folder / "00003.tar", {**pairs_of(3, 30), **BAD})
    web.DATALOADER.NUM_WORKERS, web.DATALOADER.MAX_CORRUPT_SHARE = workers, 0.3
    loader = build_task_train_loader(web, "pairs")
    batches = take(loader, 28)  # nearly three epochs of 57
    assert all(len(batch) == 6 for batch in batches)
    assert loader.num_unreadable >= 10
    named = [message for message in logged() if "cannot be read" in message]
    assert len(named) == 5, named
    assert all(message.count("00003.tar/00") == 1 for message in named)
    web.DATALOADER.MAX_CORRUPT_SHARE = 0.01
    with pytest.raises(UserError, match=r"MAX_CORRUPT_SHARE.*00003\.tar"):
        take(build_task_train_loader(web, "pairs"), 40)


@pytest.mark.parametrize("where", ["image", "caption", "header"])
def test_a_shard_that_is_cut_short_gives_what_is_whole(tmp_path, logged, where):
    path = write_shard(tmp_path / "cut.tar", pairs_of(0))
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
    cut = {
        "image": members["000000004.png"].offset_data + 100,
        "caption": members["000000004.txt"].offset_data + 3,
        "header": members["000000005.jpg"].offset + 100,
    }[where]
    os.truncate(path, cut)
    records = records_of(path)
    assert len(records) == 5
    for index in range(4):
        assert records[index]["captions"] == [f"picture {index} of shard 0"]
    if where == "header":
        assert records[4]["captions"]
    else:
        with pytest.raises(UnreadableImage, match=r"000000004( has no caption|.*cut short)"):
            records[4]
    found = sum(member.offset_data <= cut for member in members.values())
    assert any("cut.tar is cut short" in message and f"first {found} members" in message for message in logged())


def test_an_index_lies_beside_its_shard_until_that_changes(folder, monkeypatch):
    path = folder / "00000.tar"
    captions = [record["captions"] for record in map(records_of(path).__getitem__, range(PAIRS))]
    assert (folder / "00000.tar.index.npz").exists()
    shards_module._load_shard.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "_read_headers", None)  # the index is enough
        records = records_of(path)
    assert [records[i]["captions"] for i in range(PAIRS)] == captions
    # Another content, first of another size, then only of another time.
    size = path.stat().st_size
    write_shard(path, pairs_of(5, 30))
    assert len(records_of(path)) == 30
    write_shard(path, pairs_of(6))
    assert path.stat().st_size == size
    assert records_of(path)[0]["captions"] == ["picture 0 of shard 6"]
    # A damaged one, or one that cannot be written, is no harm.
    (folder / "00000.tar.index.npz").write_bytes(b"PK\3\4 and no more")
    shards_module._load_shard.cache_clear()
    assert len(records_of(path)) == PAIRS
    shards_module._load_shard.cache_clear()
    (folder / "00000.tar.index.npz").unlink()
    (folder / "00000.tar.index.npz").mkdir()
    assert len(records_of(path)) == PAIRS
    assert not [p for p in folder.iterdir() if p.name.endswith(".tmp")]


def test_a_shard_that_changes_in_use_ends_the_run(folder):
    records = records_of(folder / "00000.tar")
    write_shard(folder / "new.tar", pairs_of(7, 12))
    os.replace(folder / "new.tar", folder / "00000.tar")
    with pytest.raises(UserError, match=r"00000\.tar was changed"):
        records[0]
    records = records_of(folder / "00001.tar")
    (folder / "00001.tar").unlink()
    with pytest.raises(UnreadableImage, match=r"00001\.tar"):
        records[0]


def test_in_memory_a_pair_is_a_few_numbers(folder):
    shard = records_of(folder / "00000.tar").shards[0]
    assert (shard.keys.nbytes + shard.members.nbytes) / PAIRS <= 41
    assert shard.keys.dtype.hasobject is False


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("none/*.tar", r"'web' is missing.*none/\*\.tar"),
        ("{00000..00003}.tar", r"'web' is missing.*00003\.tar"),
        ("00001_stats.json", r"00001_stats\.json cannot be read as an uncompressed tar"),
        ("packed.tar.gz", r"packed\.tar\.gz cannot be read as an uncompressed tar"),
        ("empty.tar", r"'web' is empty.*empty\.tar"),
        ([], "'web' is empty"),
    ],
)
def test_shards_that_are_not_there_or_no_shards(folder, catalogs, pattern, expected):
    with tarfile.open(folder / "packed.tar.gz", "w:gz") as tar:
        tar.add(folder / "00000.tar", "000.txt")
    write_shard(folder / "empty.tar", {})
    register_image_text_shards("web", str(folder / pattern) if isinstance(pattern, str) else pattern)
    with pytest.raises(UserError, match=expected):
        load_dataset("web")


def test_shards_stand_in_tasks_of_their_own_and_are_not_evaluated(tiny, web):
    web.TASKS.pairs.DATASETS = ["web_train", "tiny_digit_scenes_captions_train"]
    with pytest.raises(UserError, match=r"'web_train'.*'tiny_digit_scenes_captions_train'.*a task of its own"):
        build_task_train_loader(web, "pairs")
    with pytest.raises(UserError, match=r"'web_train'.*cannot be evaluated"):
        build_test_loader(web, "web_train")


def test_what_generated_captions_are_compared_with_is_the_annotated_data_where_there_is_any(tiny, web, config):
    records, mapper = training_images_of_captions(web)
    assert len(records) == PAIRS * SHARDS and mapper(records[0])["captions"] == ["picture 0 of shard 0"]
    both = config(web=web.TASKS.captions, scenes=CAPTIONS)
    records, _ = training_images_of_captions(both)
    assert len(records) == 40


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A tar's header with any size, also one that cannot be."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b"\xff" + size.to_bytes(11, "big", signed=True) if size < 0 else b"%011o\0" % size
    block[148:156] = b"%06o\0 " % (sum(block[:148]) + sum(block[156:]) + 8 * 32)
    return bytes(block)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)


def record_of_pax(key: str, value: str) -> bytes:
    text = f" {key}={value}\n"
    return f"{len(text) + len(str(len(text) + 1))}{text}".encode()


BEFORE = header("0.txt", 5) + padded(b"hello")
SIZE_OF_PAX = record_of_pax("size", "-2048")
GLOBAL = b"".join(record_of_pax(f"k{number:03d}", "x") for number in range(MOST_GLOBAL + 1))
DAMAGED = {
    "negative size": header("1.txt", -1024),
    "negative size of the first": header("1.txt", -512),
    "negative size of a long name": header("././@LongLink", -512, tarfile.GNUTYPE_LONGNAME),
    "negative size of an extended header": header("pax", -512, tarfile.XHDTYPE),
    "negative size in an extended header": header("pax", len(SIZE_OF_PAX), tarfile.XHDTYPE)
    + padded(SIZE_OF_PAX)
    + header("1.txt", 0),
    "long name of gigabytes": header("././@LongLink", 2**32, tarfile.GNUTYPE_LONGNAME),
    "long names in a chain": (header("././@LongLink", 2, tarfile.GNUTYPE_LONGNAME) + padded(b"x\0")) * 3000,
    "a name of 5,000 bytes": header("././@LongLink", 5000, tarfile.GNUTYPE_LONGNAME)
    + padded(b"x" * 5000)
    + header("1.txt", 0),
    "values for all members": header("pax", len(GLOBAL), tarfile.XGLTYPE) + padded(GLOBAL),
}


@pytest.mark.parametrize("damage", DAMAGED.values(), ids=DAMAGED.keys())
@pytest.mark.parametrize("before", [BEFORE, b""], ids=["second", "first"])
def test_a_damaged_header_is_refused_with_the_tar_and_hangs_nothing(tmp_path, catalogs, damage, before):
    path = tmp_path / "damaged.tar"
    path.write_bytes(before + damage + header("2.txt", 2) + padded(b"ok") + bytes(1024))
    register_image_text_shards("damaged", str(path))

    def read() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))  # a loop without end is killed
        try:
            load_dataset("damaged")
        except UserError as error:
            (tmp_path / "message").write_text(str(error))

    process = multiprocessing.get_context("fork").Process(target=read)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert f"{path} cannot be read as a" in (tmp_path / "message").read_text()


def test_a_name_as_long_as_a_path_may_be_is_a_key(tmp_path):
    name = "x" * (LONGEST_NAME - len(".png"))
    path = write_shard(tmp_path / "long.tar", {f"{name}.png": image_of(1), f"{name}.txt": b"a boat"})
    assert records_of(path)[0]["image_id"] == f"long.tar/{name}"


def test_a_member_that_says_to_be_larger_than_its_shard_takes_no_memory(tmp_path):
    path = tmp_path / "large.tar"
    path.write_bytes(BEFORE + header("0.jpg", 2**33 - 1) + padded(b"x"))
    records = records_of(path)
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match=r"large\.tar/0: the shard is cut short here"):
        records[0]
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_shard_on_a_disk_that_fails_for_a_moment_gives_the_same_pair(tmp_path, monkeypatch):
    records = records_of(write_shard(tmp_path / "good.tar", pairs_of(0)))
    expected = records[3]
    monkeypatch.setattr(disk, "WAITS", (0.001, 0.001))
    pread, failures = os.pread, [errno.EIO, errno.ESTALE]

    def failing(*arguments):
        if failures:
            raise OSError(failures.pop(), "for a moment")
        return pread(*arguments)

    monkeypatch.setattr(os, "pread", failing)
    assert records[3] == expected and not failures
    failures += [errno.EIO] * 100
    with pytest.raises(UserError, match=r"good\.tar cannot be read: .*EIO"):
        records[3]
