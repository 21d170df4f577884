"""Prepares LVIS v1: annotations for the images of COCO 2017.

    python datasets/prepare/lvis_v1.py [--root DIR] [--downloads DIR]

It is not called lvis.py, because that would hide the package of this name from the programs beside it.
"""

import coco
from common import Archive, arguments, run, unpack_all

PLACE = "https://www.lvisdataset.org/dataset"
ARCHIVES = (
    Archive("lvis_v1_train.json.zip", PLACE, "330 MB", "lvis", ("lvis/lvis_v1_train.json",)),
    Archive("lvis_v1_val.json.zip", PLACE, "64 MB", "lvis", ("lvis/lvis_v1_val.json",)),
)


def prepare(folders, options) -> str:
    unpack_all((*ARCHIVES, *coco.ARCHIVES[:2]), folders)
    return "LVIS v1 is there; check it with: python datasets/check.py lvis_v1_train lvis_v1_val"


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
