"""Files of a storage are read by copies in a folder of limited size, which processes share."""

import io
import os
import tarfile
import threading

import fsspec
import pytest

from uniperceiver_v2.data.datasets import shard_index
from uniperceiver_v2.data.datasets import shards as shards_module
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.reading import find_remote, is_remote, open_copy, remote_stamp
from uniperceiver_v2.reading.disk import WAITS


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """fsspec's storage in memory, with three files of 400 KB each, and a cache with room for two of them."""
    monkeypatch.setenv("UNIPERCEIVER_V2_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UNIPERCEIVER_V2_CACHE_GB", "0.001")
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for number in range(3):
        memory.pipe(f"/pairs/{number}.tar", bytes([number]) * 400_000)
    yield memory
    memory.store.clear()


def content(path: str) -> bytes:
    with open_copy(path, remote_stamp(path)) as file:
        return file.read()


def test_copies_are_read_again_and_the_oldest_make_room(storage, tmp_path, monkeypatch):
    paths = find_remote("memory://pairs/*.tar")
    assert paths == [f"memory:///pairs/{number}.tar" for number in range(3)] and all(map(is_remote, paths))
    fetched, get = [], type(storage).get_file
    monkeypatch.setattr(type(storage), "get_file", lambda self, *names: fetched.append(names[0]) or get(self, *names))
    for number in (0, 1, 0, 2, 0, 1):
        assert content(paths[number]) == bytes([number]) * 400_000
        held = [entry for entry in os.scandir(tmp_path / "cache") if not entry.name.endswith(".lock")]
        assert sum(entry.stat().st_size for entry in held) <= 1_000_000
    assert [os.path.basename(name) for name in fetched] == ["0.tar", "1.tar", "2.tar", "1.tar"]


def test_one_process_fetches_and_the_others_wait(storage, monkeypatch):
    fetched, get = [], type(storage).get_file
    monkeypatch.setattr(type(storage), "get_file", lambda self, *names: fetched.append(names[0]) or get(self, *names))
    found = []
    readers = [threading.Thread(target=lambda: found.append(content("memory:///pairs/0.tar"))) for _ in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == 4 * [bytes(400_000)] and len(fetched) == 1


def test_what_cannot_be_kept_or_has_changed_is_told(storage, monkeypatch):
    stamp = remote_stamp("memory:///pairs/0.tar")
    storage.pipe("/pairs/0.tar", bytes([9]) * 400_000)
    with pytest.raises(UserError, match="another file"):
        open_copy("memory:///pairs/0.tar", stamp)
    monkeypatch.setenv("UNIPERCEIVER_V2_CACHE_GB", "0.0001")
    with pytest.raises(UserError, match="UNIPERCEIVER_V2_CACHE_GB"):
        content("memory:///pairs/1.tar")
    with pytest.raises(UserError, match="nowhere"):
        remote_stamp("nowhere://pairs/0.tar")


def test_shards_of_a_storage_give_the_pairs_of_local_ones(storage, tmp_path, monkeypatch):
    local = _shard(tmp_path / "00000.tar")
    storage.put_file(local, "/web/00000.tar")
    monkeypatch.setenv(shard_index.VARIABLE, str(tmp_path / "indices"))
    paths = shards_module.find_shards("memory://web/{00000..00000}.tar")
    with pytest.raises(UserError, match="needs an index"):
        shards_module._load_pairs(paths)
    shard_index.write_index(paths, str(tmp_path / "indices"), shards_module.entry_of)
    shard_index._load.cache_clear()
    records = shards_module._load_pairs(paths)
    monkeypatch.delenv(shard_index.VARIABLE)
    expected = shards_module._load_pairs([local])
    for name in ("captions", "image_bytes", "image_id"):
        assert [record[name] for record in records] == [record[name] for record in expected]

    # A connection that is lost for a moment changes no pair.
    for entry in os.scandir(os.environ["UNIPERCEIVER_V2_CACHE"]):
        os.remove(entry)
    shards_module._open.cache_clear()
    get, failures = type(storage).get_file, [ConnectionError("lost"), TimeoutError("late")]

    def failing(self, *names):
        if failures:
            raise failures.pop()
        return get(self, *names)

    monkeypatch.setattr(type(storage), "get_file", failing)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    assert len(WAITS) >= 2 and records[1]["image_bytes"] == expected[1]["image_bytes"] and not failures


def _shard(path) -> str:
    with tarfile.open(path, "w") as tar:
        for number in range(4):
            for suffix, data in (("jpg", bytes([number]) * 50), ("txt", b"a boat %d" % number)):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)
