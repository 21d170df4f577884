"""What a caption of digit_scenes may claim, and whether a claim holds in a scene.

A claim holds where the data set's references could say it (datasets/digit_scenes_texts.py). Those are careful. What
differs by less than ``MARGIN`` is not compared. Tiny digits of a crowd are neither counted nor compared with others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

from .facts import SCENE_SIZE, Scene, Thing

SMALL_HEIGHT, LARGE_HEIGHT = 20.0, 32.0  # box heights in pixels: below is "small", from the second on "large"
MARGIN = 4.0  # pixels
ALL = -1  # the number that "all of them" stands for
RELATIONS: dict[str, Callable[[Thing, Thing], float]] = {  # how far the first is beyond the second, in pixels
    "to the left of": lambda a, b: b.x - a.x,
    "to the right of": lambda a, b: a.x - b.x,
    "above": lambda a, b: b.y - a.y,
    "below": lambda a, b: a.y - b.y,
}
EXTREMES: dict[str, Callable[[Thing], float]] = {
    "largest": lambda thing: thing.height,
    "smallest": lambda thing: -thing.height,
    "leftmost": lambda thing: -thing.x,
    "rightmost": lambda thing: thing.x,
    "highest": lambda thing: -thing.y,
    "lowest": lambda thing: thing.y,
}
Mention = tuple[str, bool]  # its sort, and whether it is true


@dataclass(frozen=True)
class Group:
    """Things that a caption speaks of: "two red threes", "a small digit", "a crowd of tiny red threes".

    A colour or a name of None is any; a size of None is that of things neither small nor large.
    """

    count: int
    name: str | None
    colour: str | None
    size: str | None = None
    is_crowd: bool = False

    def describes(self, thing: Thing) -> bool:
        """Whether a thing is one of these, its size left aside."""
        return (
            thing.is_crowd == self.is_crowd and self.name in (None, thing.name) and self.colour in (None, thing.colour)
        )

    def among(self, scene: Scene) -> list[Thing]:
        return [thing for thing in scene if self.describes(thing)]

    def is_counted_right(self, scene: Scene) -> bool:
        return len(self.among(scene)) == self.count


class Claim(Protocol):
    """What a caption, or a part of it, says of a scene."""

    def holds(self, scene: Scene) -> bool: ...

    def mentions(self, scene: Scene) -> Iterator[Mention]:
        """The counts, places and relations in it, each true or not."""

    def subjects(self) -> tuple[Group, ...]:
        """What it speaks of: where the scene has nothing of one of them, the claim does not hold."""


@dataclass(frozen=True)
class Inventory:
    """ "there are two red threes and a blue one": what the scene shows, nothing left out."""

    groups: tuple[Group, ...]

    def holds(self, scene: Scene) -> bool:
        counts = Counter[Group]()  # "a red three and a red three" are two
        for group in self.groups:
            counts[replace(group, count=0)] += group.count
        right = all(len(kind.among(scene)) == count for kind, count in counts.items())
        return right and all(sum(kind.describes(thing) for kind in counts) == 1 for thing in scene)

    def mentions(self, scene: Scene) -> Iterator[Mention]:
        for group in self.groups:
            yield "counts", group.is_counted_right(scene)

    def subjects(self) -> tuple[Group, ...]:
        return self.groups


@dataclass(frozen=True)
class Relation:
    """ "a red seven to the left of two blue threes": all the scene's red sevens of all its blue threes."""

    first: Group
    relation: str
    second: Group

    def holds(self, scene: Scene) -> bool:
        crowds = {thing.name for thing in scene if thing.is_crowd}
        if any(group.name in crowds and not group.is_crowd for group in self.subjects()):
            return False
        beyond = RELATIONS[self.relation]
        pairs = [(a, b) for a in self.first.among(scene) for b in self.second.among(scene)]
        counted = all(group.is_counted_right(scene) for group in self.subjects())
        return counted and all(beyond(a, b) >= MARGIN for a, b in pairs)

    def mentions(self, scene: Scene) -> Iterator[Mention]:
        for group in self.subjects():
            yield "counts", group.is_counted_right(scene)
        yield "relations", self.holds(scene)

    def subjects(self) -> tuple[Group, ...]:
        return self.first, self.second


@dataclass(frozen=True)
class Row:
    """ "from left to right: a red seven, a blue three": all digits in their order along an axis, "x" or "y"."""

    axis: str
    groups: tuple[Group, ...]

    def holds(self, scene: Scene) -> bool:
        ordered = sorted(scene, key=lambda thing: getattr(thing, self.axis))
        centres = [getattr(thing, self.axis) for thing in ordered]
        return (
            len(ordered) == len(self.groups) > 1
            and all(group.describes(thing) for group, thing in zip(self.groups, ordered))
            and all(after - before >= MARGIN for before, after in pairwise(centres))
        )

    def mentions(self, scene: Scene) -> Iterator[Mention]:
        yield "relations", self.holds(scene)

    def subjects(self) -> tuple[Group, ...]:
        return self.groups


@dataclass(frozen=True)
class Extreme:
    """ "the largest digit is a red seven": of several, by a clear margin."""

    word: str
    group: Group

    def holds(self, scene: Scene) -> bool:
        if len(scene) < 2 or any(thing.is_crowd for thing in scene):
            return False
        measure = EXTREMES[self.word]
        first, second = sorted(scene, key=measure, reverse=True)[:2]
        return self.group.describes(first) and measure(first) - measure(second) >= MARGIN

    def mentions(self, scene: Scene) -> Iterator[Mention]:
        yield "relations", self.holds(scene)

    def subjects(self) -> tuple[Group, ...]:
        return (self.group,)


@dataclass(frozen=True)
class Place:
    """ "a small red seven in the top left": there is one whose centre lies there, on a grid of three by three."""

    group: Group
    row: int
    column: int

    def count(self, scene: Scene) -> int:
        """How many of them lie there."""
        wanted = self.group.size, (self.row, self.column)
        return sum((size_of(thing), cell_of(thing)) == wanted for thing in self.group.among(scene))


@dataclass(frozen=True)
class Places:
    """One or more places. The same one said twice is of two things."""

    places: tuple[Place, ...]

    def holds(self, scene: Scene) -> bool:
        return all(place.count(scene) >= number for place, number in Counter(self.places).items())

    def mentions(self, scene: Scene) -> Iterator[Mention]:
        for place in self.places:
            yield "places", place.count(scene) > 0

    def subjects(self) -> tuple[Group, ...]:
        return tuple(place.group for place in self.places)


@dataclass(frozen=True)
class Share:
    """ "four digits, two of them red"; a number of ALL is every one of them."""

    total: int
    number: int
    colour: str

    def holds(self, scene: Scene) -> bool:
        return all(true for _, true in self.mentions(scene))

    def mentions(self, scene: Scene) -> Iterator[Mention]:
        number = self.total if self.number == ALL else self.number
        yield "counts", len(scene) == self.total and not any(thing.is_crowd for thing in scene)
        yield "counts", Group(number, None, self.colour).is_counted_right(scene)

    def subjects(self) -> tuple[Group, ...]:
        return () if self.number == 0 else (Group(self.number, None, self.colour),)


def size_of(thing: Thing) -> str | None:
    """ "small", "large" or neither."""
    return "small" if thing.height < SMALL_HEIGHT else "large" if thing.height >= LARGE_HEIGHT else None


def cell_of(thing: Thing) -> tuple[int, int]:
    """Row and column of its centre, from the top left."""
    row, column = (min(int(3 * centre / SCENE_SIZE), 2) for centre in (thing.y, thing.x))
    return row, column
