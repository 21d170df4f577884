"""Runs the programs of datasets/prepare on archives made from miniatures."""

import io
import runpy
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from uniperceiver_v2.files import REPOSITORY

PROGRAMS = REPOSITORY / "datasets/prepare"


@pytest.fixture
def prepare(tmp_path, monkeypatch, capsys):
    """(name, options) -> (exit status, what the program printed). The folder of all datasets is ``tmp_path/root``."""
    monkeypatch.syspath_prepend(str(PROGRAMS))
    monkeypatch.setenv("DETECTRON2_DATASETS", "")  # back afterwards; a program may set it
    (tmp_path / "root").mkdir()

    def run(name: str, *options) -> tuple[int, str]:
        path = PROGRAMS / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, options), "--root", str(tmp_path / "root")])
        before = set(sys.modules)
        try:
            runpy.run_path(str(path), run_name="__main__")
            status = 0
        except SystemExit as end:
            status = 0 if end.code is None else end.code
        finally:
            for module in {path.stem for path in PROGRAMS.glob("*.py")} & (set(sys.modules) - before):
                del sys.modules[module]
        told = capsys.readouterr().out
        return (1, status) if isinstance(status, str) else (status, told)

    return run


@pytest.fixture
def root(tmp_path, prepare) -> Path:
    return tmp_path / "root"


@pytest.fixture
def downloads(root) -> Path:
    folder = root / "downloads"
    folder.mkdir()
    return folder


def write_zip(path: Path, folder: Path, *names: str) -> Path:
    """A zip of files and folders below ``folder``, which are removed."""
    with zipfile.ZipFile(path, "w") as archive:
        for place in _files(folder, names):
            archive.write(place, place.relative_to(folder))
            place.unlink()
    return path


def write_tar(path: Path, folder: Path, *names: str) -> Path:
    """A tar of files and folders below ``folder``, which are removed."""
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for place in _files(folder, names):
            archive.add(place, place.relative_to(folder))
            place.unlink()
    return path


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _files(folder: Path, names) -> list[Path]:
    found = [folder / name for name in names]
    return sorted(p for place in found for p in ([place] if place.is_file() else place.rglob("*")) if p.is_file())
