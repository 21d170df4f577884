"""METEOR by the Java program that comes with pycocoevalcap, started with the needed part of its data only."""

import contextlib
import gzip
import itertools
import logging
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import IO

from pycocoevalcap.meteor import meteor

logger = logging.getLogger(__name__)

Captions = Mapping[int, list[str]]
"""Tokenised captions of images, by image id."""

_FOLDER = os.path.dirname(meteor.__file__)
_PARAPHRASES = os.path.join(_FOLDER, "data", "paraphrase-en.gz")
_BLOCK = 2**22  # bytes of paraphrases read at a time


def meteor_scores(references: Captions, rows: Mapping[str, Captions]) -> dict[str, float]:
    """METEOR in 0..1 of several sets of candidates against the same references. One process computes them all.

    Args:
        references: {image id: captions}, at least one caption for each image.
        rows: {name: {image id: [caption]}}, one candidate for each image.

    Returns:
        {name: score}. If the program fails, the result is empty and the log has a warning.
    """
    captions = itertools.chain(references.values(), *(row.values() for row in rows.values()))
    words = _words(itertools.chain.from_iterable(captions))
    with tempfile.TemporaryDirectory() as folder, open(os.path.join(folder, "errors"), "w+b") as errors:
        paraphrases = os.path.join(folder, "paraphrases.gz")
        _keep_paraphrases(words, paraphrases)
        with contextlib.closing(_Meteor(paraphrases, errors)) as scorer:
            try:
                return {name: scorer.compute_score(references, row)[0] for name, row in rows.items()}
            except (OSError, ValueError):  # the process has ended: a broken pipe, or text in place of a number
                pass
        errors.seek(0)
        logger.warning("METEOR failed: %s", errors.read().decode(errors="replace").strip()[-500:])
        return {}


class _Meteor(meteor.Meteor):
    """pycocoevalcap's METEOR with its own paraphrase table, UTF-8 on every machine, and a :meth:`close`.

    The original keeps its lock when its process dies, and then waits for the lock for ever.
    """

    def __init__(self, paraphrases: str, errors: IO[bytes]):
        command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", meteor.METEOR_JAR, "-", "-", "-stdio"]
        self.meteor_p = subprocess.Popen(
            [*command, "-l", "en", "-norm", "-a", paraphrases],
            cwd=_FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        self.lock = threading.Lock()

    def close(self) -> None:
        """End the process and close its pipes."""
        self.meteor_p.kill()
        with contextlib.suppress(OSError):  # a dead process cannot read the rest
            self.meteor_p.stdin.close()
        self.meteor_p.stdout.close()
        self.meteor_p.wait()

    def __del__(self):
        """Replaces the original's, which would close the process a second time."""


def _words(captions: Iterable[str]) -> set[bytes]:
    """All words that METEOR may find in the captions.

    METEOR splits words before and after signs, and before and after characters such as Chinese ones. It never splits
    between two letters or digits of ASCII.
    """
    words = set()
    for word in set(itertools.chain.from_iterable(caption.split() for caption in captions)):
        parts = re.findall(r"[A-Za-z0-9]+|.", word)
        for start, end in itertools.combinations(range(len(parts) + 1), 2):
            words.add("".join(parts[start:end]).encode("utf-8", errors="replace"))
    return words


def _keep_paraphrases(words: set[bytes], path: str) -> None:
    """Write the paraphrases of METEOR that consist of the given words only. No other paraphrase can match.

    METEOR has five million paraphrases, of which these captions need a few thousand. With these alone it starts in half
    a second and 100 MB, instead of ten seconds and 2 GB. In the file a paraphrase is three lines: probability, phrase,
    phrase.
    """
    with gzip.open(_PARAPHRASES) as source, gzip.open(path, "wb", compresslevel=1) as kept:
        lines = _lines(source)
        for probability, phrase, other in zip(lines, lines, lines):
            # Testing the first word first rejects most paraphrases, at half the cost.
            if (
                phrase.partition(b" ")[0] in words
                and words.issuperset(phrase.split())
                and words.issuperset(other.split())
            ):
                kept.write(b"%s\n%s\n%s\n" % (probability, phrase, other))


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines without their line ends, twice as fast as iterating over a gzip file."""
    rest = b""
    while block := file.read(_BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    if rest:
        yield rest
