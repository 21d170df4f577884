"""Prepares image-text pairs of the web: a list of addresses without the photographs of test sets, to be downloaded.

    python datasets/prepare/web_pairs.py cc3m|cc12m|sbu|yfcc [--root DIR] [--downloads DIR]

It writes ``<name>/pairs.tsv`` and prints the command of img2dataset that makes shards of it. Shards have no ids of
photographs, and so this is the place where those of the test sets are left out: Flickr's addresses have the
photograph's id, and COCO's annotations have Flickr's address of each image.
"""

from __future__ import annotations

import argparse
import csv
import html
import json
import os
import re
import sqlite3
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from common import Archive, Folders, Missing, arguments, run, unpack_all
from tqdm import tqdm

Pair = tuple[str, str]  # an address and its caption

# The file that is read, the one that is published, where, and how large it is. Of yfcc: the list of the subset that has
# English texts, and the metadata of all photographs.
SOURCES = {
    "cc3m": (
        (
            "Train_GCC-training.tsv",
            "Train_GCC-training.tsv",
            "https://ai.google.com/research/ConceptualCaptions",
            "0.5 GB",
        ),
    ),
    "cc12m": (("cc12m.tsv", "cc12m.tsv", "https://github.com/google-research-datasets/conceptual-12m", "2.5 GB"),),
    "sbu": (
        ("sbu-captions-all.json", "sbu-captions-all.tar.gz", "https://www.cs.rice.edu/~vo9/sbucaptions/", "0.3 GB"),
    ),
    "yfcc": (
        (
            *("yfcc100m_subset_data.tsv", "yfcc100m_subset_data.tsv.bz2"),
            *("https://github.com/openai/CLIP/blob/main/data/yfcc100m.md", "0.8 GB"),
        ),
        (
            *("yfcc100m_dataset.sql", "yfcc100m_dataset.sql"),
            *("https://multimediacommons.wordpress.com/ (after a registration)", "65 GB"),
        ),
    ),
}
DOWNLOAD = (
    "img2dataset --url_list {list} --input_format tsv --url_col url --caption_col caption --output_format webdataset "
    "--output_folder {folder} --image_size 512 --resize_mode keep_ratio_largest --resize_only_if_bigger True"
)


def prepare(folders: Folders, options: argparse.Namespace) -> str:
    archives = [
        Archive(published, *where, options.name, (f"{options.name}/{file}",), file)
        for file, published, *where in SOURCES[options.name]
    ]
    files = [archive._replace(file=archive.only) for archive in archives]  # which may be unpacked already
    unpack_all([archive for archive, file in zip(archives, files) if not folders.find(file)], folders)
    found = [folders.find(file) for file in files]
    held_out, unknown = held_out_photographs(folders.root)
    target = folders.root / options.name / "pairs.tsv"
    kept, left_out = write_pairs(READERS[options.name](*found), held_out, target)
    folder = folders.root / options.name
    return "\n".join(
        [
            f"{target}: {kept:,} pairs; {left_out:,} are left out, as they show photographs of test sets",
            *(
                [f"warning: these test sets are not there, so their images may be among them: {unknown}"]
                * bool(unknown)
            ),
            f"make shards with: {DOWNLOAD.format(list=target, folder=folder)}",
            f"check them with: python datasets/check.py {options.name}_train",
        ]
    )


