"""Prepares VQA v2, whose images are COCO's of 2014.

    python datasets/prepare/vqa.py [--root DIR] [--downloads DIR]

The images may also be those of COCO 2017, to which it makes links.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from common import Archive, Folders, arguments, link_images_of_2014, run, unpack_all

PLACE = "https://visualqa.org/download.html"
FOLDER = "vqa"
ARCHIVES = tuple(
    Archive(archive, PLACE, size, FOLDER, (f"{FOLDER}/{made}",))
    for split, questions, answers in (("train", "7 MB", "21 MB"), ("val", "4 MB", "10 MB"))
    for archive, size, made in (
        (f"v2_Questions_{split.title()}_mscoco.zip", questions, f"v2_OpenEnded_mscoco_{split}2014_questions.json"),
        (f"v2_Annotations_{split.title()}_mscoco.zip", answers, f"v2_mscoco_{split}2014_annotations.json"),
    )
)


def prepare(folders: Folders, options) -> str:
    unpack_all(ARCHIVES, folders)
    linked = link_images_of_2014(folders.root, sorted({*_images(folders.root / FOLDER)}))
    return f"VQA v2 is there; {linked}; check it with: python datasets/check.py vqa_v2_train"


def _images(folder: Path) -> Iterator[tuple[str, str]]:
    for split in ("train2014", "val2014"):
        content = json.loads((folder / f"v2_OpenEnded_mscoco_{split}_questions.json").read_text(encoding="utf-8"))
        yield from ((split, f"COCO_{split}_{question['image_id']:012d}.jpg") for question in content["questions"])


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
