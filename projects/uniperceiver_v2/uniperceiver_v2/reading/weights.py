"""Reads files of weights, as tensors and plain values. No code in a file is run, and no damage stays unnoticed."""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import UserError

CHECKSUM = "checksum"  # of a safetensors file's metadata
_AT_A_TIME = 2**22  # bytes that are checked at once


def read_tensors(path: str, *, mapped: bool = False) -> dict[str, Any]:
    """A dict that ``torch.save`` wrote, or the tensors of a ``.safetensors`` file, on the CPU. Code in the file is not
    run.

    With ``mapped``, tensors of ``torch.save`` lie in the file's pages. The processes of a machine share these, as long
    as nobody writes into a tensor. A tensor that is kept has to be copied: the file may be overwritten in its place.

    ``torch.save`` writes a zip archive with a checksum of each tensor, which ``torch.load`` ignores. They are compared
    here, in a second thread while the tensors are read.

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
    return loaded


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(CHECKSUM)
        tensors = load_file(path)
    except Exception as error:  # a damaged header ends in whatever it leads to
        raise UserError(f"{path} cannot be read as safetensors: {_one_line(error)}") from error
    if expected is not None and expected != tensors_checksum(tensors):
        raise _damaged(path, "its tensors are not those of its checksum")
    return tensors


def tensors_checksum(tensors: Mapping[str, Tensor]) -> str:
    """A checksum of tensors by their names, for the metadata ``CHECKSUM`` of a safetensors file, which has none itself.

    Of each tensor it has the sum of its bytes as whole numbers of 64 bits. That takes a tenth of the time of a CRC, and
    any flipped bit changes it.
    """
    whole = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        flat = value.reshape(-1).view(torch.uint8)
        end = flat.numel() // 8 * 8
        sums = int(flat[:end].view(torch.int64).sum()), flat[end:].tolist()
        whole.update(repr((key, str(value.dtype), list(value.shape), sums)).encode())
    return whole.hexdigest()


def require_undamaged(path: str) -> None:
    """Compare the checksums of an archive of ``torch.save`` that a library is going to read. Other files pass.

    Raises:
        UserError: the file is damaged.
    """
    if _is_archive(path) and (reason := _damage_of(path)) is not None:
        raise _damaged(path, reason)


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
    with ThreadPoolExecutor(1) as pool:
        damage = pool.submit(_damage_of, path)
        try:
            loaded = _load(path, mapped)
        except UserError:
            if (reason := damage.result()) is None:
                raise
        if (reason := damage.result()) is not None:
            raise _damaged(path, reason)
    return loaded


def _damage_of(path: str) -> str | None:
    """What is wrong with a zip archive. None if all checksums are right.

    An archive of ``torch.save`` is not compressed. So it cannot become larger in memory than it is on the disk.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                return "it is compressed, which torch.save never does"
            if sum(entry.file_size for entry in entries) > os.path.getsize(path):
                return "its parts are larger than the file"
            for entry in entries:
                with archive.open(entry) as part:
                    while part.read(_AT_A_TIME):
                        pass
    except Exception as error:  # a damaged directory ends in whatever its first wrong byte leads to
        return _one_line(error)
    return None


def _load(path: str, mapped: bool = False) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
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
