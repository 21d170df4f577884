"""Listings of datasets that the processes of a machine share: one of them parses, and all have one copy in memory.

Both happen through files in a folder of the machine that only this user can write, so that no process waits for a
message of another one. A process that dies leaves its lock to the next one. Where the folder cannot be used, each
process does the work by itself, as a single process does.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import multiprocessing.util
import os
import pickle
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def processes_here() -> int:
    """The number of this run's processes on this machine, 1 if it is not known."""
    try:
        return comm.get_local_size()
    except AssertionError:  # processes that were started in another way than this project's
        return 1


def parsed_once(name: str, load: Callable[[], Any]) -> Any:
    """``load()`` for a dataset. Of several processes on a machine, one calls it, and the others read what it has found:
    the records, and the metadata that loading has added.

    Applies to the formats of single large files (COCO, LVIS) and to trees of images (ImageNet). Other datasets are
    loaded by each process.
    """
    if processes_here() == 1 or not (source := _source(name)):
        return load()
    with contextlib.ExitStack() as stack:
        try:
            path = _folder() / f"{_digest(name.encode(), *source, _run())}.records"
            stack.enter_context(_locked(path.with_suffix(".lock")))
        except OSError as error:
            logger.warning("dataset '%s' is parsed by each process: %s", name, error)
            return load()
        if not path.exists():
            found = load()
            with _logged(f"dataset '{name}' is parsed by each process"):
                _write(path.parent, partial(_dump, (found, _metadata(name)), path))
            return found
    with _logged(f"dataset '{name}' is parsed once more"):
        found, metadata = pickle.loads(path.read_bytes())
        MetadataCatalog.get(name).set(**{key: value for key, value in metadata.items() if key not in _metadata(name)})
        return found
    return load()


def _dump(found: Any, path: Path, file: IO[bytes]) -> Path:
    pickle.dump(found, file, pickle.HIGHEST_PROTOCOL)
    return path


def _metadata(name: str) -> dict[str, Any]:
    return MetadataCatalog.get(name).as_dict()


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """A context whose errors of files are logged and forgotten, with what follows from them."""
    try:
        yield
    except (OSError, EOFError, AttributeError, TypeError, ValueError, pickle.PickleError) as error:
        logger.warning("%s: %s", what, error)


class OneCopy:
    """A read-only list of pickled items in a file that all processes of a machine map into memory, in place of
    Detectron2's list of the same kind, of which each process has one.

    The file is named by its content. So processes share it if their lists are equal, and never otherwise.

    Args:
        items: the list.
    """

    def __init__(self, items: list):
        self._ends = np.zeros(len(items), dtype=np.int64)
        self._bytes: np.ndarray | None = None
        with _logged(f"each process keeps its own list of {len(items)} records"):
            found = np.memmap(_write(_folder(), partial(self._write, items)), dtype=np.uint8, mode="r")
            self._bytes = found.view(np.ndarray)
        if self._bytes is None:
            pickled = [pickle.dumps(item, pickle.HIGHEST_PROTOCOL) for item in items]
            self._ends = np.cumsum([len(item) for item in pickled])
            self._bytes = np.frombuffer(b"".join(pickled), dtype=np.uint8)

    def _write(self, items: list, file: IO[bytes]) -> Path:
        """The name is known when all is written, so that memory never has all of it."""
        content = hashlib.blake2b(digest_size=16)
        for index, item in enumerate(items):
            pickled = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
            content.update(pickled)
            file.write(pickled)
            self._ends[index] = file.tell()
        return Path(file.name).with_name(f"{content.hexdigest()}.items")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        start = 0 if index == 0 else self._ends[index - 1]
        return pickle.loads(memoryview(self._bytes[start : self._ends[index]]))


_TAG = "uniperceiver_v2-listings"
_OLD = 7 * 24 * 3600.0  # seconds


def _folder() -> Path:
    """A folder of this machine that only this user can write: what lies there is unpickled. Files that a killed process
    has left are removed after a week.

    Raises:
        OSError: there is none.
    """
    folder = Path(tempfile.gettempdir()) / f"{_TAG}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is not a folder that only this user can write")
    for file in folder.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - file.stat().st_mtime > _OLD:
                file.unlink()
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A context for one process at a time. The system unlocks the file of a process that has died."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(folder: Path, write: Callable[[IO[bytes]], Path]) -> Path:
    """Write a file that appears in a folder when it is complete, and is removed when this process ends. A file that is
    there already stays. Those who have mapped a file keep it.

    Args:
        write: writes the content into an open file, and returns the path at which it is to appear.
    """
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        path = write(file)
        file.flush()
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)
            # The processes of multiprocessing do not call what atexit registers.
            multiprocessing.util.Finalize(None, path.unlink, kwargs={"missing_ok": True}, exitpriority=0)
    return path


def _source(name: str) -> tuple[bytes, ...]:
    """What tells a dataset's file or tree from a later state of it; nothing for datasets that are not shared."""
    metadata = MetadataCatalog.get(name)
    path = metadata.get("json_file") or (metadata.get("evaluator_type") == "imagenet" and metadata.get("source"))
    try:
        found = os.stat(path) if path else None
    except OSError:
        found = None  # loading says what is wrong
    if found is None:
        return ()
    return tuple(str(x).encode() for x in (os.path.abspath(path), found.st_size, found.st_mtime_ns))


@cache
def _run() -> bytes:
    """What the processes of a run on a machine have in common, and no other run has: the process that started them."""
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):  # not a Linux
        started = ""
    return f"{parent} {started}".encode()


def _digest(*parts: bytes) -> str:
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.hexdigest()
