"""Miniatures of all datasets of the joint training and of its test sets, in one tree."""

from pathlib import Path

from . import miniatures
from .datasets.test_shards import pairs_of, write_shard


def write_all(root: Path) -> None:
    """The trees of all datasets that ``configs/joint`` and ``configs/lvis`` name. No id of a test set is trained on."""
    write_coco_2017(root)
    miniatures.write_lvis(root, [1, 2, 3, 6])
    miniatures.write_lvis(root, [7, 8], "val")
    miniatures.write_karpathy_coco(root, {"train": [1, 2, 3], "restval": [4, 24], "val": [21], "test": [22, 23]})
    miniatures.write_flickr30k(root, {"train": [7], "val": [8], "test": [9, 10]})
    miniatures.write_imagenet(root, {"n02012849": "crane", "n01440764": "tench, Tinca tinca"}, images=3)
    miniatures.write_visual_genome(root, [(101, 1, None), (102, 22, None), (103, None, 9), (104, None, None)])
    for folder in ("refcoco", "refcoco+"):
        miniatures.write_refer(root, {"train": [31], "val": [32], "testA": [33, 34], "testB": [35]}, folder)
    miniatures.write_refer(root, {"train": [31], "val": [32], "test": [33]}, "refcocog", "umd")
    for name in ("cc3m", "cc12m", "sbu", "yfcc"):
        (root / name).mkdir()
        write_shard(root / name / "00000.tar", pairs_of(0))
    for name in ("bookcorpus", "wikipedia"):
        (root / name).mkdir()
        (root / name / "00000.txt").write_text("".join(f"a text with the number {n}\n" for n in range(9)))


def write_coco_2017(root: Path) -> None:
    """COCO alone, as Detectron2 expects it. Karpathy's splits test on some of its training images."""
    for ids, split in (([1, 2, 3, 21, 22], "train2017"), ([4, 5], "val2017")):
        miniatures.write_coco(root, ids, split)
        miniatures.write_coco_captions(root, ids, split)
