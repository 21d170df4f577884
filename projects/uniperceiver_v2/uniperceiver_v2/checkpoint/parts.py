"""Checkpoints in parts: a directory into which each process writes what it has of divided tensors.

A directory, such as ``model_0000099``, has these files:

    manifest.json    size and checksum of each other file
    whole.pth        what is not divided, as in a checkpoint of one file; divided tensors are there without values
    __R_0.distcp     the parts of process R, written by torch.distributed.checkpoint
    .metadata        which part of which tensor is where, also by torch.distributed.checkpoint

PyTorch pickles ``.metadata``. It is read by an unpickler that makes nothing but the description of tensors, so that no
code in a file is run. The files of parts are read as tensors only.
"""

from __future__ import annotations

import contextlib
import glob
import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import PurePosixPath
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from isal import isal_zlib
from torch import Tensor

from ..errors import UserError
from ..files import sync_folder, write_atomically, write_json
from ..reading import Unpickler, open_file, read_json, read_tensors
from ..shards import is_divided
from .writing import map_tensors

MANIFEST = "manifest.json"
WHOLE = "whole.pth"
_METADATA = ".metadata"
_WRITTEN = ".parts.tmp"  # ends the name of a directory that is being written, or deleted
_REPLACED = ".replaced"  # ends the name of a directory whose successor is complete, but not in its place yet
_AT_A_TIME = 2**22  # bytes of a file that are read at once


class PartsWriter:
    """Writes directories of parts. All processes have to make it, and to call it in the same order.

    Its messages go through a process group of its own, so that a thread can write while training sends others.

    Args:
        timeout: how long a process waits for the others.
    """

    def __init__(self, timeout: timedelta | None = None):
        self._group = dist.new_group(backend="gloo", timeout=timeout)

    def write(self, path: str, state: Mapping[str, Any], then: Callable[[], Any] = lambda: None) -> None:
        """Write a directory. It has its name only when the files of all processes are on the disk.

        Args:
            path: the directory. One that is there already is replaced.
            state: divided tensors are written in parts, all others by the first process.
            then: what the first process does when the directory is in its place.

        Raises:
            UserError: on all processes, if one of them cannot write.
        """
        from torch.distributed.checkpoint import FileSystemWriter, save

        divided: dict[str, Tensor] = {}
        rest = map_tensors(state, lambda where, value: _set_apart(where, value, divided))
        is_main, written = comm.is_main_process(), _hidden(path, _WRITTEN)
        self._together(path, lambda: _make_anew(written) if is_main else None)
        self._together(path, lambda: save(divided, storage_writer=FileSystemWriter(written), process_group=self._group))
        sums = self._together(path, lambda: _own_files(written, rest if is_main else None))

        def finish() -> None:
            write_json(os.path.join(written, MANIFEST), {"files": {name: x for own in sums for name, x in own.items()}})
            _put_in_place(written, path)
            then()

        self._together(path, lambda: finish() if is_main else None)

    def _together(self, path: str, work: Callable[[], Any]) -> list[Any]:
        """The results of all processes, after all have done their work."""
        from torch.distributed.checkpoint import CheckpointException  # a BaseException

        found, mistake = None, ""
        try:
            found = work()
        except (OSError, RuntimeError, UserError, CheckpointException) as error:
            mistake = str(error) if isinstance(error, UserError) else _reason(error)
        answers: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(answers, (found, mistake), group=self._group)
        if mistakes := [message for _, message in answers if message]:
            raise UserError(f"cannot write {path}: {mistakes[0]}; older checkpoints are untouched")
        return [result for result, _ in answers]


def _set_apart(where: str, value: Tensor, divided: dict[str, Tensor]) -> Tensor:
    """A tensor for the file of the first process. A divided one goes to the others, and leaves its shape and type."""
    if not is_divided(value):
        return value.detach()
    divided[where] = value.detach()
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _make_anew(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)


