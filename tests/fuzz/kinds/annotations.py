"""Annotations in every format: objects, captions, phrases, tables, texts. They are trained on and evaluated."""

import json
import os
import random
from pathlib import Path

import numpy as np
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from evaluated import PREDICTIONS, evaluate
from mutations import damaged_bytes, damaged_json
from PIL import Image
from pycocotools import mask as mask_api
from running import Damaged

from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.data import load_dataset, register_custom_datasets
from uniperceiver_v2.data.mappers.images import DetectionMapper
from uniperceiver_v2.errors import UnreadableImage
from uniperceiver_v2.evaluation import build_evaluator

WIDTH, HEIGHT = 48, 32
VOC = """<annotation><filename>{name}</filename><size><width>48</width><height>32</height><depth>3</depth></size>
<object><name>boat</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>21</ymax>
</bndbox></object></annotation>"""


def objects(lvis: bool = False) -> dict:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[3:9, 4:20] = 1
    encoded = mask_api.encode(mask)
    shapes = (
        [[4.0, 3, 20, 3, 20, 9, 4, 9]],
        {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()},
        {"size": [HEIGHT, WIDTH], "counts": [10, HEIGHT * WIDTH - 10]},
    )
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)],
        "categories": [{"id": 3, "name": "boat"}, {"id": 7, "name": "buoy"}],
        "annotations": [
            {
                **{"id": 10 + i, "image_id": 1 + i % 2, "category_id": (3, 7)[i % 2], "iscrowd": int(i == 2)},
                **{"bbox": [4.0, 3, 16, 6], "area": 96.0, "segmentation": shape},
            }
            for i, shape in enumerate(shapes)
        ],
    }
    if lvis:
        for category in content["categories"]:
            category["frequency"] = "f"
        for image in content["images"]:
            image.update(neg_category_ids=[7], not_exhaustive_category_ids=[])
    return content


class Kind:
    together = 10

    def __init__(self, folder: Path):
        self._images = folder / "images"
        self._images.mkdir()
        (folder / "labels").mkdir()
        for i in (1, 2):
            (folder / "labels" / f"{i}.txt").write_text(f"{i - 1} 0.5 0.5 0.25 0.5\n")
            Image.effect_noise((WIDTH, HEIGHT), 50).convert("RGB").save(self._images / f"{i}.png")
        pictures = objects()["images"]
        texts = [{"id": i, "image_id": 1 + i % 2, "caption": f"a boat and {i} buoys"} for i in range(4)]
        phrases = [
            {"id": i, "image_id": 1 + i % 2, "phrase": "the boat", "bboxes": [[1.0, 2, 10, 12]]} for i in range(4)
        ]
        table = b"image,class\n1.png,boat\n2.png,buoy\n"
        images = str(self._images)
        self._jsons = {
            "coco.json": ({"FORMAT": "coco", "JSON": "coco.json", "IMAGES": images}, objects()),
            "detectron2.json": ({}, objects()),
            "lvis.json": ({"FORMAT": "lvis", "JSON": "lvis.json", "IMAGES": images}, objects(lvis=True)),
            "captions.json": (
                {"FORMAT": "coco_captions", "JSON": "captions.json", "IMAGES": images},
                {"images": pictures, "annotations": texts},
            ),
            "phrases.json": (
                {"FORMAT": "phrases", "JSON": "phrases.json", "IMAGES": images},
                {"images": pictures, "annotations": phrases},
            ),
        }
        self._others = {
            "class.csv": ({"FORMAT": "class_csv", "FILE": "class.csv", "IMAGES": images}, table),
            "caption.csv": (
                {"FORMAT": "caption_csv", "FILE": "caption.csv", "IMAGES": images},
                b'image;caption\n1.png;"a boat"\n1.png;a buoy\n2.png;nothing\n',
            ),
            "text.csv": ({"FORMAT": "text_csv", "FILE": "text.csv"}, b"text\na boat\na buoy\n"),
            "texts.txt": ({"FORMAT": "text_lines", "FILE": "texts.txt"}, "a boat\n\nein Bötchen\n".encode()),
            "data.yaml": ({"FORMAT": "yolo", "YAML": "data.yaml"}, f"names: [boat, buoy]\ntrain: {images}\n".encode()),
            "1.xml": ({"FORMAT": "voc", "ANNOTATIONS": ".", "IMAGES": images}, VOC.format(name="1.png").encode()),
        }
        cfg = get_cfg()
        add_uniperceiver_v2_config(cfg)
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.MODEL.MASK_ON = (32,), 64, True
        self._cfg = cfg
        for path, content in [(n, json.dumps(c).encode()) for n, (_, c) in self._jsons.items()]:
            (folder / path).write_bytes(content)

    def damaged(self, rng: random.Random) -> Damaged:
        if rng.random() < 0.75:
            name = rng.choice(list(self._jsons))
            return Damaged(name, damaged_json(rng, self._jsons[name][1]))
        name = rng.choice(list(self._others))
        return Damaged(name, damaged_bytes(rng, self._others[name][1]))

    def read(self, path: Path, only_bytes: bool) -> None:
        node = {**self._jsons, **self._others}[path.name][0]
        name = f"fuzzed_{len(DatasetCatalog.list())}"  # without the path, which messages have to give
        if node:
            register_custom_datasets({name: {**node, **_placed(node, path)}})
        else:
            register_coco_instances(name, {}, str(path), str(self._images))
        records = load_dataset(name)
        metadata = MetadataCatalog.get(name)
        if metadata.get("evaluator_type") in ("coco", "lvis"):
            candidates = [str(name) for name in metadata.thing_classes]
            mapper = DetectionMapper(self._cfg, "scenes", candidates, is_train=True)
            for record in records[:4]:
                if all(a.get("segmentation") for a in record["annotations"] if not a.get("iscrowd")):
                    try:
                        mapper(record)
                    except UnreadableImage as error:  # the picture is left out, and training goes on
                        # As an absolute path in UTF-8, whose middle is left out if it is long.
                        path_in_utf8 = os.path.abspath(record["file_name"]).encode("utf-8", "backslashreplace").decode()
                        assert path_in_utf8[:500] in str(error)
        evaluator = build_evaluator(self._cfg, name, str(path.parent / "out"))
        if metadata.evaluator_type in PREDICTIONS:
            classes = len(metadata.get("thing_classes") or ())
            evaluate(evaluator, metadata.evaluator_type, records[:4], classes)

    def is_named(self, path: Path, message: str) -> bool:
        """Of a dataset in several files, whichever is missing or wrong."""
        several = path.suffix in (".xml", ".yaml")
        return str(path) in message or (several and any(str(p) in message for p in (path.parent, self._images)))


def _placed(node: dict, path: Path) -> dict:
    return {key: str(path.parent if value == "." else path) for key, value in node.items() if value in (path.name, ".")}
