"""Prepares COCO 2017's panoptic annotations, for the images that coco.py unpacks.

python datasets/prepare/coco_panoptic.py [--root DIR] [--downloads DIR]
"""

from common import Archive, Folders, arguments, run, unpack_all

PLACE = "https://cocodataset.org/#download"
FOLDER = "coco"
FILE = "panoptic_annotations_trainval2017.zip"
ANNOTATIONS = (Archive(FILE, PLACE, "821 MB", FOLDER, f"{FOLDER}/annotations/panoptic_train2017.json"),)
# The archive above has an archive of PNGs for each split.
PNGS = tuple(
    Archive(f"annotations/panoptic_{split}2017.zip", FILE, size, FOLDER, f"{FOLDER}/panoptic_{split}2017")
    for split, size in (("train", "780 MB"), ("val", "34 MB"))
)


def prepare(folders: Folders, options) -> str:
    unpack_all(ANNOTATIONS, folders)
    unpack_all(PNGS, folders)
    return "COCO's panoptic annotations are there; check them with: python datasets/check.py coco_panoptic_val"


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
