"""Files of the public datasets: COCO, LVIS, Karpathy's splits, refer, Visual Genome, Flickr30k Entities, VQA, panoptic
segments, ADE20k and Kinetics. One file of a tree is damaged, and the datasets that need it are read."""

import json
import pickle
import random
import sys
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_coco, register_all_lvis
from mutations import damaged_bytes, edited
from running import Damaged

from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.data.datasets.builtin import register_all
from uniperceiver_v2.data.datasets.segments import read_segments

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))
import miniatures

sys.path.pop(0)

# {file: the datasets whose reading it is a part of}
READERS = {
    "coco/annotations/instances_train2017.json": ("coco_2017_train",),
    "coco/annotations/captions_train2017.json": ("coco_2017_captions_train",),
    "coco/annotations/dataset_coco.json": (
        "coco_2014_captions_karpathy_train",
        "coco_2014_retrieval_karpathy_test",
    ),
    "coco/annotations/panoptic_val2017.json": ("coco_panoptic_val",),
    "coco/panoptic_val2017/000000000139.png": ("coco_panoptic_val",),
    "lvis/lvis_v1_train.json": ("lvis_v1_train",),
    "flickr30k/dataset_flickr30k.json": ("flickr30k_retrieval_karpathy_test",),
    "flickr30k/entities/test.txt": ("flickr30k_entities_test",),
    "flickr30k/entities/Annotations/77.xml": ("flickr30k_entities_test",),
    "flickr30k/entities/Sentences/77.txt": ("flickr30k_entities_test",),
    "refer/refcoco/refs(unc).p": ("refcoco_unc_train", "refcoco_unc_testA"),
    "refer/refcoco/instances.json": ("refcoco_unc_train",),
    "visual_genome/image_data.json": ("visual_genome_regions_train", "visual_genome_captions_train"),
    "visual_genome/region_descriptions.json": ("visual_genome_regions_train", "visual_genome_captions_train"),
    "visual_genome/densecap_splits.json": ("visual_genome_region_captions_test",),
    "imagenet/LOC_synset_mapping.txt": ("imagenet_train",),
    "vqa/v2_OpenEnded_mscoco_train2014_questions.json": ("vqa_v2_train",),
    "vqa/v2_mscoco_train2014_annotations.json": ("vqa_v2_train",),
    "ADEChallengeData2016/objectInfo150.txt": ("ade20k_val",),
    "ADEChallengeData2016/annotations/validation/ADE_val_00000001.png": ("ade20k_val",),
    "kinetics400/annotations/train.csv": ("kinetics400_train",),
}


def write_tree(root: Path) -> None:
    """All files of ``READERS``, and the images that their reading looks for."""
    miniatures.write_coco(root, [1, 2])
    miniatures.write_coco_captions(root, [1, 2])
    miniatures.write_lvis(root, [1, 2])
    miniatures.write_karpathy_coco(root, {"train": [1], "test": [22]})
    miniatures.write_flickr30k(root, {"train": [7], "test": [9]})
    miniatures.write_imagenet(root, {"n02012849": "crane", "n01440764": "tench, Tinca tinca"}, splits=["train"])
    miniatures.write_visual_genome(root, [(101, 1, None), (103, None, 9)])
    miniatures.write_json(root / "visual_genome/densecap_splits.json", {"train": [101], "val": [], "test": [103]})
    miniatures.write_refer(root, {"train": [31], "testA": [33]})
    miniatures.write_flickr30k_entities(root, "test", 77)
    miniatures.write_vqa(root)
    miniatures.write_panoptic(root, "val2017")
    miniatures.write_ade20k(root, "validation")
    miniatures.write_kinetics(root)


class Kind:
    together = 1  # what is read once stays in memory

    def __init__(self, folder: Path):
        self._root = folder / "tree"
        write_tree(self._root)
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.data = {}
        for register in (register_all_coco, register_all_lvis, register_all):
            register(str(self._root))
        self._good = {name: (self._root / name).read_bytes() for name in READERS}

    def damaged(self, rng: random.Random) -> Damaged:
        name = rng.choice(list(READERS))
        content = self._good[name]
        if rng.random() < 0.7 and name.endswith(".json"):
            content = json.dumps(edited(rng, json.loads(content))).encode("utf-8", "surrogatepass")
        elif rng.random() < 0.7 and name.endswith(".p"):
            content = pickle.dumps(edited(rng, pickle.loads(content)), protocol=rng.choice((0, 2, 4)))
        else:
            content = damaged_bytes(rng, content)
        return Damaged(name.replace("/", "!"), content)

    def read(self, path: Path, only_bytes: bool) -> None:
        own = self._place(path)
        try:
            own.unlink()
            own.hardlink_to(path)
            for dataset in READERS[self._name(path)]:
                records: Any = load_dataset(dataset)
                if own.suffix == ".png":
                    read_segments(records[0])
        finally:
            own.unlink(missing_ok=True)
            own.write_bytes(self._good[self._name(path)])

    def _name(self, path: Path) -> str:
        return path.name.replace("!", "/")

    def _place(self, path: Path) -> Path:
        return self._root / self._name(path)

    def is_named(self, path: Path, message: str) -> bool:
        place = self._place(path)
        # The loaders of training and tests add the command to what is wrong with an image that they read.
        return str(place) in message and ("python datasets/prepare/" in message or place.suffix == ".png")
