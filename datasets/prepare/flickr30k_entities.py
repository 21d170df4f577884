"""Prepares Flickr30k Entities: phrases with boxes for the images of Flickr30k.

python datasets/prepare/flickr30k_entities.py [--root DIR] [--downloads DIR]
"""

import karpathy
from common import Archive, arguments, run, unpack_all

PLACE = "https://github.com/BryanPlummer/flickr30k_entities"
FOLDER = "flickr30k/entities"
SPLITS = ("train", "val", "test")
# GitHub's archive of the repository has the lists of the splits, and the annotations as an archive in it.
REPOSITORY = "flickr30k_entities-master.zip"
ARCHIVES = (
    *(Archive(REPOSITORY, PLACE, "30 MB", FOLDER, (f"{FOLDER}/{split}.txt",), f"{split}.txt") for split in SPLITS),
    Archive(REPOSITORY, PLACE, "30 MB", FOLDER, (f"{FOLDER}/annotations.zip",), "annotations.zip"),
    Archive("annotations.zip", PLACE, "30 MB", FOLDER, (f"{FOLDER}/Sentences", f"{FOLDER}/Annotations")),
)


def prepare(folders, options) -> str:
    absent = ARCHIVES[-1].absent(folders.root)
    needed = [archive for archive in ARCHIVES if absent or archive.only != "annotations.zip"]
    unpack_all((*needed, *karpathy.ARCHIVES["flickr30k"][1:]), folders)
    return "Flickr30k Entities is there; check it with: python datasets/check.py flickr30k_entities_test"


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
