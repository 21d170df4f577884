"""An index of shards in a directory of its own gives the same pairs, and a start touches no shard."""

import io
import logging
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from uniperceiver_v2.data.datasets import shard_index
from uniperceiver_v2.data.datasets import shards as shards_module
from uniperceiver_v2.errors import UnreadableImage, UserError
from uniperceiver_v2.files import REPOSITORY

LONG = "lo\nng"  # a name in a tar may have any characters


def write_shard(path: Path, first: int, count: int) -> Path:
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            key = f"{LONG * (number % 7)}{number:05d}"
            image = bytes([number % 251]) * (900 + number)
            for suffix, content in (("jpg", image), ("json", b"{}"), ("txt", b"a boat %d" % number)):
                if (number, suffix) == (first + 3, "txt"):
                    continue  # a pair without a caption
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def paths(tmp_path) -> list[str]:
    (tmp_path / "web").mkdir()
    return [str(write_shard(tmp_path / "web" / f"{i:05d}.tar", 100 * i, 5 + i)) for i in range(3)]


@pytest.fixture
def directory(tmp_path, monkeypatch) -> str:
    shards_module._load_shard.cache_clear()
    shard_index._load.cache_clear()
    monkeypatch.setenv(shard_index.VARIABLE, str(tmp_path / "indices"))
    return str(tmp_path / "indices")


def contents(records: shards_module.ShardRecords) -> list:
    found = []
    for index in range(len(records)):
        try:
            found.append(records[index])
        except UnreadableImage as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_an_index_gives_the_same_pairs_and_a_start_reads_no_shard(paths, directory, monkeypatch, workers):
    expected = contents(shards_module.ShardRecords(shards_module.load_each(paths, shards_module._load_shard)))
    assert len(expected) == 18 and sum(isinstance(x, str) for x in expected) == 3
    shard_index.write_index(paths, directory, shards_module.entry_of, workers)
    for path in Path(paths[0]).parent.glob("*.index.npz"):
        path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "_read_headers", None)
        patch.setattr(shards_module, "load_each", None)
        records = shards_module._load_pairs(paths)
    assert contents(records) == expected
    assert not list(Path(paths[0]).parent.glob("*.index.npz")), "a read-only disk would not take it"
    assert not any(shard.members.flags.owndata or shard.keys.flags.owndata for shard in records.shards)


def test_an_image_and_its_caption_are_read_at_once(paths, directory, monkeypatch):
    shard_index.write_index(paths, directory, shards_module.entry_of)
    records, reads, pread = shards_module._load_pairs(paths), [], os.pread
    monkeypatch.setattr(os, "pread", lambda *arguments: reads.append(arguments) or pread(*arguments))
    record = records[7]
    assert record["captions"] == ["a boat 102"] and record["image_bytes"] == bytes([102]) * 1002
    assert len(reads) == 1


def test_a_shard_that_is_another_file_now_ends_the_run(paths, directory):
    shard_index.write_index(paths, directory, shards_module.entry_of)
    write_shard(Path(paths[1]), 200, 6)
    records = shards_module._load_pairs(paths)
    assert records[0]["captions"] == ["a boat 0"]
    with pytest.raises(
        UserError, match=r"00001\.tar was changed .*UNIPERCEIVER_V2_SHARD_INDICES .*anew.*index_shards\.py"
    ):
        records[5]


@pytest.mark.parametrize("damage", ["members", "keys", "shards.json"])
def test_a_damaged_index_is_told_with_the_command(paths, directory, damage):
    folder = shard_index.write_index(paths, directory, shards_module.entry_of)
    path = folder / damage
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"is damaged.*index_shards\.py --into"):
        shards_module._load_pairs(paths)


def test_shards_without_an_index_are_read_as_before_with_a_warning(paths, directory, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("uniperceiver_v2"), "propagate", True)
    os.makedirs(directory)
    assert len(shards_module._load_pairs(paths)) == 18
    assert f"{directory} has no index of these shards" in caplog.text
    caplog.clear()
    shard_index.write_index(paths[:2], directory, shards_module.entry_of)
    shard_index._load.cache_clear()
    assert len(shards_module._load_pairs(paths)) == 18
    assert f"{directory} has no index of these shards" in caplog.text


def test_the_command(paths, directory):
    command = [sys.executable, str(REPOSITORY / "datasets/index_shards.py"), "--into", directory]
    pattern = str(Path(paths[0]).parent / "{00000..00002}.tar")
    told = subprocess.run([*command, pattern], capture_output=True, text=True, check=True).stdout
    assert "3 shards" in told and shard_index.folder_of(paths, directory).is_dir()
    failed = subprocess.run([*command, "/nowhere/*.tar"], capture_output=True, text=True)
    assert failed.returncode == 1 and failed.stderr.startswith("error: ") and "Traceback" not in failed.stderr