def write_pairs(pairs: Iterator[Pair], held_out: frozenset[str], target: Path) -> tuple[int, int]:
    """Write the pairs as a table with a header, whole or not at all. Returns how many are kept and left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    kept = left_out = 0
    with open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("url", "caption"))
        for url, caption in tqdm(pairs, desc=target.parent.name, unit=" pairs", disable=None):
            if flickr_photo(url) in held_out:
                left_out += 1
                continue
            writer.writerow((url, " ".join(caption.split())))
            kept += 1
    os.replace(partial, target)
    return kept, left_out


# "http://farm4.staticflickr.com/3153/2970773875_164f0c0b83_z.jpg", "http://static.flickr.com/2723/4385058960_b0f291553e.jpg"
_FLICKR = re.compile(r"^https?://[\w.]*flickr\.com/(?:\d+/)?\d+/(\d+)_[0-9a-f]+(?:_\w)?\.\w+")


def flickr_photo(url: str) -> str | None:
    """The id of a photograph at Flickr by an address of its image file. None for any other address."""
    found = _FLICKR.match(url)
    return found[1] if found else None


def held_out_photographs(root: Path) -> tuple[frozenset[str], str]:
    """The ids at Flickr of the photographs of test sets, and the names of test sets that are not there.

    Raises:
        Missing: images of COCO are held out, but no annotations have their addresses.
        ValueError: a test set is damaged.
    """
    os.environ["DETECTRON2_DATASETS"] = str(root)  # read by the next import
    from uniperceiver_v2.data.datasets.held_out import STANDARD, photos_in
    from uniperceiver_v2.errors import UserError

    try:
        photos = {name: photos_in(name) for name in STANDARD}
    except UserError as error:
        raise ValueError(str(error)) from error
    ids = [photo.split(":") for its in photos.values() for photo in its or ()]
    flickr = {number for site, number in ids if site == "flickr"}
    if coco := {int(number) for site, number in ids if site == "coco"}:
        files = [f for what in ("captions", "instances") for f in root.glob(f"coco/annotations/{what}_*20*.json")]
        address = {image["id"]: image["flickr_url"] for f in files for image in json.loads(f.read_text())["images"]}
        if unknown := coco - address.keys():
            raise Missing(
                f"{len(unknown):,} images of test sets have no address at Flickr; expected those of train and val in "
                f"{root / 'coco/annotations'}, which `python datasets/prepare/coco.py` unpacks"
            )
        flickr |= {flickr_photo(address[i]) or "" for i in coco}
    return frozenset(flickr), ", ".join(name for name, its in photos.items() if its is None)


def _read_cc3m(path: Path) -> Iterator[Pair]:
    for caption, url in _rows(path, 2):
        yield url, caption


def _read_cc12m(path: Path) -> Iterator[Pair]:
    yield from _rows(path, 2)


def _read_sbu(path: Path) -> Iterator[Pair]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return zip(content["image_urls"], content["captions"], strict=True)


def _read_yfcc(subset: Path, metadata: Path) -> Iterator[Pair]:
    """The photographs of the subset with their titles and descriptions, which are encoded as addresses and as HTML."""
    database = sqlite3.connect(f"file:{urllib.parse.quote(str(metadata))}?mode=ro", uri=True)
    query = "SELECT title, description, downloadurl FROM yfcc100m_dataset WHERE photoid = ?"
    for _, photo, _ in _rows(subset, 3):
        for *texts, url in database.execute(query, (int(photo),)):
            plain = [html.unescape(re.sub(r"<[^>]*>", " ", urllib.parse.unquote_plus(text or ""))) for text in texts]
            if caption := ". ".join(text.strip().rstrip(".") for text in plain if text.strip()):
                yield url, caption


def _rows(path: Path, columns: int) -> Iterator[tuple[str, ...]]:
    with open(path, encoding="utf-8", newline="\n") as file:  # a caption may have a "\r"
        for number, line in enumerate(file, 1):
            row = tuple(line.rstrip("\r\n").split("\t"))
            if len(row) != columns:
                raise ValueError(f"{path}: line {number} has {len(row)} columns, not {columns}")
            yield row


READERS = {"cc3m": _read_cc3m, "cc12m": _read_cc12m, "sbu": _read_sbu, "yfcc": _read_yfcc}

if __name__ == "__main__":
    parser = arguments(__doc__.split("\n")[0])
    parser.add_argument("name", choices=SOURCES)
    run(parser, prepare)
