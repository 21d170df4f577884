"""Prepares ADE20k's scene parsing with 150 classes.

python datasets/prepare/ade20k.py [--root DIR] [--downloads DIR]
"""

from common import Archive, Folders, arguments, run, unpack_all

PLACE = "http://sceneparsing.csail.mit.edu"
FOLDER = "ADEChallengeData2016"
FOLDERS = tuple(
    f"{FOLDER}/{kind}/{split}" for kind in ("images", "annotations") for split in ("training", "validation")
)
ARCHIVES = (Archive(f"{FOLDER}.zip", PLACE, "923 MB", "", (f"{FOLDER}/objectInfo150.txt", *FOLDERS)),)


def prepare(folders: Folders, options) -> str:
    unpack_all(ARCHIVES, folders)
    return "ADE20k is there; check it with: python datasets/check.py ade20k_train ade20k_val"


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
