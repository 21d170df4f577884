"""Reads files of weights, as tensors and plain values. No code in a file is run, and no damage stays unnoticed."""

import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import UserError

_AT_A_TIME = 2**22  # bytes that are checked at once


def read_tensors(path: str) -> dict[str, Any]:
    """A dict that ``torch.save`` wrote, or the tensors of a ``.safetensors`` file, on the CPU. Code in the file is not
    run.

    ``torch.save`` writes a zip archive with a checksum of each tensor, which ``torch.load`` ignores. They are compared
    here, in a second thread while the tensors are read.

    Raises:
        UserError: the file is truncated or damaged, or has more than tensors and plain values.
    """
    if path.endswith(".safetensors"):
        try:
            return load_file(path)
        except Exception as error:  # a damaged header ends in whatever it leads to
            raise UserError(f"{path} cannot be read as safetensors: {_one_line(error)}") from error
    try:
        loaded = _read_archive(path) if _is_archive(path) else _load(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {_one_line(error)}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not a checkpoint: it holds a {type(loaded).__name__}, not a dict")
    return loaded


def _is_archive(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _read_archive(path: str) -> Any:
    if not zipfile.is_zipfile(path):
        # The directory of a zip archive is at its end.
        raise UserError(f"{path} is cut short: copy it again or take an older checkpoint")
    with ThreadPoolExecutor(1) as pool:
        damage = pool.submit(_damage_of, path)
        try:
            loaded = _load(path)
        except UserError:
            if (reason := damage.result()) is None:
                raise
        if (reason := damage.result()) is not None:
            raise UserError(f"{path} is damaged ({reason}): copy it again or take an older checkpoint")
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


def _load(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
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
