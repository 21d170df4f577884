"""Writes the texts of digit_scenes: true captions of a scene, and a corpus of sentences about digits.

A caption states only facts that the annotations show, so that a test can parse and check it. All text is lower case,
and depends only on the arguments, among them a NumPy generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from digit_scenes_drawing import CLASS_NAMES, COLOURS_RGB, SCENE_SIZE

_TEN_TO_TWENTY = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty"
NUMBER_WORDS = (*CLASS_NAMES, *_TEN_TO_TWENTY.split())
# Box heights in pixels: "small" is below the first, "large" is the second or more.
SMALL_HEIGHT, LARGE_HEIGHT = 20.0, 32.0
RELATION_MARGIN = 4.0  # smallest distance of centres in pixels for a relation such as "left of"
CAPTIONS_PER_SCENE = 5


@dataclass(frozen=True)
class Thing:
    """The facts about an annotated object that a caption may state. The box is (x, y, w, h) in pixels."""

    name: str
    colour: str
    box: tuple[float, float, float, float]
    is_crowd: bool = False

    @property
    def x(self) -> float:
        return self.box[0] + self.box[2] / 2

    @property
    def y(self) -> float:
        return self.box[1] + self.box[3] / 2


@dataclass(frozen=True)
class _Group:
    """All digits of a scene with one name and colour, with one name, or with one colour; or the scene's crowd."""

    phrase: str
    things: tuple[Thing, ...]
    is_crowd: bool


def plural(name: str) -> str:
    return {"six": "sixes"}.get(name, name + "s")


def with_article(words: str) -> str:
    return ("an " if words.startswith(("orange", "eight")) else "a ") + words


def count_phrase(count: int, adjectives: str, name: str) -> str:
    """ "a red seven", "two blue threes"."""
    words = f"{adjectives} {name if count == 1 else plural(name)}".strip()
    return with_article(words) if count == 1 else f"{NUMBER_WORDS[count]} {words}"


def enumerate_phrases(phrases: Sequence[str]) -> str:
    if len(phrases) == 1:
        return phrases[0]
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _groups(things: Sequence[Thing], by_colour: bool = True, by_name: bool = True) -> list[_Group]:
    """The scene's groups from left to right, with its crowd at the end."""
    members: dict[tuple[str, str], list[Thing]] = {}
    for thing in sorted(things, key=lambda t: t.x):
        if not thing.is_crowd:
            key = (thing.colour if by_colour else "", thing.name if by_name else "digit")
            members.setdefault(key, []).append(thing)
    groups = [
        _Group(count_phrase(len(found), colour, name), tuple(found), False) for (colour, name), found in members.items()
    ]
    for crowd in (t for t in things if t.is_crowd):
        groups.append(_Group(f"a crowd of tiny {crowd.colour} {plural(crowd.name)}", (crowd,), True))
    return groups


def _has_crowd(things: Sequence[Thing]) -> bool:
    return any(thing.is_crowd for thing in things)


def _pick(rng: np.random.Generator, options: Sequence):
    return options[int(rng.integers(len(options)))]


def _caption_list(things: Sequence[Thing], rng: np.random.Generator) -> str:
    phrases = [group.phrase for group in _groups(things)]
    verb = "is" if phrases[0].startswith(("a ", "an ")) else "are"
    opening = _pick(rng, ("", "a picture of ", f"there {verb} ", "this scene shows ", "we see ", "an image with "))
    return opening + enumerate_phrases(phrases)


def _caption_names(things: Sequence[Thing], rng: np.random.Generator) -> str:
    phrases = [group.phrase for group in _groups(things, by_colour=False)]
    return _pick(rng, ("", "handwritten digits: ", "the digits here are ")) + enumerate_phrases(phrases)


def _caption_colours(things: Sequence[Thing], rng: np.random.Generator) -> str | None:
    if _has_crowd(things):
        return None
    phrases = [group.phrase for group in _groups(things, by_name=False)]
    return _pick(rng, ("", "a scene with ")) + enumerate_phrases(phrases)


def _caption_count(things: Sequence[Thing], rng: np.random.Generator) -> str | None:
    """ "four digits, two of them red"."""
    if _has_crowd(things) or len(things) < 2:
        return None
    group = _pick(rng, _groups(things, by_name=False))
    colour, number = group.things[0].colour, len(group.things)
    share = "all" if number == len(things) else NUMBER_WORDS[number]
    return f"{NUMBER_WORDS[len(things)]} digits, {share} of them {colour}"


