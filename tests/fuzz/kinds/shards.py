"""Shards of pairs and of texts, and the indices beside them."""

import io
import os
import random
import tarfile
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog
from mutations import damaged_bytes
from PIL import Image
from running import Damaged, SilentDamage

from uniperceiver_v2.data import load_dataset, register_image_text_shards, register_text_shards
from uniperceiver_v2.errors import UnreadableImage
from uniperceiver_v2.reading import read_image

PAIRS = 5
SIZES = (-1, 0, 1, 511, 513, 2**31, 2**33, 8**11 - 1, 2**62)
TYPES = (b"0", b"1", b"5", b"L", b"K", b"x", b"g", b"S", b"X", b"V", b"\0", b"7", b"Z")


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def archive(tar_format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for number in range(PAIRS):
            key = f"{number:05d}" if number else "long/" * 30 + "00000"
            for suffix, content in (("png", picture(number)), ("txt", f"picture {number}".encode())):
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Kind:
    together = 10

    def __init__(self, folder: Path):
        self._archives = [archive(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
        self._texts = b"".join(f"text number {i}\n\n".encode() for i in range(20))
        self._whole = self._archives[0]
        (folder / "whole.tar").write_bytes(self._whole)
        (folder / "whole.txt").write_bytes(self._texts)
        for name in ("whole.tar", "whole.txt"):
            os.utime(folder / name, ns=(10**18, 10**18))
        self._pairs = self._read_pairs(folder / "whole.tar")
        self._lines = self._read_texts(folder / "whole.txt")
        self._index = (folder / "whole.tar.index.npz").read_bytes()
        self._text_index = (folder / "whole.txt.index.npy").read_bytes()

    def damaged(self, rng: random.Random) -> Damaged:
        action = rng.random()
        if action < 0.4:
            return Damaged("a.tar", with_header(rng, rng.choice(self._archives)))
        if action < 0.7:
            return Damaged("a.tar", damaged_bytes(rng, rng.choice(self._archives)))
        if action < 0.8:
            return Damaged("whole.tar.index.npz", damaged_bytes(rng, self._index))
        if action < 0.9:
            return Damaged("whole.txt.index.npy", damaged_bytes(rng, self._text_index))
        return Damaged("a.txt", damaged_bytes(rng, self._texts))

    def read(self, path: Path, only_bytes: bool) -> None:
        if path.name == "a.tar":
            self._read_pairs(path)
        elif path.name == "a.txt":
            self._read_texts(path)
        elif path.suffix == ".npz":
            if self._read_pairs(self._beside(path, self._whole)) != self._pairs:
                raise SilentDamage("other pairs than those of the shard")
        elif self._read_texts(self._beside(path, self._texts)) != self._lines:
            raise SilentDamage("other texts than those of the shard")

    def _beside(self, index: Path, content: bytes) -> Path:
        """The shard of an index, with the time of its index."""
        shard = index.parent / index.name.rsplit(".index", 1)[0]
        shard.write_bytes(content)
        os.utime(shard, ns=(10**18, 10**18))
        return shard

    def _read_pairs(self, path: Path) -> list:
        name = f"fuzzed_{len(DatasetCatalog.list())}"  # without the path, which messages have to give
        register_image_text_shards(name, str(path))
        records = load_dataset(name)
        pairs = []
        for index in range(len(records)):
            try:
                record = records[index]
                pairs.append((record["captions"], read_image(record, "RGB").tolist()))
            except UnreadableImage as error:
                assert str(path) in str(error)
        return pairs

    def _read_texts(self, path: Path) -> list:
        name = f"fuzzed_{len(DatasetCatalog.list())}"
        register_text_shards(name, str(path))
        records = load_dataset(name)
        texts = []
        for index in range(len(records)):
            try:
                texts.append(records[index]["text"])
            except UnreadableImage as error:
                assert str(path) in str(error)
        return texts

    def is_named(self, path: Path, message: str) -> bool:
        return str(path) in message


def with_header(rng: random.Random, content: bytes) -> bytes:
    """With a header changed or put in, of a right checksum."""
    place = rng.randrange(len(content) // 512) * 512
    if rng.random() < 0.5:
        header = bytearray(content[place : place + 512])
    else:
        header = bytearray(tarfile.TarInfo("a.txt").tobuf(tarfile.GNU_FORMAT))
    size = rng.choice(SIZES)
    if rng.random() < 0.7:
        header[124:136] = tarfile.itn(size, 12, tarfile.GNU_FORMAT) if size >= 0 else b"\xff" * 12
    if rng.random() < 0.7:
        header[156:157] = rng.choice(TYPES)
    if rng.random() < 0.2:
        header[: rng.randrange(100)] = rng.randbytes(rng.randrange(100))
    header = (header + bytes(512))[:512]
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    pax = b""
    if rng.random() < 0.3:
        row = rng.choice(
            (b"size=8589934592", b"size=-1", b"size=x", b"path=\xff", b"GNU.sparse.size=1", b"size=1e9", b"=")
        )
        pax = b"%d %s\n" % (len(row) + rng.choice((3, 4, 0, -5)), row)
        pax = pax.ljust(512, b"\0")
    repeats = rng.choice((1, 1, 1, 2000))
    end = content[place + 512 :] if rng.random() < 0.5 else content[place:]
    return content[:place] + bytes(header) * repeats + pax + end
