"""What the programs of this folder share: they unpack what was downloaded, and name all that is still missing.

Nothing is downloaded, because most places ask for consent first. A program takes archives from ``--downloads``, from
the folder of all datasets or from the dataset's own, unpacks those that are not unpacked yet, and may be run again at
any time. An archive is unpacked beside its place and moved there, so that an interrupted run leaves nothing half done.
"""

from __future__ import annotations

import argparse
import bz2
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm


class Archive(NamedTuple):
    """An archive as it is published.

    Attributes:
        file: its name.
        place: where it is published.
        size: in words.
        target: the folder, below that of all datasets, that it is unpacked into.
        makes: the files and folders, below that of all datasets, that readers need of it. None of the folders is empty.
        only: the name of a member, which alone is unpacked, without its folders. "" for all.
    """

    file: str
    place: str
    size: str
    target: str
    makes: tuple[str, ...]
    only: str = ""

    def absent(self, root: Path) -> str:
        """In words, what is not there of what it makes. "" if all of it is there.

        Args:
            root: the folder of all datasets.
        """
        places = [root / name for name in self.makes]
        words = [f"{p} is {'empty' if p.is_dir() else 'not there'}" for p in places if not is_filled(p)]
        return ", ".join(words)


def is_filled(path: Path) -> bool:
    """Whether a path is that of a file, or of a folder that is not empty."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


class Missing(Exception):
    """What a dataset still needs, one line for each."""


class Folders(NamedTuple):
    """The folder of all datasets, and that of the downloads."""

    root: Path
    downloads: Path

    def find(self, archive: Archive) -> Path | None:
        """The archive, if it was downloaded."""
        places = (self.downloads, self.root, self.root / archive.target)
        return next((place / archive.file for place in places if (place / archive.file).is_file()), None)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that every program has."""
    parser = argparse.ArgumentParser(description=description)
    root = Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets")))
    parser.add_argument("--root", type=Path, default=root, help=f"the folder of all datasets (default: {root})")
    parser.add_argument("--downloads", type=Path, help="the folder with the archives (default: ROOT/downloads)")
    return parser


def run(parser: argparse.ArgumentParser, prepare: Callable[[Folders, argparse.Namespace], str]) -> None:
    """The program: ends with status 1 and a message if something is missing.

    Args:
        parser: see :func:`arguments`.
        prepare: (folders, the parsed options) -> what is there now, in a line. Raises :class:`Missing`.
    """
    options = parser.parse_args()
    folders = Folders(options.root, options.downloads or options.root / "downloads")
    try:
        print(prepare(folders, options))
    except Missing as missing:
        command = " ".join(["python", f"datasets/prepare/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        sys.exit(f"error: {missing}\nwhen it is there, run again: {command}")
    except (OSError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
        sys.exit(f"error: {error}")


def unpack_all(archives: Sequence[Archive], folders: Folders) -> None:
    """Unpack the archives that are not unpacked yet.

    Raises:
        Missing: some were not downloaded. The others are unpacked before.
    """
    missing = []
    for archive in archives:
        absent = archive.absent(folders.root)
        if not absent:
            continue
        found = folders.find(archive)
        if found is None:
            missing.append(
                f"{absent}; expected {archive.file} ({archive.size}) in {folders.downloads}, from {archive.place}"
            )
            continue
        unpack(found, folders.root / archive.target, archive.only)
        if absent := archive.absent(folders.root):
            missing.append(f"{found} was unpacked, but {absent}: it is not the archive of {archive.place}")
    if missing:
        raise Missing("\n".join(missing))


def unpack(path: Path, target: Path, only: str = "") -> None:
    """Unpack a zip, a tar or a bz2 of one file into a folder. A JSON that is published as it is is copied.

    Raises:
        ValueError: the archive is damaged, or has a member that would lie outside of the folder.
    """
    target.mkdir(parents=True, exist_ok=True)
    staging = target / f".unpacking-{path.name}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        for name, content in tqdm(_members(path), desc=path.name, unit=" files", disable=None):
            if only and Path(name).name != only:
                continue
            place = staging / (only or name)
            if not place.resolve().is_relative_to(staging.resolve()):
                raise ValueError(f"{path} has the member {name}, which lies outside of the archive's folder")
            place.parent.mkdir(parents=True, exist_ok=True)
            with open(place, "wb") as file:
                shutil.copyfileobj(content, file)
        for place in sorted(p for p in staging.rglob("*") if p.is_file()):
            final = target / place.relative_to(staging)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(place, final)
    except (EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is cut short or damaged ({error}); download it again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """The names and contents of the files in an archive. Links and the like are left out."""
    if path.suffix == ".json":
        with open(path, "rb") as file:
            yield path.name, file
        return
    if path.suffix == ".bz2":  # of one file
        with bz2.open(path) as file:
            yield path.stem, file
        return
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    with archive.open(info) as content:
                        yield info.filename, content
        return
    with tarfile.open(path) as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content


def link_images_of_2014(root: Path, images: Iterable[tuple[str, str]]) -> str:
    """Make links for images of COCO 2014 to those of 2017, which are the same under other names.

    Args:
        root: the folder of all datasets.
        images: the folder ("train2014" or "val2014") and the file name of each image that is needed.

    Returns:
        What was linked, in words.

    Raises:
        Missing: some images are there in neither form.
    """
    missing, linked, needed = [], 0, list(images)
    for folder, name in needed:
        place = root / "coco" / folder / name
        if place.exists():
            continue
        same = name.rsplit("_", 1)[-1]
        found = next((f for f in ("train2017", "val2017") if (root / "coco" / f / same).exists()), None)
        if found is None:
            missing.append(place)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)  # a link to what is gone
        place.symlink_to(os.path.join("..", found, same))
        linked += 1
    if missing:
        raise Missing(
            f"{len(missing):,} of {len(needed):,} images are not there, such as {missing[0]}; expected COCO's of 2014 "
            "or of 2017, which `python datasets/prepare/coco.py` unpacks"
        )
    return f"{len(needed):,} images of COCO, {linked:,} of them new links to those of 2017"
