"""The contents of digit_scenes' annotation files, from the facts of its scenes: the formats of COCO, LVIS, VQA v2 and
Visual Genome.

A scene is what prepare_digit_scenes.py returns for each: "id", "file_name", "instances", "areas", "captions",
"phrases", "regions" and "questions".
"""

from __future__ import annotations

from collections import Counter

from digit_scenes_drawing import CLASS_NAMES, SCENE_SIZE, Instance
from digit_scenes_questions import ANSWER_TYPES

ANNOTATIONS_VERSION = "1"  # in the headers of the files, which stay as they are when a file is added
ANSWERS = 10  # to each question, as in VQA v2
# In LVIS, with 100,000 images, a category is rare if up to 10 training images show it, common if up to 100 do, and
# frequent otherwise. This data set is smaller, so its groups are defined by shares of the training scenes. With
# digit_scenes_drawing.CLASS_WEIGHTS the groups are expected near 8%, 20% and 41%.
RARE_BELOW, COMMON_BELOW = 0.13, 0.30


def _coco_image(scene: dict) -> dict:
    return {"id": scene["id"], "file_name": scene["file_name"], "height": SCENE_SIZE, "width": SCENE_SIZE}


def _info() -> dict:
    return {
        "description": "digit_scenes: UCI handwritten digits composed into scenes",
        "version": ANNOTATIONS_VERSION,
    }


def _annotation(instance: Instance, annotation_id: int, image_id: int) -> dict:
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": instance.label + 1,
        "bbox": list(instance.box),
        "area": instance.area,
        "segmentation": instance.segmentation,
        # Additional keys of this data set: the colour, and the handwriting samples.
        "color": instance.colour,
        "sample_ids": list(instance.sample_ids),
    }


def coco_instances(scenes: list[dict]) -> dict:
    """COCO's instances format. Crowds are uncompressed RLE with iscrowd 1."""
    annotations = []
    for scene in scenes:
        for instance in scene["instances"]:
            annotation = _annotation(instance, len(annotations) + 1, scene["id"])
            annotations.append({**annotation, "iscrowd": int(instance.is_crowd)})
    categories = [{"id": i + 1, "name": n, "supercategory": "digit"} for i, n in enumerate(CLASS_NAMES)]
    images = [_coco_image(scene) for scene in scenes]
    return {"info": _info(), "images": images, "annotations": annotations, "categories": categories}


def coco_panoptic(scenes: list[dict]) -> dict:
    """COCO's panoptic format: digits are things, the background is stuff. Boxes and areas are of what is visible."""
    annotations = []
    for scene in scenes:
        segments = [
            {
                "id": place,
                "category_id": instance.label + 1,
                "area": area,
                "bbox": [round(value) for value in instance.box],
                "iscrowd": int(instance.is_crowd),
            }
            for place, (instance, area) in enumerate(zip(scene["instances"], scene["areas"]), 1)
        ]
        whole = {"category_id": len(CLASS_NAMES) + 1, "bbox": [0, 0, SCENE_SIZE, SCENE_SIZE], "iscrowd": 0}
        segments.append({"id": len(segments) + 1, "area": scene["areas"][-1], **whole})
        found = [segment for segment in segments if segment["area"]]
        annotations.append({"image_id": scene["id"], "file_name": scene["file_name"], "segments_info": found})
    categories = [{"id": i + 1, "name": n, "supercategory": "digit", "isthing": 1} for i, n in enumerate(CLASS_NAMES)]
    categories.append({"id": len(categories) + 1, "name": "background", "supercategory": "background", "isthing": 0})
    images = [_coco_image(scene) for scene in scenes]
    return {"info": _info(), "images": images, "annotations": annotations, "categories": categories}


def visual_genome(scenes: list[dict], split: str) -> dict[str, list]:
    """Visual Genome's two files, "region_descriptions" and "image_data". Each digit is a region, with two phrases."""
    descriptions, images = [], []
    number = 0
    for scene in scenes:
        regions = []
        for instance, phrases in zip(scene["instances"], scene["regions"]):
            x, y, width, height = (round(value) for value in instance.box)
            for phrase in phrases:
                number += 1
                box = {"x": x, "y": y, "width": width, "height": height}
                regions.append({"region_id": number, "image_id": scene["id"], "phrase": phrase, **box})
        descriptions.append({"id": scene["id"], "regions": regions})
        # The last two parts of the address are the folder and the file.
        url = f"http://digit-scenes.invalid/{split}/{scene['file_name']}"
        size = {"width": SCENE_SIZE, "height": SCENE_SIZE}
        images.append({"image_id": scene["id"], "url": url, **size, "coco_id": None, "flickr_id": None})
    return {"region_descriptions": descriptions, "image_data": images}


