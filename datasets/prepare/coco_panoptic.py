"""Prepares COCO 2017's panoptic annotations, for the images of COCO 2017.

python datasets/prepare/coco_panoptic.py [--root DIR] [--downloads DIR]
"""

import coco
from common import Archive, Folders, arguments, run, unpack_all

PLACE = "https://cocodataset.org/#download"
FOLDER = "coco"
FILE = "panoptic_annotations_trainval2017.zip"
SPLITS = ("train", "val")
JSONS = tuple(f"{FOLDER}/annotations/panoptic_{split}2017.json" for split in SPLITS)
ANNOTATIONS = Archive(FILE, PLACE, "821 MB", FOLDER, JSONS)
# The archive above has an archive of PNGs for each split.
PNGS = tuple(
    Archive(f"annotations/panoptic_{split}2017.zip", FILE, size, FOLDER, (f"{FOLDER}/panoptic_{split}2017",))
    for split, size in zip(SPLITS, ("780 MB", "34 MB"))
)


def prepare(folders: Folders, options) -> str:
    inner = tuple(f"{FOLDER}/{archive.file}" for archive in PNGS if archive.absent(folders.root))
    outer = ANNOTATIONS if ANNOTATIONS.absent(folders.root) else ANNOTATIONS._replace(makes=inner)
    unpack_all((outer, *PNGS, *coco.ARCHIVES[:2]), folders)
    return "COCO's panoptic annotations are there; check them with: python datasets/check.py coco_panoptic_val"


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
