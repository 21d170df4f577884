"""Files of the public datasets: COCO, LVIS, Karpathy's splits, refer, Visual Genome, Flickr30k Entities, VQA, panoptic
segments, ADE20k and Kinetics. One file of a tree is damaged, and the datasets that need it are read."""

import json
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_coco, register_all_lvis
from mutations import damaged_bytes, edited
from PIL import Image
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
XML = """<annotation><filename>77.jpg</filename><size><width>60</width><height>40</height><depth>3</depth></size>
<object><name>1</name><name>2</name><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>21</xmax><ymax>33</ymax></bndbox></object>
<object><name>5</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"""
SENTENCES = "[/EN#1/people Two young guys] with [/EN#2/bodyparts/people hair] see [/EN#0/notvisual each other] .\n"


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
    entities = root / "flickr30k/entities"
    for name, text in (("test.txt", "77\n"), ("Annotations/77.xml", XML), ("Sentences/77.txt", SENTENCES)):
        write_text(entities / name, text)
    write_questions(root)
    write_segments(root)
    clips = root / "kinetics400"
    write_text(clips / "annotations/train.csv", "label,youtube_id,time_start,time_end,split\njuggling,a,4,14,train\n")
    miniatures.write_image(clips / "train/a_000004_000014/0.png")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_questions(root: Path) -> None:
    ids = {"image_id": 1, "question_id": 1001}
    answers = [{"answer": "two", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
    what = {"question_type": "how many", "answer_type": "number", "multiple_choice_answer": "two"}
    files = {
        "v2_OpenEnded_mscoco_train2014_questions": {"questions": [{**ids, "question": "How many boats?"}]},
        "v2_mscoco_train2014_annotations": {"annotations": [{**ids, **what, "answers": answers}]},
    }
    for name, content in files.items():
        miniatures.write_json(root / "vqa" / f"{name}.json", content)


def write_segments(root: Path) -> None:
    colours, classes = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.uint8)
    colours[5:25, 5:25, 0], classes[:20] = 9, 2
    ade = root / "ADEChallengeData2016"
    for path, pixels in (
        (root / "coco/panoptic_val2017/000000000139.png", colours),
        (root / "coco/val2017/000000000139.jpg", colours),
        (ade / "annotations/validation/ADE_val_00000001.png", classes),
        (ade / "images/validation/ADE_val_00000001.jpg", colours),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    names = "Idx\tRatio\tTrain\tVal\tStuff\tName\n1\t0.1\t9\t1\t1\twall\n2\t0.1\t6\t6\t1\tbuilding, edifice\n"
    (ade / "objectInfo150.txt").write_text(names)
    image = {"id": 139, "file_name": "000000000139.jpg", "height": 40, "width": 60}
    segment = {"id": 9, "category_id": 1, "area": 400, "bbox": [5, 5, 20, 20], "iscrowd": 0}
    annotation = {"image_id": 139, "file_name": "000000000139.png", "segments_info": [segment]}
    categories = [{"id": 1, "name": "person", "supercategory": "person", "isthing": 1}]
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    miniatures.write_json(root / "coco/annotations/panoptic_val2017.json", content)


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
            own.write_bytes(path.read_bytes())
            for dataset in READERS[self._name(path)]:
                records: Any = load_dataset(dataset)
                if own.suffix == ".png":
                    read_segments(records[0])
        finally:
            own.write_bytes(self._good[self._name(path)])

    def _name(self, path: Path) -> str:
        return path.name.replace("!", "/")

    def _place(self, path: Path) -> Path:
        return self._root / self._name(path)

    def is_named(self, path: Path, message: str) -> bool:
        return str(self._place(path)) in message
