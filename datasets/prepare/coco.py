"""Prepares COCO 2017: images, and annotations of instances and captions.

    python datasets/prepare/coco.py [--root DIR] [--downloads DIR]

The images of COCO 2014 are the same ones. The programs of the datasets that need them make links.
"""

from common import Archive, arguments, run, unpack_all

PLACE = "https://cocodataset.org/#download"
ANNOTATIONS = tuple(
    f"coco/annotations/{what}_{split}2017.json" for what in ("instances", "captions") for split in ("train", "val")
)
ARCHIVES = (
    Archive("train2017.zip", PLACE, "18 GB", "coco", ("coco/train2017",)),
    Archive("val2017.zip", PLACE, "780 MB", "coco", ("coco/val2017",)),
    Archive("annotations_trainval2017.zip", PLACE, "240 MB", "coco", ANNOTATIONS),
)


def prepare(folders, options) -> str:
    unpack_all(ARCHIVES, folders)
    return "COCO 2017 is there; check it with: python datasets/check.py coco_2017_train coco_2017_captions_train"


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
