"""What the training files of digit_scenes may do without, to ask what a model makes of what it has not seen."""

from __future__ import annotations

import re
from typing import NamedTuple

from digit_scenes_drawing import CLASS_NAMES, COLOURS_RGB
from digit_scenes_texts import plural

FORMS = {
    "extreme": "largest|smallest|leftmost|rightmost|highest|lowest",
    "relation": "to the left of|to the right of|above|below",
}


class LeftOut(NamedTuple):
    """What training files do not have: digits such as "red seven", and forms of phrases, names of ``FORMS``."""

    digits: tuple[str, ...] = ()
    forms: tuple[str, ...] = ()

    @property
    def pairs(self) -> frozenset[tuple[str, str]]:
        return frozenset(_pair_of(digit) for digit in self.digits)

    def is_mentioned(self, text: str, with_forms: bool = False) -> bool:
        """Whether a text names one of the digits or, with ``with_forms``, has one of the forms."""
        words = [f"{colour} (?:{name}|{plural(name)})" for colour, name in self.pairs]
        words += [FORMS[form] for form in self.forms] if with_forms else []
        return bool(words) and re.search(rf"\b(?:{'|'.join(words)})\b", text) is not None


NOTHING = LeftOut()


def _pair_of(digit: str) -> tuple[str, str]:
    colour, _, name = digit.partition(" ")
    if colour not in COLOURS_RGB or name not in CLASS_NAMES:
        raise ValueError(f"{digit!r} is no digit of digit_scenes: say a colour and a name, such as 'red seven'")
    return colour, name
