"""Prepares ImageNet-1k: a folder of images for each class, and the list of the classes with their names.

    python datasets/prepare/imagenet.py [--root DIR] [--downloads DIR]

The training archive holds an archive for each class. The validation archive holds images without classes, which are in
the development kit.
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from common import Archive, Folders, Missing, arguments, is_filled, run
from scipy.io import loadmat
from tqdm import tqdm

PLACE = "https://image-net.org/download-images (after a registration)"
FOLDER = "imagenet"
KIT = Archive("ILSVRC2012_devkit_t12.tar.gz", PLACE, "2.5 MB", FOLDER, (f"{FOLDER}/LOC_synset_mapping.txt",))
TRAIN = Archive("ILSVRC2012_img_train.tar", PLACE, "138 GB", FOLDER, (f"{FOLDER}/train",))
VAL = Archive("ILSVRC2012_img_val.tar", PLACE, "6.3 GB", FOLDER, (f"{FOLDER}/val",))


class Kit:
    """The development kit.

    Attributes:
        names: {WordNet id: its synonyms as a text}, of the classes in the order of the ids.
        val: the WordNet id of each validation image, in the order of their numbers.
    """

    def __init__(self, path: Path):
        with tarfile.open(path) as kit:
            folder = "ILSVRC2012_devkit_t12/data"
            synsets = loadmat(kit.extractfile(f"{folder}/meta.mat"), squeeze_me=True)["synsets"]
            truth = kit.extractfile(f"{folder}/ILSVRC2012_validation_ground_truth.txt").read().split()
        # Synsets with children are classes of classes.
        classes = {int(s["ILSVRC2012_ID"]): s for s in synsets if int(s["num_children"]) == 0}
        self.names = dict(sorted((str(s["WNID"]), str(s["words"])) for s in classes.values()))
        self.val = [str(classes[int(number)]["WNID"]) for number in truth]


def prepare(folders: Folders, options) -> str:
    found = {archive: folders.find(archive) for archive in (KIT, TRAIN, VAL)}
    absent = {archive: archive.absent(folders.root) for archive in found}
    # The kit is needed for the validation images, too.
    needed = [a for a in found if absent[a] or (a is KIT and absent[VAL])]
    missing = [
        f"{absent[a] or absent[VAL]}; expected {a.file} ({a.size}) in {folders.downloads}, from {a.place}"
        for a in needed
        if found[a] is None
    ]
    if missing:
        raise Missing("\n".join(missing))
    root = folders.root / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    kit = Kit(found[KIT]) if KIT in needed else None
    if TRAIN in needed:
        unpack_train(found[TRAIN], root / "train")
    if VAL in needed:
        unpack_val(found[VAL], root / "val", kit.val)
    if kit is not None:
        text = "".join(f"{folder} {names}\n" for folder, names in kit.names.items())
        (root / "LOC_synset_mapping.txt").write_text(text, encoding="utf-8")
    require_classes(root)
    return "ImageNet-1k is there; check it with: python datasets/check.py imagenet_train imagenet_val"


def require_classes(root: Path) -> None:
    """Check that each class of the list has images in both splits.

    Raises:
        Missing: one has none, for example because the images were unpacked by hand.
    """
    lines = (root / "LOC_synset_mapping.txt").read_text(encoding="utf-8").splitlines()
    places = [root / split / line.split()[0] for split in ("train", "val") for line in lines if line.strip()]
    bare = [place for place in places if not is_filled(place)]
    if bare:
        raise Missing(
            f"{len(bare):,} of {len(places):,} folders of classes have no images, such as {bare[0]}; remove "
            f"{bare[0].parent}, and it is unpacked anew"
        )


def unpack_train(path: Path, target: Path) -> None:
    """Unpack the archive of archives into ``target/<WordNet id>/*.JPEG``."""
    staging = _new(target)
    with tarfile.open(path) as outer:
        for member in tqdm(outer, desc=path.name, unit=" classes", disable=None):
            folder = staging / Path(member.name).stem
            folder.mkdir()
            with tarfile.open(fileobj=outer.extractfile(member)) as inner:
                for image in inner:
                    if image.isreg():
                        _copy(inner, image, folder / Path(image.name).name)
    staging.rename(target)


def unpack_val(path: Path, target: Path, classes: list[str]) -> None:
    """Unpack ``ILSVRC2012_val_00000001.JPEG`` and so on into ``target/<WordNet id>/``."""
    staging = _new(target)
    with tarfile.open(path) as archive:
        for image in tqdm(archive, desc=path.name, unit=" images", disable=None):
            if not image.isreg():
                continue
            name = Path(image.name).name
            number = int(Path(name).stem.rsplit("_", 1)[-1])
            if not 1 <= number <= len(classes):
                raise ValueError(f"{path} has {name}, but the development kit has the classes of {len(classes)} images")
            folder = staging / classes[number - 1]
            folder.mkdir(exist_ok=True)
            _copy(archive, image, folder / name)
    staging.rename(target)


def _new(target: Path) -> Path:
    staging = target.with_name(f".unpacking-{target.name}")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def _copy(archive: tarfile.TarFile, member: tarfile.TarInfo, place: Path) -> None:
    with open(place, "wb") as file:
        shutil.copyfileobj(archive.extractfile(member), file)


if __name__ == "__main__":
    run(arguments(__doc__.split("\n")[0]), prepare)
