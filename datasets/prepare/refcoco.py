"""Prepares RefCOCO, RefCOCO+ and RefCOCOg, whose images are COCO's of 2014.

    python datasets/prepare/refcoco.py [--root DIR] [--downloads DIR]

The images may also be those of COCO 2017, to which it makes links.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from common import Archive, Folders, arguments, link_images_of_2014, run, unpack_all

PLACE = "https://github.com/lichengunc/refer"
DIVISIONS = {"refcoco": ("unc", "google"), "refcoco+": ("unc",), "refcocog": ("umd", "google")}
ARCHIVES = tuple(
    Archive(
        *(f"{name}.zip", PLACE, "50 MB", "refer"),
        (f"refer/{name}/instances.json", *(f"refer/{name}/refs({division}).p" for division in divisions)),
    )
    for name, divisions in DIVISIONS.items()
)


def prepare(folders: Folders, options) -> str:
    unpack_all(ARCHIVES, folders)
    linked = link_images_of_2014(folders.root, sorted({*_images(folders.root)}))
    return f"RefCOCO, RefCOCO+ and RefCOCOg are there; {linked}; check with: python datasets/check.py refcoco_unc_train"


def _images(root: Path) -> Iterator[tuple[str, str]]:
    for name in DIVISIONS:
        content = json.loads((root / "refer" / name / "instances.json").read_text(encoding="utf-8"))
        yield from (("train2014", image["file_name"]) for image in content["images"])


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