def _separated(first: Sequence[Thing], second: Sequence[Thing]) -> list[str]:
    """The relations that hold between every thing of ``first`` and every thing of ``second``."""
    gaps = {
        "to the left of": min(t.x for t in second) - max(t.x for t in first),
        "to the right of": min(t.x for t in first) - max(t.x for t in second),
        "above": min(t.y for t in second) - max(t.y for t in first),
        "below": min(t.y for t in first) - max(t.y for t in second),
    }
    return [relation for relation, gap in gaps.items() if gap >= RELATION_MARGIN]


def _caption_relation(things: Sequence[Thing], rng: np.random.Generator) -> str | None:
    """ "a red seven to the left of two blue threes"."""
    crowd_names = {t.name for t in things if t.is_crowd}
    groups = [g for g in _groups(things) if g.is_crowd or g.things[0].name not in crowd_names]
    options = [
        f"{first.phrase} {relation} {second.phrase}"
        for first in groups
        for second in groups
        if first is not second
        for relation in _separated(first.things, second.things)
    ]
    return _pick(rng, options) if options else None


def _caption_row(things: Sequence[Thing], rng: np.random.Generator) -> str | None:
    axis, opening = _pick(rng, (("x", "from left to right: "), ("y", "from top to bottom: ")))
    ordered = sorted(things, key=lambda t: getattr(t, axis))
    centres = [getattr(t, axis) for t in ordered]
    if _has_crowd(things) or len(things) < 2 or np.diff(centres).min() < RELATION_MARGIN:
        return None
    if rng.random() < 0.5:
        return opening + ", ".join(thing.name for thing in ordered)
    return opening + ", ".join(with_article(f"{thing.colour} {thing.name}") for thing in ordered)


def size_word(thing: Thing) -> str:
    height = thing.box[3]
    return "small" if height < SMALL_HEIGHT else "large" if height >= LARGE_HEIGHT else ""


def place_phrase(thing: Thing) -> str:
    """The place of the box's centre on a grid of three by three: "in the top left", "in the middle"."""
    column = ("left", "", "right")[min(int(3 * thing.x / SCENE_SIZE), 2)]
    row = ("top", "", "bottom")[min(int(3 * thing.y / SCENE_SIZE), 2)]
    if row and column:
        return f"in the {row} {column}"
    return f"at the {row}" if row else f"on the {column}" if column else "in the middle"


def _caption_place(things: Sequence[Thing], rng: np.random.Generator) -> str:
    digits = [t for t in things if not t.is_crowd]
    chosen = rng.permutation(len(digits))[: int(rng.integers(1, 3))]
    phrases = []
    for thing in (digits[int(i)] for i in chosen):
        words = f"{size_word(thing)} {thing.colour} {thing.name}".strip()
        phrases.append(f"{with_article(words)} {place_phrase(thing)}")
    return enumerate_phrases(phrases)


def _caption_extreme(things: Sequence[Thing], rng: np.random.Generator) -> str | None:
    """ "the largest digit is a red seven", if it is so by a clear margin."""
    if _has_crowd(things) or len(things) < 2:
        return None
    measures: dict[str, Callable[[Thing], float]] = {
        "largest": lambda t: t.box[3],
        "smallest": lambda t: -t.box[3],
        "leftmost": lambda t: -t.x,
        "rightmost": lambda t: t.x,
        "highest": lambda t: -t.y,
        "lowest": lambda t: t.y,
    }
    word = _pick(rng, list(measures))
    first, second = sorted(things, key=measures[word], reverse=True)[:2]
    if measures[word](first) - measures[word](second) < RELATION_MARGIN:
        return None
    return f"the {word} digit is {with_article(f'{first.colour} {first.name}')}"


_FURTHER_TEMPLATES = (
    _caption_names,
    _caption_colours,
    _caption_count,
    _caption_relation,
    _caption_relation,  # twice as often, as a bag of words cannot represent relations
    _caption_row,
    _caption_place,
    _caption_extreme,
)


def write_captions(things: Sequence[Thing], rng: np.random.Generator, count: int = CAPTIONS_PER_SCENE) -> list[str]:
    """Different true captions of a scene with at least one digit. The first one names every group of the scene."""
    captions = [_caption_list(things, rng)]
    while len(captions) < count:
        caption = _pick(rng, _FURTHER_TEMPLATES)(things, rng)
        if caption is not None and caption not in captions:
            captions.append(caption)
    return captions


