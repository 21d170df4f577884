"""Reads files of weights, as tensors and plain values. No code in a file is run, and no damage stays unnoticed."""

import contextlib
import hashlib
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from isal import isal_zlib
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError
from .extent import require_bounded
from .pickles import DEEPEST, MOST_VALUES

CHECKSUM = "checksum"  # of a safetensors file's metadata
MOST_TENSORS = 2**17  # of a safetensors file; half a million empty ones take ten seconds
_CRC = "crc32:"  # with which checksums of CRCs begin, and older ones do not
_AT_A_TIME = 2**22  # bytes that are checked at once
_THREADS = 2  # that compute checksums while one reads


def read_tensors(path: str, *, mapped: bool = False) -> dict[str, Any]:
    """A dict that ``torch.save`` wrote, or the tensors of a ``.safetensors`` file, on the CPU. Code in the file is not
    run.

    With ``mapped``, tensors of ``torch.save`` lie in the file's pages. The processes of a machine share these, as long
    as nobody writes into a tensor. A tensor that is kept has to be copied: the file may be overwritten in its place.

    ``torch.save`` writes a zip archive with a checksum of each tensor, which ``torch.load`` ignores. They are compared
    here, in other threads while the next tensors are read.

    Raises:
        UserError: the file is truncated or damaged, or has more than tensors and plain values.
    """
    if path.endswith(".safetensors"):
        return _read_safetensors(path)
    try:
        loaded = _read_archive(path, mapped) if _is_archive(path) else _load(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {_one_line(error)}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(loaded).__name__}, not a dict")
    try:
        require_bounded(loaded, MOST_VALUES, DEEPEST)
    except ValueError as error:
        raise UserError(f"{path} is not a checkpoint: {error}") from error
    return loaded


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            if (count := len(file.keys())) > MOST_TENSORS:
                raise ValueError(f"it has {count} tensors, more than {MOST_TENSORS}")
            expected = (file.metadata() or {}).get(CHECKSUM)
        tensors = load_file(path)
    except Exception as error:  # a damaged header ends in whatever it leads to
        raise UserError(f"{path} cannot be read as safetensors: {_one_line(error)}") from error
    if expected is not None:
        ours = tensors_checksum(tensors) if expected.startswith(_CRC) else _digest(tensors, _sum_of)
        if expected != ours:
            raise _damaged(path, "its tensors are not those of its checksum")
    return tensors


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of tensors by their names, for the metadata ``CHECKSUM`` of a safetensors file, which has none itself.

    Of each tensor's bytes it has the CRC, as a zip archive has.
    """
    return _CRC + _digest(tensors, lambda flat: isal_zlib.crc32(flat.numpy()))


def _digest(tensors: Mapping[str, Tensor], check: Callable[[Tensor], Any]) -> str:
    """One checksum of names, types and shapes, and of what ``check`` makes of each tensor's bytes, uint8 [N]."""
    whole = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        checked = check(value.reshape(-1).view(torch.uint8))
        whole.update(repr((key, str(value.dtype), list(value.shape), checked)).encode())
    return whole.hexdigest()


def _sum_of(flat: Tensor) -> tuple[int, list[int]]:
    """Bytes summed as whole numbers of 64 bits, and the last bytes. Files that were written before December 2026 have
    it. It finds one flipped bit, but not two parts that have changed places."""
    end = flat.numel() // 8 * 8
    return int(flat[:end].view(torch.int64).sum()), flat[end:].tolist()


def require_undamaged(path: str) -> None:
    """Compare the checksums of an archive of ``torch.save`` that a library is going to read. Other files pass.

    Raises:
        UserError: the file is damaged.
    """
    if _is_archive(path):
        with _explained_damage(path), _opened(path) as archive:
            _compare(archive, archive.infolist())


def require_finite(state: Mapping[str, Tensor]) -> None:
    """
    Raises:
        UserError: a weight is NaN or infinite. A model with such weights answers with nothing but NaN.
    """
    for key, value in state.items():
        # The sum is fast, and finite for almost all weights that are.
        if value.is_floating_point() and not value.sum().isfinite() and not value.isfinite().all():
            count = int((~value.isfinite()).sum())
            raise UserError(f"{key} has {count} of {value.numel()} values that are NaN or infinite")


def _damaged(path: str, reason: str) -> UserError:
    return UserError(f"{path} is damaged ({reason}): copy it again or take an older checkpoint")


def _is_archive(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _read_archive(path: str, mapped: bool) -> Any:
    if not zipfile.is_zipfile(path):
        # The directory of a zip archive is at its end.
        raise UserError(f"{path} is cut short: copy it again or take an older checkpoint")
    with _explained_damage(path), _opened(path) as archive:
        entries = archive.infolist()
        storages = [entry for entry in entries if "/data/" in entry.filename]
        _compare(archive, [entry for entry in entries if "/data/" not in entry.filename])
    with ThreadPoolExecutor(_THREADS) as pool:
        checksums: list[Future[int]] = []

        def placed(storage: torch.UntypedStorage, location: str) -> torch.UntypedStorage:
            checksums.append(pool.submit(_crc_of, storage))  # it was just read, so it is still in a cache
            return storage

        loaded = _load(path, placed, mapped)
    # torch.save numbers the storages as its pickle names them, which is the order in which they are read.
    wrong = [entry.filename for entry, checksum in zip(storages, checksums) if checksum.result() != entry.CRC]
    if wrong or len(storages) != len(checksums):
        raise _damaged(path, f"{wrong[0] if wrong else 'its list of tensors'} has another checksum than was saved")
    return loaded


def _crc_of(storage: torch.UntypedStorage) -> int:
    return isal_zlib.crc32(torch.tensor([], dtype=torch.uint8).set_(storage).numpy())


@contextlib.contextmanager
def _explained_damage(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a damaged directory ends in whatever its first wrong byte leads to
        raise _damaged(path, _one_line(error)) from error


@contextlib.contextmanager
def _opened(path: str) -> Iterator[zipfile.ZipFile]:
    """A zip archive as ``torch.save`` writes it, which cannot become larger in memory than it is on the disk.

    Raises:
        ValueError: it is another one.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed, which torch.save never does")
        if sum(entry.file_size for entry in entries) > os.path.getsize(path):
            raise ValueError("its parts are larger than the file")
        yield archive


def _compare(archive: zipfile.ZipFile, entries: Iterable[zipfile.ZipInfo]) -> None:
    """Read entries, so that the archive compares their checksums."""
    for entry in entries:
        with archive.open(entry) as part:
            while part.read(_AT_A_TIME):
                pass


def _load(path: str, place: Callable | str = "cpu", mapped: bool = False) -> Any:
    try:
        return torch.load(path, map_location=place, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is not a checkpoint of tensors and plain values: it is another kind of file or holds "
            "code, none of which was run"
        ) from error
    except Exception as error:  # a damaged pickle ends in whatever its first wrong byte leads to
        raise UserError(f"{path} cannot be read as a checkpoint: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
