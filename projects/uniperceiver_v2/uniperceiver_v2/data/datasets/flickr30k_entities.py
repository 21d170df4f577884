"""Flickr30k Entities (Plummer et al., ICCV 2015): phrases of Flickr30k's sentences with the boxes that they mean."""

import logging
import os
import re
from typing import Any

from ...errors import UserError
from ...reading import read_text, read_xml, while_reading
from .phrases import add_box, register_grounding
from .records import Records

logger = logging.getLogger(__name__)

_OPENING = "[/EN#"
# "[/EN#283585/people Two young guys]": the entity, its kinds, the words.
_PHRASE = re.compile(r"\[/EN#(\d+)(?:/[^\s/\]]+)+ ([^\]]+)\]")
_NOT_VISUAL = "0"  # the entity of phrases that mean nothing to be seen


def register_flickr30k_entities(name: str, root: str, image_root: str, split: str, **metadata: Any) -> None:
    """Register a split of Flickr30k Entities for grounding.

    Args:
        name: for ``DatasetCatalog``.
        root, image_root, split: see :func:`load_flickr30k_entities`.
        metadata: more of it.
    """
    split_list = os.path.join(root, f"{split}.txt")

    def load() -> Records:
        with while_reading(split_list):  # which names the other files
            return load_flickr30k_entities(root, image_root, split)

    register_grounding(
        name,
        load,
        source=split_list,
        image_root=image_root,
        **metadata,
    )


def load_flickr30k_entities(root: str, image_root: str, split: str) -> Records:
    """Records of a split's images, in the order of its list. A phrase that five sentences have counts five times.

    Phrases without a box mean the whole scene or nothing to be seen. They are no phrases that are true of nothing, so
    they are left out, as is usual.

    Args:
        root: the folder of ``Annotations/<id>.xml``, ``Sentences/<id>.txt`` and ``<split>.txt``, a list of ids.
        image_root: the folder of ``<id>.jpg``.
        split: "train", "val" or "test".

    Raises:
        UserError: a file is not in its format.
    """
    ids = read_text(os.path.join(root, f"{split}.txt")).split()
    records, empty = [], 0
    for image_id in ids:
        path = os.path.join(root, "Annotations", f"{image_id}.xml")
        (width, height), boxes = _read_annotations(path)
        record: dict[str, Any] = {
            "file_name": os.path.join(image_root, f"{image_id}.jpg"),
            "height": height,
            "width": width,
            "image_id": int(image_id),
            "annotations": [],
            "phrases": [],
        }
        objects: dict[str, list[int]] = {}
        for entity, box in boxes:
            if box[2] > 0 and box[3] > 0:
                objects.setdefault(entity, []).append(add_box(record, box, f"{path}: entity {entity}"))
            else:
                empty += 1
        for entity, phrase in _read_sentences(os.path.join(root, "Sentences", f"{image_id}.txt")):
            if entity in objects and entity != _NOT_VISUAL:
                record["phrases"].append({"phrase": phrase, "objects": list(dict.fromkeys(objects[entity]))})
        records.append(record)
    if empty:
        logger.warning("%s: %d boxes have no area and are left out", root, empty)
    return records


def _read_annotations(path: str) -> tuple[tuple[int, int], list[tuple[str, list[int]]]]:
    """The image's (width, height), and [x, y, width, height] of each entity's boxes.

    Corners are counted from 1 in the file, and from 0 here.
    """
    tree, boxes = read_xml(path), []
    try:
        for item in tree.iter("object"):
            corners = item.find("bndbox")
            if corners is None:  # <nobndbox> or <scene>
                continue
            x0, y0, x1, y1 = (int(corners.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax"))
            boxes += [(name.text or "", [x0 - 1, y0 - 1, x1 - x0, y1 - y0]) for name in item.iter("name")]
        return (int(tree.findtext("size/width", "")), int(tree.findtext("size/height", ""))), boxes
    except ValueError as error:
        raise UserError(f"{os.path.abspath(path)} is not in the format of Flickr30k Entities: {error}") from error


def _read_sentences(path: str) -> list[tuple[str, str]]:
    """Entity and words of each phrase, sentence by sentence.

    Raises:
        UserError: a phrase begins that has no end, or no entity.
    """
    phrases = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        found = _PHRASE.findall(line)
        if len(found) != line.count(_OPENING):
            raise UserError(
                f"{os.path.abspath(path)}: line {number} has a phrase that is not [/EN#<id>/<kind> <words>]: {line}"
            )
        phrases += found
    return phrases