def _imagine_things(rng: np.random.Generator) -> list[Thing]:
    things = []
    for _ in range(int(rng.integers(2, 6))):
        height = rng.uniform(14, 40)
        x, y = rng.uniform(0, SCENE_SIZE - height, size=2)
        things.append(Thing(_pick(rng, CLASS_NAMES), _pick(rng, list(COLOURS_RGB)), (x, y, 0.7 * height, height)))
    return things


def _sentence_scene(rng: np.random.Generator) -> str:
    return ". ".join(write_captions(_imagine_things(rng), rng, count=int(rng.integers(1, 3))))


def _sentence_counting(rng: np.random.Generator) -> str:
    step = _pick(rng, (1, 1, 2, -1))
    length = int(rng.integers(3, 9))
    span = abs(step) * (length - 1)
    start = int(rng.integers(0, 21 - span))
    numbers = [start + abs(step) * i for i in range(length)]
    words = [NUMBER_WORDS[n] for n in (numbers if step > 0 else numbers[::-1])]
    opening = {1: "count up: ", 2: "count by twos: ", -1: "count down: "}[step]
    return opening + ", ".join(words)


def _sentence_arithmetic(rng: np.random.Generator) -> str:
    a, b = (int(v) for v in rng.integers(0, 11, size=2))
    first, second, total = NUMBER_WORDS[a], NUMBER_WORDS[b], NUMBER_WORDS[a + b]
    return _pick(
        rng,
        (
            f"{first} plus {second} is {total}",
            f"{total} minus {second} is {first}",
            f"the sum of {first} and {second} is {total}",
            f"{first} and {second} make {total}",
            f"if you take {first} from {total}, {second} is left",
        ),
    )


def _sentence_comparison(rng: np.random.Generator) -> str:
    low = int(rng.integers(0, 18))
    high = int(rng.integers(low + 1, 20))
    a, b = NUMBER_WORDS[low], NUMBER_WORDS[high]
    parity = "even" if low % 2 == 0 else "odd"
    return _pick(
        rng,
        (
            f"{b} is greater than {a}",
            f"{a} is less than {b}",
            f"{a} comes before {b}",
            f"{b} comes after {a}",
            f"the number after {a} is {NUMBER_WORDS[low + 1]}",
            f"{a} is an {parity} number",
            f"between {a} and {NUMBER_WORDS[low + 2]} comes {NUMBER_WORDS[low + 1]}",
        ),
    )


def _sentence_relation(rng: np.random.Generator) -> str:
    opposites = (("to the left of", "to the right of"), ("above", "below"), ("larger than", "smaller than"))
    pair = _pick(rng, opposites)
    relation, converse = pair if rng.random() < 0.5 else pair[::-1]
    a, b = (f"{_pick(rng, list(COLOURS_RGB))} {_pick(rng, CLASS_NAMES)}" for _ in range(2))
    if a == b:
        b = f"other {b}"
    return _pick(
        rng,
        (
            f"the {a} is {relation} the {b}, so the {b} is {converse} the {a}",
            f"if the {a} is {relation} the {b}, then the {b} is {converse} the {a}",
        ),
    )


def _sentence_total(rng: np.random.Generator) -> str:
    counts = [int(v) for v in rng.integers(1, 7, size=2)]
    colours = [_pick(rng, list(COLOURS_RGB)) for _ in counts]
    names = [_pick(rng, CLASS_NAMES) for _ in counts]
    phrases = [count_phrase(n, c, name) for n, c, name in zip(counts, colours, names, strict=True)]
    return f"{enumerate_phrases(phrases)} are {NUMBER_WORDS[sum(counts)]} digits"


_CORPUS_LINES: dict[Callable[[np.random.Generator], str], int] = {
    _sentence_scene: 4000,
    _sentence_counting: 200,
    _sentence_arithmetic: 450,
    _sentence_comparison: 500,
    _sentence_relation: 2000,
    _sentence_total: 1200,
}


def write_corpus(rng: np.random.Generator, test_share: float = 0.1) -> tuple[list[str], list[str]]:
    """A training and a test corpus in random order. No line occurs twice."""
    splits: tuple[list[str], list[str]] = ([], [])
    for sentence, count in _CORPUS_LINES.items():
        lines: dict[str, None] = {}  # an ordered set
        while len(lines) < count:
            lines[sentence(rng)] = None
        for index, line in enumerate(lines):
            splits[index < test_share * count].append(line)
    train, test = ([lines[int(i)] for i in rng.permutation(len(lines))] for lines in splits)
    return train, test
