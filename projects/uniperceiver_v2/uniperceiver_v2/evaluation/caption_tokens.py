"""Splits captions into the words that caption metrics compare: Penn Treebank words in lower case, without punctuation.

The reference is Stanford's PTBTokenizer, a Java program that comes with pycocoevalcap. All published figures use it.
Without Java, :func:`tokenize_plainly` follows the rules that matter for captions:

- numbers ("3.5", "1,000"), initials ("u.s.") and words joined by "-" or "/" ("black-and-white") stay whole;
- "n't" and the endings after an apostrophe ("'s", "'re", ...) are words of their own;
- every other sign is a word of its own; brackets get their Treebank names ("-lrb-");
- quotation marks and the signs of pycocoevalcap's list of punctuation are left out.

It does not know other abbreviations ("mr.", "e.g."), words that the Treebank splits ("cannot" is "can not" there) or
web addresses. On the 15,069 different captions of digit_scenes, both tokenizers give the same words.
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
    """Whether a ``java`` program is on the path."""
    return shutil.which("java") is not None


def tokenize(captions: Sequence[str]) -> tuple[list[str], bool]:
    """The words of each caption, joined by single spaces. One process tokenises all captions.

    Returns:
        (tokenised captions, whether PTBTokenizer made them)
    """
    lines = [" ".join(caption.split()) for caption in captions]  # one line each, even if a caption has line breaks
    tokenized = _tokenize_by_java(lines) if has_java() else None
    if tokenized is not None:
        return [_without_punctuation(line.split()) for line in tokenized], True
    return [tokenize_plainly(line) for line in lines], False


def tokenize_plainly(caption: str) -> str:
    """The words of a caption without Java, by the rules at the top of this file."""
    text = _CLITICS.sub(r" \1", caption.lower().translate(_QUOTES))
    return _without_punctuation([_BRACKETS.get(word, word) for word in _WORDS.findall(text)])


def _without_punctuation(words: Sequence[str]) -> str:
    return " ".join(word for word in words if word not in _PUNCTUATION)


def _tokenize_by_java(lines: Sequence[str]) -> list[str] | None:
    """The lines that PTBTokenizer returns, or None if it fails.

    This replaces pycocoevalcap's own call of the program, which writes into the installed package, decodes non-ASCII
    captions with the locale's encoding and loses empty captions at the end.
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
