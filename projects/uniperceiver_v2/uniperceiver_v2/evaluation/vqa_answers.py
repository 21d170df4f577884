"""VQA's rules for answers: which are the same, and how right one is (Antol et al., ICCV 2015)."""

import re
from collections.abc import Sequence
from functools import lru_cache

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
_NUMBER_OF = {**{word: str(number) for number, word in enumerate(_NUMBERS)}, "none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")

# The words with an apostrophe that VQA knows, by their ending.
_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were wo would",
    "n't've": "could had might should would",
    "'ve": "could I might must not should they we what where who would you",
    "'d": "he how it someone something there they where who you",
    "'d've": "he I it she somebody someone something there they we who you",
    "'s": "he how somebody someone that there what when where who why",
    "'ll": "how it somebody someone something they what who why you y'all",
    "'re": "there they what why you",
}
_WITH_APOSTROPHE = [stem + ending for ending, stems in _ENDINGS.items() for stem in stems.split()]
_WITH_APOSTROPHE += ["I'm", "ma'am", "o'clock", "'twas", "y'all", "y'all'd've", "'ow's'at"]


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


_WHOLE = {short: word for word in _WITH_APOSTROPHE for short in _without_one_apostrophe(word)}
_WHOLE["somebody'd"] = "somebodyd"  # VQA's table has this one the other way round


@lru_cache(maxsize=2**18)
def normalised(answer: str) -> str:
    """An answer as VQA compares it: in small letters, "two" as "2", without articles and most punctuation, "dont" as
    "don't"."""
    answer = plain(answer)
    joined = _THOUSANDS.search(answer) is not None
    text = answer
    for mark in _PUNCTUATION:
        touches_blank = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if touches_blank or joined else " ")
    words = (_NUMBER_OF.get(word, word) for word in _FULL_STOP.sub("", text).lower().split())
    return " ".join(_WHOLE.get(word, word) for word in words if word not in _ARTICLES)


def plain(answer: str) -> str:
    """An answer without tabs, line ends and blanks around it."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
    """How right an answer is, in 0..1.

    Each person's answer is left out in turn. An answer is then right by a third for each of the others who gave it, and
    at most by 1. The result is the mean. Answers are normalised if people do not agree, and only then.

    Args:
        answer: the answer.
        given: those that people gave, at least one.
    """
    answer, people = plain(answer), [plain(other) for other in given]
    if len(set(people)) > 1:
        answer, people = normalised(answer), [normalised(other) for other in people]
    same = people.count(answer)
    with_one_left_out = same * min(1, (same - 1) / 3) if same else 0
    return (with_one_left_out + (len(people) - same) * min(1, same / 3)) / len(people)