def _own_files(directory: str, rest: Any) -> dict[str, list[int]]:
    """Size and checksum of this process's files. The first process, which has ``rest``, also writes that."""
    names = [name for name in os.listdir(directory) if name.startswith(f"__{comm.get_rank()}_")]
    if rest is not None:
        write_atomically(os.path.join(directory, WHOLE), lambda file: torch.save(rest, file))
        names += [WHOLE, _METADATA]
    return {name: _size_and_checksum(os.path.join(directory, name)) for name in names}


def _size_and_checksum(path: str) -> list[int]:
    checksum = 0
    with open_file(path) as file:
        while piece := file.read(_AT_A_TIME):
            checksum = isal_zlib.crc32(piece, checksum)
        return [file.tell(), checksum]


def _hidden(path: str, ending: str) -> str:
    return os.path.join(os.path.dirname(path), f".{os.path.basename(path)}{ending}")


def _put_in_place(written: str, path: str) -> None:
    """Rename a complete directory. If the process dies between the two renamings, :func:`tidy_up` undoes the first."""
    replaced = _hidden(path, _REPLACED)
    if os.path.isdir(path):
        shutil.rmtree(replaced, ignore_errors=True)
        os.rename(path, replaced)
    os.rename(written, path)
    sync_folder(os.path.dirname(path) or ".")
    shutil.rmtree(replaced, ignore_errors=True)


def tidy_up(folder: str) -> None:
    """Remove what interrupted writes have left in a folder. Call it while nobody writes there."""
    for replaced in glob.glob(os.path.join(glob.escape(folder), f".*{_REPLACED}")):
        path = os.path.join(folder, os.path.basename(replaced)[1 : -len(_REPLACED)])
        if not os.path.exists(path):
            with contextlib.suppress(OSError):
                os.rename(replaced, path)
        shutil.rmtree(replaced, ignore_errors=True)
    for written in glob.glob(os.path.join(glob.escape(folder), f".*{_WRITTEN}")):
        shutil.rmtree(written, ignore_errors=True)
    for file in glob.glob(os.path.join(glob.escape(folder), ".*.pth.*.tmp")):  # a run in parts writes no such name
        with contextlib.suppress(OSError):
            os.unlink(file)


def remove_checkpoint(path: str) -> None:
    """Delete a checkpoint, file or directory, if it is there. Other directories stay.

    A directory loses its name first, so that none is there in part.
    """
    if is_parts(path):
        hidden = _hidden(path, _WRITTEN)
        shutil.rmtree(hidden, ignore_errors=True)
        os.rename(path, hidden)
        shutil.rmtree(hidden, ignore_errors=True)
    elif os.path.isfile(path):
        os.unlink(path)


def is_parts(path: str) -> bool:
    """Whether a path is a complete directory of parts."""
    return os.path.isfile(os.path.join(path, MANIFEST))


def is_checkpoint(path: str) -> bool:
    """Whether a path is a file, or a directory of parts."""
    return os.path.isfile(path) or is_parts(path)


def plain_values(path: str) -> dict[str, Any]:
    """A checkpoint, file or directory, without the values of divided tensors.

    Raises:
        UserError: it cannot be read.
    """
    return read_tensors(os.path.join(path, WHOLE) if is_parts(path) else path, mapped=True)


def read_parts(path: str, like: Tensor | None = None) -> dict[str, Any]:
    """The state in a directory of parts, whatever the number of processes that have written it.

    Args:
        path: the directory.
        like: a tensor that is divided among processes. Then divided tensors come divided in the same way, each process
            reads its part only, and all have to call this. By default they come whole.

    Raises:
        UserError: a file is missing or damaged; with ``like`` on all processes, whichever has found it.
    """
    shared = like is not None
    files = agreed(lambda: _manifest(path), shared)
    share = sorted(files)[comm.get_rank() :: comm.get_world_size()] if shared else sorted(files)
    agreed(lambda: [_require_undamaged(path, name, files[name]) for name in share], shared)
    return agreed(lambda: _read(path, files, like), shared)


def agreed(work: Callable[[], Any], shared: bool = True) -> Any:
    """The result of something that may raise UserError. If ``shared``, one process's error is raised by all of them."""
    if not shared:
        return work()
    found, mistake = None, ""
    try:
        found = work()
    except UserError as error:
        mistake = str(error)
    if mistakes := [message for message in comm.all_gather(mistake) if message]:
        raise UserError(mistakes[0])
    return found


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}): copy it again or take an older checkpoint")


