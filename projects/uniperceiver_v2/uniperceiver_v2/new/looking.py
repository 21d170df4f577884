"""Loads the datasets of a folder, reads its pictures, and says what was seen."""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.data import MetadataCatalog
from tqdm import tqdm

from ..data import load_dataset, register_custom_datasets
from ..data.datasets.custom import FORMATS
from ..data.datasets.folders import images_below
from ..errors import UnreadableImage, UserError
from ..reading import read_image
from .found import Found, find_datasets

LISTED = 20  # categories and broken files that are printed

# By "evaluator_type": the name of the task, its kind, and the metric that the best checkpoint is chosen by.
TASKS = {
    "coco": ("objects", "detection", "bbox/AP"),
    "lvis": ("objects", "detection", "bbox/AP"),
    "imagenet": ("classes", "classification", "classification/top1"),
    "coco_caption": ("captions", "captioning", "caption/CIDEr"),
    "grounding": ("phrases", "grounding", "grounding/Acc@0.5"),
    "corpus": ("texts", "language_modelling", "language_modelling/accuracy"),
}


@dataclass
class Seen:
    """What was seen of a dataset."""

    name: str
    found: Found
    records: list[dict]
    sizes: list[tuple[int, int]] = field(default_factory=list)  # (height, width) of usable pictures
    broken: dict[str, str] = field(default_factory=dict)  # by path, why a picture cannot be used

    @property
    def evaluator_type(self) -> str:
        return MetadataCatalog.get(self.name).evaluator_type

    @property
    def held_out(self) -> bool:
        """Whether it is for tests."""
        return self.found.split in ("val", "test")

    def counts(self) -> Counter:
        """Objects of each category, or pictures of each class."""
        names = MetadataCatalog.get(self.name).get("thing_classes") or []
        labels = (r["label"] for r in self.records if "label" in r)
        objects = (a["category_id"] for r in self.records for a in r.get("annotations", ()))
        counts = Counter(dict.fromkeys(names, 0))
        counts.update(names[index] for index in (*labels, *objects) if index < len(names))
        return counts


class Pictures:
    """The sizes of pictures, each read once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, int] | str] = {}

    def size(self, path: str) -> tuple[int, int] | str:
        """(height, width), or why the picture cannot be read."""
        path = os.path.abspath(path)
        if path not in self._known:
            try:
                height, width = read_image({"file_name": path}, "RGB").shape[:2]
                self._known[path] = height, width
            except UnreadableImage as error:
                self._known[path] = str(error)
        return self._known[path]


def look_at(folder: Path) -> tuple[list[Seen], list[str], int]:
    """Load all datasets of a folder and read all of its pictures.

    Returns:
        the datasets that can be used, a sentence for each file that cannot, and the number of pictures in no dataset.

    Raises:
        UserError: there is no such folder, or nothing in it can be used.
    """
    found, problems = find_datasets(folder)
    seen: list[Seen] = []
    for item in found:
        name = _name_of(item, folder, {other.name for other in seen})
        try:
            register_custom_datasets({name: item.node})
            seen.append(Seen(name, item, load_dataset(name)))
        except UserError as error:
            problems.append(str(error))
    if not seen:
        known = "; ".join(its.form for its in FORMATS.values())
        why = f": {problems[0]}" if problems else f". It knows {known}"
        raise UserError(f"{folder} has no data that can be used{why}")
    pictures, paths = Pictures(), images_below(folder)
    for path in tqdm(paths, "pictures", leave=False, disable=not sys.stderr.isatty()):
        pictures.size(str(path))
    for dataset in seen:
        _measure(dataset, pictures)
    used = {os.path.abspath(r["file_name"]) for dataset in seen for r in dataset.records if "file_name" in r}
    unused = [pictures.size(str(path)) for path in paths if os.path.abspath(path) not in used]
    problems += [why for why in unused if isinstance(why, str)]
    return seen, problems, sum(not isinstance(size, str) for size in unused)


def _measure(dataset: Seen, pictures: Pictures) -> None:
    for record in dataset.records:
        if (path := record.get("file_name")) is None:
            continue
        size = pictures.size(path)
        said = record.get("height"), record.get("width")
        if not isinstance(size, str) and None not in said and said != size:
            size = f"{os.path.abspath(path)}: it has {size[1]} x {size[0]} pixels, its annotation {said[1]} x {said[0]}"
        if isinstance(size, str):
            dataset.broken[path] = size
        else:
            dataset.sizes.append(size)


def _name_of(found: Found, folder: Path, taken: Iterable[str]) -> str:
    # "my_data_objects_train"; a second one of its kind is "my_data_objects_train_2".
    words = re.sub(r"\W+", "_", folder.resolve().name).strip("_") or "own"
    task = TASKS[FORMATS[found.node["FORMAT"]].evaluated_as[0]][0]
    stem = "_".join(part for part in (words, task, found.split) if part)
    number = 1
    while (name := stem if number == 1 else f"{stem}_{number}") in taken:
        number += 1
    return name


def summary(seen: Sequence[Seen], problems: Sequence[str], unused: int) -> str:
    """What was seen, for the user."""
    lines = []
    for dataset in seen:
        title = FORMATS[dataset.found.node["FORMAT"]].title
        lines.append(f"{dataset.name}: {title} ({dataset.found.path})")
        count = len(dataset.sizes) + len(dataset.broken)
        what = (
            f"{counted(count, 'picture')}{_extent(dataset.sizes)}" if count else counted(len(dataset.records), "text")
        )
        lines.append(f"  {what}")
        if counts := dataset.counts().most_common():
            named = ", ".join(_first([f"{name} {number}" for name, number in counts]))
            lines.append(f"  {counted(len(counts), 'category', 'categories')}: {named}")
    if unused:
        lines.append(f"pictures that belong to none of these: {unused}")
    broken = list(dict.fromkeys([line for dataset in seen for line in dataset.broken.values()] + list(problems)))
    lines.append("\n  ".join([f"broken files: {len(broken)}", *_first(broken)]))
    return "\n".join(lines)


def counted(number: int, one: str, several: str = "") -> str:
    """For example "1 picture" or "2 pictures"."""
    return f"{number} {one if number == 1 else several or one + 's'}"


def _extent(sizes: Sequence[tuple[int, int]]) -> str:
    if not sizes:
        return ""
    (low, high), (narrow, wide) = ((min(sides), max(sides)) for sides in zip(*sizes))
    same = (low, narrow) == (high, wide)
    return f" of {wide} x {high} pixels" if same else f", from {narrow} x {low} to {wide} x {high} pixels"


def _first(items: Sequence[str]) -> list[str]:
    more = [f"and {len(items) - LISTED} more"] if len(items) > LISTED else []
    return [*items[:LISTED], *more]
