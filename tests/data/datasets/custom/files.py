"""The same objects in three pictures, written in each format as users have it."""

import json
from pathlib import Path

HEIGHT, WIDTH = 40, 60
# (image, category, x, y, width, height): every image has objects of two categories.
OBJECTS = [
    (0, 0, 4, 6, 20, 10),
    (0, 1, 30, 8, 24, 28),
    (1, 1, 2, 2, 12, 30),
    (1, 2, 20, 4, 16, 16),
    (2, 0, 8, 8, 40, 24),
]
NAMES = ("boat", "buoy", "bird")
# Ids of categories and of images as users have them.
IDS = {
    "with gaps": ((7, 90, 3), (5, 1, 300)),
    "from zero": ((0, 1, 2), (0, 1, 2)),
    "large": ((10**12, 10**12 + 5, 10**12 + 2), (2**40, 2**41, 2**42)),
    "texts": (("K-1", "K-2", "ä b"), ("a.jpg", "b", "ç")),
    "mixed": ((4, "x", "y"), (1, "2", "3")),
}


def coco(category_ids, image_ids, lvis: bool = False) -> dict:
    images = [
        {"id": i, "file_name": f"{place}.png", "height": HEIGHT, "width": WIDTH} for place, i in enumerate(image_ids)
    ]
    annotations = [
        {
            "id": 100 + place,
            "image_id": image_ids[image],
            "category_id": category_ids[category],
            "bbox": [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            "area": w * h,
            "iscrowd": 0,
        }
        for place, (image, category, x, y, w, h) in enumerate(OBJECTS)
    ]
    categories = [{"id": i, "name": name} for i, name in zip(category_ids, NAMES)]
    if lvis:
        for category in categories:
            category.update(synonyms=[category["name"]], frequency="f")
        for image in images:
            image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(images: Path, ids, lvis: bool = False) -> dict:
    path = images.parent / "objects.json"
    path.write_text(json.dumps(coco(*ids, lvis=lvis)), encoding="utf-8")
    return {"FORMAT": "lvis" if lvis else "coco", "JSON": str(path), "IMAGES": str(images)}


def write_yolo(images: Path, numbers=(7, 20, 3), polygons: bool = False) -> dict:
    labels = images.parent / "labels"
    labels.mkdir()
    for place in range(3):
        lines = []
        for image, category, x, y, w, h in OBJECTS:
            if image != place:
                continue
            box = ((x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
            if polygons:
                left, top, right, bottom = x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT
                box = (left, top, right, top, right, bottom, left, bottom)
            lines.append(" ".join([str(numbers[category]), *(f"{value:.6f}" for value in box)]))
        (labels / f"{place}.txt").write_text("\n".join(lines) + "\n")
    path = images.parent / "data.yaml"
    names = "".join(f"  {number}: {name}\n" for number, name in zip(numbers, NAMES))
    path.write_text(f"train: images\nval: images\nnames:\n{names}")
    return {"FORMAT": "yolo", "YAML": str(path), "SPLIT": "val"}


def write_voc(images: Path) -> dict:
    folder = images.parent / "Annotations"
    folder.mkdir()
    for place in range(3):
        objects = "".join(
            f"<object><name>{NAMES[category]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for image, category, x, y, w, h in OBJECTS
            if image == place
        )
        (folder / f"{place}.xml").write_text(f"<annotation><filename>{place}.png</filename>{objects}</annotation>")
    return {"FORMAT": "voc", "ANNOTATIONS": str(folder), "IMAGES": str(images)}