def _manifest(path: str) -> dict[str, list[int]]:
    manifest = os.path.join(path, MANIFEST)
    content = read_json(manifest)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not {WHOLE, _METADATA} <= files.keys():
        raise _damaged(manifest, "it does not list the files of a checkpoint")
    if bad := [name for name in files if os.path.basename(name) != name]:
        raise _damaged(manifest, f"it lists {bad[0]!r:.80}, which is not the name of a file beside it")
    if not all(isinstance(about, list) and len(about) == 2 for about in files.values()):
        raise _damaged(manifest, "it does not have the size and the checksum of each file")
    return files


def _require_undamaged(path: str, name: str, expected: list[int]) -> None:
    file = os.path.join(path, name)
    try:
        found = _size_and_checksum(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise UserError(f"{file} cannot be read, a part of a checkpoint: {reason}") from error
    if found != expected:
        reason = "its size is another" if found[:1] != expected[:1] else "it has another checksum"
        raise _damaged(file, f"{reason} than was saved")


def _read(path: str, files: Mapping[str, list[int]], like: Tensor | None) -> dict[str, Any]:
    from torch.distributed.checkpoint import CheckpointException, load

    state = read_tensors(os.path.join(path, WHOLE), mapped=True)
    lacking: dict[str, Tensor] = {}
    map_tensors(state, lambda where, value: lacking.setdefault(where, value) if value.is_meta else value)
    if sum(value.nbytes for value in lacking.values()) > sum(size for size, _ in files.values()):
        raise _damaged(path, "its tensors are larger than its files")
    values = {where: _empty(value, like) for where, value in lacking.items()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it says that it does not communicate
            load(values, storage_reader=_reader(path, files), no_dist=True)
    except (Exception, CheckpointException) as error:  # a damaged description ends in whatever it leads to
        raise UserError(f"{path} cannot be read as a checkpoint: {_reason(error)}") from error
    return map_tensors(state, lambda where, value: values.get(where, value))


def _reason(error: BaseException) -> str:
    """What has happened. PyTorch's exception for several processes has their tracebacks as its text."""
    while failures := getattr(error, "failures", None):
        error = next(iter(failures.values()))[0]
    return f"{type(error).__name__}: {' '.join(str(error).split()):.500}"


def _empty(value: Tensor, like: Tensor | None) -> Tensor:
    if like is None:
        return torch.zeros(value.shape, dtype=value.dtype)
    from torch.distributed.tensor import zeros

    return zeros(value.shape, dtype=value.dtype, device_mesh=like.device_mesh, placements=like.placements)


def _reader(path: str, files: Mapping[str, list[int]]) -> Any:
    """PyTorch's reader, which is given the content of ``.metadata``."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    with open(os.path.join(path, _METADATA), "rb") as file:
        metadata = _TensorsUnpickler(file).load()
    if not all(isinstance(kind, TensorStorageMetadata) for kind in metadata.state_dict_metadata.values()):
        raise ValueError(f"{_METADATA} describes more than tensors")
    if not all(place.relative_path in files for place in metadata.storage_data.values()):
        raise ValueError(f"{_METADATA} names a file that {MANIFEST} does not list")
    reader = FileSystemReader(path)
    reader.read_metadata = lambda *_, **__: metadata
    return reader


class _TensorsUnpickler(Unpickler):
    """Makes what describes tensors and their places in files, and nothing else."""

    _KNOWN = {
        "torch.distributed.checkpoint.metadata": {
            *("Metadata", "MetadataIndex", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata"),
            *("StorageMeta", "_MEM_FORMAT_ENCODING"),
        },
        "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
        "torch.serialization": {"_get_layout"},
        "torch": {"Size"},
    }

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "pathlib":
            return PurePosixPath  # the directory's name when it was written, which nobody needs
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_type or name in self._KNOWN.get(module, ()):
            return super(Unpickler, self).find_class(module, name)
        raise pickle.UnpicklingError(f"{_METADATA} holds {module}.{name}, which describes no tensor")
