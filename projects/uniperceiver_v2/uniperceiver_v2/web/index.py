"""The folder that can be searched: its pictures, encoded once in the background."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import UnreadableImage, UserError
from ..predictor import Gallery, Match, Predictor
from ..reading.images import picture_endings
from .answers import pixels_of_content
from .limits import Limits, megabytes
from .worker import Worker

logger = logging.getLogger(__name__)

AT_A_TIME, PIXELS_AT_A_TIME = 8, 16 * 10**6  # of the pictures that are encoded together
THUMBNAIL = 320  # pixels of the longer side


class Shown(NamedTuple):
    """A picture of the folder: its thumbnail, its name below the folder, its cosine."""

    thumbnail: Image.Image
    name: str
    similarity: float


class Index:
    """Encodings and thumbnails of the pictures of a folder. Searching works from the first batch on.

    Args:
        folder: the folder; the folders in it count, hidden ones do not.
        predictor, worker: the model, and the thread that owns it.
        limits: how many pictures are taken, and how large they may be.

    Raises:
        UserError: there is no such folder, or no picture in it.
    """

    def __init__(self, folder: str | os.PathLike[str], predictor: Predictor, worker: Worker, limits: Limits):
        self.folder, self._predictor, self._worker, self._limits = Path(folder).expanduser(), predictor, worker, limits
        self.paths = list(pictures_in(self.folder, limits.searched + 1))
        self.cut = len(self.paths) > limits.searched
        del self.paths[limits.searched :]
        self.skipped = 0
        self._thumbnails: list[bytes] = []
        self._gallery: Gallery | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._build, name="index", daemon=True)

    def start(self) -> Index:
        self._thread.start()
        return self

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until all pictures are indexed. Returns whether they are."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        self._closed.set()

    def said(self) -> str:
        """How many pictures can be searched."""
        with self._lock:
            done, skipped = len(self._thumbnails), self.skipped
        text = f"{done} pictures can be searched"
        if done + skipped < len(self.paths):
            text = f"{done} of {len(self.paths)} pictures can be searched so far"
        text += f"; {skipped} could not be read" if skipped else ""
        return text + (f". The folder has more: the first {len(self.paths)} are taken." if self.cut else ".")

    def gallery(self) -> Gallery:
        """The pictures that are indexed so far. Their places stay.

        Raises:
            UserError: none is indexed yet.
        """
        with self._lock:
            if self._gallery is None:
                raise UserError("no picture can be searched yet: try again in a moment")
            return self._gallery

    def shown(self, found: Iterable[Match]) -> list[Shown]:
        """What was found in :meth:`gallery`, with thumbnails."""
        contents = ((self._thumbnails[match.place], match) for match in found)
        return [Shown(Image.open(io.BytesIO(content)), x.name, x.similarity) for content, x in contents]

    def nearest(self, feature: np.ndarray, count: int) -> list[Shown]:
        """The pictures with the largest cosines, best first.

        Args:
            feature: float32 [d] of length 1, of a picture.
            count: of pictures.

        Raises:
            UserError: no picture is indexed yet.
        """
        gallery = self.gallery()
        cosines = gallery.features.numpy() @ feature
        best = np.argsort(-cosines, kind="stable")[:count].tolist()
        return self.shown(Match(place, gallery.names[place], float(cosines[place])) for place in best)

    def _build(self) -> None:
        batch: list[tuple[str, np.ndarray]] = []
        for path in self.paths:
            if self._closed.is_set():
                return
            try:
                batch.append((str(path.relative_to(self.folder)), self._pixels(path)))
            except (UnreadableImage, UserError, OSError) as error:
                logger.warning("not searched: %s", error)
                self.skipped += 1
                continue
            if len(batch) == AT_A_TIME or sum(pixels.size // 3 for _, pixels in batch) > PIXELS_AT_A_TIME:
                self._add(batch)
                batch = []
        self._add(batch)

    def _pixels(self, path: Path) -> np.ndarray:
        if (size := path.stat().st_size) > self._limits.upload_bytes:
            raise UserError(f"{path} has {megabytes(size)}, more than {megabytes(self._limits.upload_bytes)}")
        return pixels_of_content(path.read_bytes(), str(path), self._limits)

    def _add(self, batch: list[tuple[str, np.ndarray]]) -> None:
        """Encode pictures in the worker's thread. Visitors' questions take turns with them."""
        if not batch or self._closed.is_set():
            return
        try:
            pixels = [image for _, image in batch]
            encoded = self._worker.run(lambda: self._predictor.gallery(pixels))
        except (UserError, RuntimeError) as error:  # such as memory that is full, or a server that ends
            if not self._closed.is_set():
                logger.warning("%d pictures from %s on are not searched: %s", len(batch), batch[0][0], error)
            self.skipped += len(batch)
            return
        thumbnails = [_thumbnail(image) for _, image in batch]
        added = replace(encoded, names=tuple(name for name, _ in batch))
        with self._lock:
            self._thumbnails += thumbnails
            self._gallery = added if self._gallery is None else self._gallery + added


def pictures_in(folder: Path, most: int) -> Iterator[Path]:
    """Paths of pictures in a folder and the folders in it, in their names' order.

    Raises:
        UserError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    endings, count = picture_endings(), 0
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(files):
            if name.lower().endswith(endings) and name[0] != ".":
                yield Path(place, name)
                count += 1
                if count == most:
                    return
    if not count:
        raise UserError(f"there is no picture in {folder}")


def _thumbnail(pixels: np.ndarray) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    return content.getvalue()
