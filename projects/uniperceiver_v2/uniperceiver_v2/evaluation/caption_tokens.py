"""Captions as the words that caption metrics compare: the Penn Treebank's, lower case, without punctuation.

The reference is Stanford's PTBTokenizer, a Java program that comes with pycocoevalcap, which every published
figure was made with. Without Java, :func:`tokenize_plainly` follows the same rules as far as captions need them:

- numbers ("3.5", "1,000"), initials ("u.s.") and words joined by "-" or "/" ("black-and-white") stay whole;
- "n't" and what follows an apostrophe ("'s", "'re", ...) are words of their own;
- every other sign is a word of its own, brackets under their Treebank names ("-lrb-");
- quotation marks and then pycocoevalcap's list of punctuation are left out.

It knows no other abbreviation ("mr.", "e.g."), no split word ("cannot" is "can not" to the Treebank) and no web
address. On the captions of digit_scenes, 15,069 different ones, the two agree word for word.
"""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from pycocoevalcap.tokenizer import ptbtokenizer

logger = logging.getLogger(__name__)

_PUNCTUATION = frozenset(ptbtokenizer.PUNCTUATIONS)
_QUOTES = str.maketrans({"’": "'", "‘": "'", **dict.fromkeys('"“”')})
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CLITICS = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_WORDS = re.compile(
    r"""  \d+(?:[.,:]\d+)+      # 3.5
        | (?:[^\W\d_]\.){2,}    # u.s.
        | n't\b | '\w+          # clitics
        | \w+(?:[-/]\w+)*       # black-and-white
        | \.{2,} | -{2,}        # dots and dashes
        | [^\w\s]               # any other sign """,
    re.VERBOSE,
)


def has_java() -> bool:
    """Whether there is a Java program to start."""
    return shutil.which("java") is not None


def tokenize(captions: Sequence[str]) -> tuple[list[str], bool]:
    """Words of each caption, joined by single spaces.

    Returns:
        (tokenised captions, whether they are PTBTokenizer's own). All are tokenised in one process.
    """
    lines = [" ".join(caption.split()) for caption in captions]  # a line each, whatever is in them
    tokenized = _tokenize_by_java(lines) if has_java() else None
    if tokenized is not None:
        return [_without_punctuation(line.split()) for line in tokenized], True
    return [tokenize_plainly(line) for line in lines], False


def tokenize_plainly(caption: str) -> str:
    """Words of a caption without Java, by the rules above."""
    text = _CLITICS.sub(r" \1", caption.lower().translate(_QUOTES))
    return _without_punctuation([_BRACKETS.get(word, word) for word in _WORDS.findall(text)])


def _without_punctuation(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word not in _PUNCTUATION)


def _tokenize_by_java(lines: Sequence[str]) -> list[str] | None:
    """PTBTokenizer's lines, or None if it fails.

    pycocoevalcap's own caller writes into the installed package, reads non-ASCII captions by the locale's
    encoding and loses empty captions at the end; hence one of our own.
    """
    jar = os.path.join(os.path.dirname(ptbtokenizer.__file__), ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", jar, "edu.stanford.nlp.process.PTBTokenizer"]
    text = "".join(f"{line}\n" for line in lines)
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        input=text.encode("utf-8", errors="replace"),
        capture_output=True,
    )
    tokenized = done.stdout.decode("utf-8", errors="replace").split("\n")[:-1]
    if done.returncode == 0 and len(tokenized) == len(lines):
        return tokenized
    logger.warning("Java's tokenizer failed: %s", done.stderr.decode(errors="replace").strip()[-500:])
    return None
