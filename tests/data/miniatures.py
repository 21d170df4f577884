"""Miniatures of the public datasets, with generated ids, in the exact formats and trees of the real ones."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_coco, register_all_lvis
from PIL import Image

from uniperceiver_v2.data.datasets.builtin import register_all

WIDTH, HEIGHT = 64, 48
OUTLINE = [[2.0, 2.0, 22.0, 2.0, 22.0, 12.0, 2.0, 12.0]]
BOX = [2.0, 2.0, 20.0, 10.0]


def register_only(root: Path, monkeypatch) -> None:
    """Register Detectron2's and our datasets below ``root``, and no others until the end of the test."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})
    register_all_coco(str(root))
    register_all_lvis(str(root))
    register_all(str(root))


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_image(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(path)
    return path


def coco_name(image_id: int, split: str) -> str:
    """Of 2014 with the split before the id, of 2017 the id alone."""
    return f"{image_id:012d}.jpg" if split.endswith("2017") else f"COCO_{split}_{image_id:012d}.jpg"


def write_coco(root: Path, ids: Sequence[int], split: str = "train2017") -> Path:
    """``coco/annotations/instances_<split>.json`` and its images, with one person in each."""
    images = [
        {
            **{"id": i, "file_name": coco_name(i, split), "width": WIDTH, "height": HEIGHT, "license": 1},
            "coco_url": f"http://images.cocodataset.org/{split}/{coco_name(i, split)}",
            "flickr_url": f"http://farm4.staticflickr.com/3153/{photo_of(i)}_cbb439a6c2_z.jpg",
        }
        for i in ids
    ]
    for i in ids:
        write_image(root / "coco" / split / coco_name(i, split), i)
    annotation = {"category_id": 1, "bbox": BOX, "area": 200.0, "segmentation": OUTLINE, "iscrowd": 0}
    # Of every category one, as training needs an image of each.
    categories = coco_categories()
    annotations = [{**annotation, "id": 10 + n, "image_id": i} for n, i in enumerate(ids)]
    annotations += [
        {**annotation, "id": 10**6 + c["id"], "image_id": ids[0], "category_id": c["id"]} for c in categories
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    return write_json(root / "coco/annotations" / f"instances_{split}.json", content)


def write_coco_captions(root: Path, ids: Sequence[int], split: str = "train2017") -> Path:
    """``coco/annotations/captions_<split>.json`` of the images that :func:`write_coco` writes, five captions each."""
    images = [{"id": i, "file_name": coco_name(i, split), "width": WIDTH, "height": HEIGHT, "license": 1} for i in ids]
    pairs = [(i, number) for i in ids for number in range(5)]
    annotations = [
        {"id": n, "image_id": i, "caption": f"A red boat number {number}."} for n, (i, number) in enumerate(pairs, 1)
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    return write_json(root / "coco/annotations" / f"captions_{split}.json", content)


def coco_categories() -> list[dict]:
    from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

    meta = _get_builtin_metadata("coco")
    ids = sorted(meta["thing_dataset_id_to_contiguous_id"])
    return [{"id": i, "name": name, "supercategory": "thing"} for i, name in zip(ids, meta["thing_classes"])]


def photo_of(coco_id: int) -> int:
    """The Flickr photo that a generated COCO image is."""
    return 8_000_000_000 + coco_id


LVIS_NAMES = ("aerosol_can", "bow_(decorative_ribbons)", "zebra")


def write_lvis(root: Path, ids: Sequence[int], split: str = "train", counts: Sequence[int] | None = None) -> Path:
    """``lvis/lvis_v1_<split>.json``, of COCO's train2017. Category c is in the first ``counts[c]`` images."""
    counts = counts or [len(ids)] * len(LVIS_NAMES)
    images = [
        {
            **{"id": i, "width": WIDTH, "height": HEIGHT, "license": 1},
            "coco_url": f"http://images.cocodataset.org/train2017/{i:012d}.jpg",
            "flickr_url": f"http://farm4.staticflickr.com/3153/{photo_of(i)}_cbb439a6c2_z.jpg",
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
        }
        for i in ids
    ]
    for i in ids:
        write_image(root / "coco/train2017" / f"{i:012d}.jpg", i)
    pairs = [(i, c) for c, count in enumerate(counts, 1) for i in ids[:count]]
    annotations = [
        {"id": n, "image_id": i, "category_id": c, "bbox": BOX, "area": 200.0, "segmentation": OUTLINE}
        for n, (i, c) in enumerate(pairs, 1)
    ]
    categories = [
        {
            **{"id": c, "name": name, "synonyms": [name], "synset": f"{name}.n.01", "def": "a thing"},
            **{"frequency": "f", "image_count": count, "instance_count": count},
        }
        for c, (name, count) in enumerate(zip(LVIS_NAMES, counts), 1)
    ]
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
    return write_json(root / "lvis" / f"lvis_v1_{split}.json", content)


def write_karpathy_coco(root: Path, splits: dict[str, Sequence[int]]) -> Path:
    """``coco/annotations/dataset_coco.json`` and its images. ``splits`` has the COCO ids of each split."""
    images = []
    for split, ids in splits.items():
        folder = "train2014" if split == "train" else "val2014"
        for i in ids:
            write_image(root / "coco" / folder / coco_name(i, folder), i)
            images.append(
                {
                    **{"filepath": folder, "filename": coco_name(i, folder), "cocoid": i},
                    **_karpathy_image(len(images), split),
                }
            )
    return write_json(root / "coco/annotations/dataset_coco.json", {"images": images, "dataset": "coco"})


def write_flickr30k(root: Path, splits: dict[str, Sequence[int]]) -> Path:
    """``flickr30k/dataset_flickr30k.json`` and its images. ``splits`` has the Flickr ids of each split."""
    images = []
    for split, ids in splits.items():
        for i in ids:
            write_image(root / "flickr30k/flickr30k-images" / f"{i}.jpg", i)
            images.append({"filename": f"{i}.jpg", **_karpathy_image(len(images), split)})
    return write_json(root / "flickr30k/dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})


def _karpathy_image(imgid: int, split: str) -> dict:
    ids = [5 * imgid + n for n in range(5)]
    texts = [f"A red boat number {n}." for n in ids]
    sentences = [
        {"tokens": text.lower().strip(".").split(), "raw": text, "imgid": imgid, "sentid": n}
        for text, n in zip(texts, ids)
    ]
    return {"imgid": imgid, "sentids": ids, "sentences": sentences, "split": split}


def write_refer(root: Path, splits: dict[str, Sequence[int]], folder: str = "refcoco", by: str = "unc") -> Path:
    """``refer/<folder>/refs(<by>).p`` and its ``instances.json``, of COCO's train2014."""
    ids = [i for chosen in splits.values() for i in chosen]
    instances = json.loads(write_coco(root, ids, "train2014").read_text())
    (root / "coco/annotations/instances_train2014.json").unlink()
    write_json(root / "refer" / folder / "instances.json", instances)
    annotation_of = {a["image_id"]: a["id"] for a in instances["annotations"] if a["id"] < 10**6}
    references = []
    for split, chosen in splits.items():
        for i in chosen:
            number = len(references)
            sentence = {"tokens": ["boat"], "raw": "Boat", "sent_id": number, "sent": "boat"}
            references.append(
                {
                    **{"ref_id": number, "ann_id": annotation_of[i], "image_id": i, "category_id": 1, "split": split},
                    **{"file_name": coco_name(i, "train2014"), "sent_ids": [number], "sentences": [sentence]},
                }
            )
    path = root / "refer" / folder / f"refs({by}).p"
    path.write_bytes(pickle.dumps(references, protocol=0))
    return path


def write_visual_genome(root: Path, images: Sequence[tuple[int, int | None, int | None]]) -> Path:
    """``visual_genome``'s two JSONs and images. ``images`` are (id, id at COCO, id at Flickr)."""
    folder = root / "visual_genome"
    for i, _, _ in images:
        write_image(folder / "VG_100K" / f"{i}.jpg", i)
    data = [
        {
            **{"image_id": i, "url": f"https://cs.stanford.edu/people/rak248/VG_100K/{i}.jpg"},
            **{"width": WIDTH, "height": HEIGHT, "coco_id": coco, "flickr_id": flickr},
        }
        for i, coco, flickr in images
    ]
    write_json(folder / "image_data.json", data)
    regions = [
        {
            "id": i,
            "regions": [
                {
                    **{"region_id": 10 * i + n, "image_id": i, "phrase": f"boat number {n}"},
                    **{"x": 2 + n, "y": 3, "width": 20, "height": 10},
                }
                for n in range(2)
            ],
        }
        for i, _, _ in images
    ]
    return write_json(folder / "region_descriptions.json", regions)


def write_imagenet(
    root: Path, names: dict[str, str], images: int = 1, splits: Sequence[str] = ("train", "val")
) -> Path:
    """``imagenet``: folders of images, and the names of the classes, {folder: line}."""
    for split in splits:
        for folder in names:
            for number in range(images):
                write_image(root / "imagenet" / split / folder / f"{folder}_{number}.JPEG", number)
    path = root / "imagenet/LOC_synset_mapping.txt"
    path.write_text("".join(f"{folder} {line}\n" for folder, line in names.items()))
    return path


ENTITIES_XML = """<annotation><filename>77.jpg</filename><size><width>60</width><height>40</height></size>
<object><name>1</name><name>2</name><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>21</xmax><ymax>33</ymax></bndbox></object>
<object><name>5</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"""
ENTITIES_TEXT = "[/EN#1/people Two young guys] with [/EN#2/bodyparts/people hair] see [/EN#0/notvisual each other] .\n"


def write_flickr30k_entities(root: Path, split: str, image_id: int) -> Path:
    """``flickr30k/entities`` with a split of one image."""
    folder = root / "flickr30k/entities"
    write_text(folder / f"Annotations/{image_id}.xml", ENTITIES_XML)
    write_text(folder / f"Sentences/{image_id}.txt", ENTITIES_TEXT)
    return write_text(folder / f"{split}.txt", f"{image_id}\n")


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_vqa(root: Path) -> Path:
    """A question of ``vqa`` with its ten answers, about an image of COCO's train2014."""
    ids = {"image_id": 1, "question_id": 1001}
    answers = [{"answer": "two", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)]
    what = {"question_type": "how many", "answer_type": "number", "multiple_choice_answer": "two"}
    questions = {"questions": [{**ids, "question": "How many boats?"}]}
    annotations = {"annotations": [{**ids, **what, "answers": answers}]}
    write_json(root / "vqa/v2_mscoco_train2014_annotations.json", annotations)
    return write_json(root / "vqa/v2_OpenEnded_mscoco_train2014_questions.json", questions)


def write_panoptic(root: Path, split: str = "train2017") -> Path:
    """``coco/annotations/panoptic_<split>.json`` with one image, one person and one tree, and their PNG."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[5:25, 5:25, 0], pixels[30:, :, 0] = 9, 10
    _save(root / f"coco/panoptic_{split}/000000000139.png", pixels)
    _save(root / f"coco/{split}/000000000139.jpg", pixels)
    categories = [
        {"id": 1, "name": "person", "supercategory": "person", "isthing": 1},
        {"id": 184, "name": "tree-merged", "supercategory": "plant", "isthing": 0},
    ]
    box = {"area": 400, "bbox": [5, 5, 20, 20], "iscrowd": 0}
    segments = [{"id": 9, "category_id": 1, **box}, {"id": 10, "category_id": 184, **box}]
    image = {"id": 139, "file_name": "000000000139.jpg", "height": HEIGHT, "width": WIDTH}
    annotation = {"image_id": 139, "file_name": "000000000139.png", "segments_info": segments}
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    return write_json(root / f"coco/annotations/panoptic_{split}.json", content)


def write_ade20k(root: Path, folder: str = "training") -> Path:
    """``ADEChallengeData2016`` with one image of two classes, and the names of the classes."""
    name = f"ADE_{folder.removesuffix('ing').replace('validation', 'val')}_00000001"
    classes = np.ones((HEIGHT, WIDTH), np.uint8)
    classes[:20] = 2
    tree = root / "ADEChallengeData2016"
    _save(tree / f"annotations/{folder}/{name}.png", classes)
    write_image(tree / f"images/{folder}/{name}.jpg")
    return write_text(tree / "objectInfo150.txt", ADE20K_NAMES)


ADE20K_NAMES = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n2\t0.1072\t6046\t612\tbuilding, edifice\n"


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_kinetics(root: Path) -> Path:
    """``kinetics400`` with one clip, a folder of frames."""
    write_image(root / "kinetics400/train/a_000004_000014/0.png")
    rows = "label,youtube_id,time_start,time_end,split\njuggling,a,4,14,train\n"
    return write_text(root / "kinetics400/annotations/train.csv", rows)
