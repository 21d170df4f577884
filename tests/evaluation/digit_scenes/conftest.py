"""Scenes of a small digit_scenes with their captions, and all that its references may say of a scene."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from uniperceiver_v2.evaluation.digit_scenes.facts import Scene, SceneFacts

SPLITS = ("train", "test")


@pytest.fixture(scope="session")
def tree(prepare_digit_scenes, tmp_path_factory) -> Path:
    """120 training and 40 test scenes."""
    output = tmp_path_factory.mktemp("truth") / "digit_scenes"
    prepare_digit_scenes(output, train_scenes=120, test_scenes=40)
    return output


@pytest.fixture(scope="session")
def captioned(tree) -> list[tuple[Scene, list[str]]]:
    """The scenes of both splits, each with its references."""
    pairs = []
    for split in SPLITS:
        scenes = SceneFacts(str(tree / f"annotations/instances_{split}.json")).by_image
        captions: dict[int, list[str]] = {image: [] for image in scenes}
        for annotation in json.loads((tree / f"annotations/captions_{split}.json").read_text())["annotations"]:
            captions[annotation["image_id"]].append(annotation["caption"])
        pairs += [(scenes[image], captions[image]) for image in scenes]
    return pairs


@pytest.fixture(scope="session")
def texts_program():
    """datasets/digit_scenes_texts.py, which writes the references."""
    folder = str(Path(__file__).parents[3] / "datasets")
    sys.path.insert(0, folder)
    try:
        import digit_scenes_texts
    finally:
        sys.path.remove(folder)
    return digit_scenes_texts


class EveryChoice:
    """In the place of a generator of random numbers: makes one list of choices, and knows the next."""

    def __init__(self):
        self._path: list[list[int]] = []  # [chosen, number of options] of each choice
        self._step = 0

    def _choose(self, options: int) -> int:
        if self._step == len(self._path):
            self._path.append([0, options])
        self._step += 1
        return self._path[self._step - 1][0]

    def integers(self, low: int, high: int | None = None) -> int:
        low, high = (0, low) if high is None else (low, high)
        return low + self._choose(high - low)

    def random(self) -> float:
        return (0.25, 0.75)[self._choose(2)]

    def permutation(self, count: int) -> list[int]:
        """Those that differ in their first two: no caption looks at more."""
        orders = list(itertools.permutations(range(count), min(2, count)))
        return list(orders[self._choose(len(orders))])

    def advance(self) -> bool:
        """Turns to the next list of choices; False after the last."""
        self._step = 0
        while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
            self._path.pop()
        if self._path:
            self._path[-1][0] += 1
        return bool(self._path)


@pytest.fixture(scope="session")
def sayable(texts_program) -> Callable[[Scene], set[str]]:
    """All captions that the data set's program could write of a scene, by every choice that it has."""

    def captions_of(scene: Scene) -> set[str]:
        things = [texts_program.Thing(t.name, t.colour, t.box, t.is_crowd) for t in scene]
        found = set()
        for template in {texts_program._caption_list, *texts_program._FURTHER_TEMPLATES}:
            choices = EveryChoice()
            more = True
            while more:
                found.add(template(things, choices))
                more = choices.advance()
        return found - {None}

    return captions_of