def coco_captions(scenes: list[dict]) -> dict:
    """COCO's captions format, with five captions for each image."""
    annotations = []
    for scene in scenes:
        for caption in scene["captions"]:
            annotations.append({"id": len(annotations) + 1, "image_id": scene["id"], "caption": caption})
    return {"info": _info(), "images": [_coco_image(scene) for scene in scenes], "annotations": annotations}


def coco_phrases(scenes: list[dict]) -> dict:
    """Phrases with the ids of the annotations of :func:`coco_instances` that each means, in a format of our own.

    It is that of COCO's captions, with "phrase" and "annotation_ids" in place of "caption".
    """
    annotations: list[dict] = []
    first_id = 1
    for scene in scenes:
        for phrase, meant in scene["phrases"]:
            found = {"phrase": phrase, "annotation_ids": [first_id + index for index in meant]}
            annotations.append({"id": len(annotations) + 1, "image_id": scene["id"], **found})
        first_id += len(scene["instances"])
    return {"info": _info(), "images": [_coco_image(scene) for scene in scenes], "annotations": annotations}


def vqa(scenes: list[dict]) -> dict[str, dict]:
    """VQA v2's two files, "questions" and "answers". Ten people have given each answer, and they all agree."""
    questions, answers = [], []
    for scene in scenes:
        for place, (question, kind, answer) in enumerate(scene["questions"]):
            its = {"image_id": scene["id"], "question_id": 1000 * scene["id"] + place}
            given = [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(ANSWERS)]
            what = {"question_type": kind, "answer_type": ANSWER_TYPES[kind], "multiple_choice_answer": answer}
            questions.append({**its, "question": question})
            answers.append({**its, **what, "answers": given})
    shared = {"info": _info(), "data_type": "digit_scenes", "license": {}}
    return {
        "questions": {**shared, "task_type": "Open-Ended", "questions": questions},
        "answers": {**shared, "annotations": answers},
    }


def lvis_instances(scenes: list[dict], split: str, train_scenes: list[dict]) -> dict:
    """LVIS v1's format, which has no crowds.

    If an image shows a class as a crowd, the class is in the image's ``not_exhaustive_category_ids``. Classes that an
    image does not show are in its ``neg_category_ids``. As in LVIS, the frequencies and counts of a category are those
    of the training scenes in both splits.
    """
    images, annotations = [], []
    for scene in scenes:
        crowds = {i.label + 1 for i in scene["instances"] if i.is_crowd}
        shown = {i.label + 1 for i in scene["instances"]}
        images.append(
            {
                **_coco_image(scene),
                # Loaders of the format use the last two parts of this address as the file's path.
                "coco_url": f"http://digit-scenes.invalid/images/{split}/{scene['file_name']}",
                "neg_category_ids": [i + 1 for i in range(len(CLASS_NAMES)) if i + 1 not in shown],
                "not_exhaustive_category_ids": sorted(crowds),
            }
        )
        for instance in scene["instances"]:
            if not instance.is_crowd:
                annotations.append(_annotation(instance, len(annotations) + 1, scene["id"]))
    categories = _lvis_categories(train_scenes)
    return {"info": _info(), "images": images, "annotations": annotations, "categories": categories}


def _lvis_categories(train_scenes: list[dict]) -> list[dict]:
    instance_count: Counter[int] = Counter()
    image_count: Counter[int] = Counter()
    for scene in train_scenes:
        labels = [i.label for i in scene["instances"] if not i.is_crowd]
        instance_count.update(labels)
        image_count.update(set(labels))
    categories = []
    for label, name in enumerate(CLASS_NAMES):
        share = image_count[label] / len(train_scenes)
        categories.append(
            {
                "id": label + 1,
                "name": name,
                "synset": f"{name}.n.01",
                "synonyms": [name],
                "def": f"the handwritten digit {name}",
                "frequency": "r" if share < RARE_BELOW else "c" if share < COMMON_BELOW else "f",
                "image_count": image_count[label],
                "instance_count": instance_count[label],
            }
        )
    return categories
