"""What is known of a scene of digit_scenes: its digits with their colours and boxes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import UserError
from ...reading import read_file

SCENE_SIZE = 96  # pixels, both ways


@dataclass(frozen=True)
class Thing:
    """A digit of a scene, or a crowd of tiny ones; box is (x, y, w, h) in pixels."""

    name: str
    colour: str
    box: tuple[float, float, float, float]
    is_crowd: bool = False

    @property
    def x(self) -> float:
        """Of the box's centre."""
        return self.box[0] + self.box[2] / 2

    @property
    def y(self) -> float:
        return self.box[1] + self.box[3] / 2

    @property
    def height(self) -> float:
        return self.box[3]


Scene = tuple[Thing, ...]


class SceneFacts:
    """The scenes of a dataset by image id, those without an object included.

    Args:
        json_file: in COCO's instances format, each annotation with its "color" as digit_scenes has it.

    Raises:
        UserError: an annotation says no colour.
        FileNotFoundError, KeyError, ValueError: there is no such file, or it is of another format.
    """

    def __init__(self, json_file: str):
        self._json_file = json_file
        content = json.loads(read_file(json_file))
        names = {category["id"]: category["name"] for category in content["categories"]}
        things: dict[int, list[Thing]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            if "color" not in annotation:
                raise UserError(f'{json_file}: annotation {annotation["id"]} has no "color" to hold captions against')
            name, box = names[annotation["category_id"]], tuple(annotation["bbox"])
            thing = Thing(name, annotation["color"], box, bool(annotation.get("iscrowd", 0)))
            things[annotation["image_id"]].append(thing)
        self.by_image: dict[int, Scene] = {image: tuple(found) for image, found in things.items()}

    def of(self, records: Iterable[Mapping[str, Any]]) -> list[Scene]:
        """The scene of the "image_id" of each record.

        Raises:
            UserError: the file does not have one of them.
        """
        ids = [record["image_id"] for record in records]
        if unknown := [image for image in ids if image not in self.by_image]:
            raise UserError(f"{self._json_file} has no image {unknown[0]}, whose captions are evaluated")
        return [self.by_image[image] for image in ids]
