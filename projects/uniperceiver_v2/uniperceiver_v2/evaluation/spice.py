"""SPICE by the Java program that comes with pycocoevalcap, with Stanford's models from a folder of the user's.

pycocoevalcap's own call would download the models in the middle of an evaluation, and write into the installed package.
"""

import json
import logging
import math
import os
import subprocess
import tempfile
from collections.abc import Mapping

from pycocoevalcap.spice import spice

from .meteor import Captions

logger = logging.getLogger(__name__)

MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
"""Two files of https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip."""

_FOLDER = os.path.dirname(spice.__file__)


def missing_models(folder: str) -> list[str]:
    """The paths of the models that ``folder`` lacks."""
    paths = [os.path.abspath(os.path.join(folder, name)) for name in MODELS]
    return [path for path in paths if not os.path.isfile(path)]


def spice_scores(references: Captions, rows: Mapping[str, Captions], models: str) -> dict[str, float]:
    """SPICE in 0..1 of several sets of candidates against the same references. One process computes them all.

    Args:
        references: {image id: captions}, at least one caption for each image.
        rows: {name: {image id: [caption]}}, one candidate for each image.
        models: the folder of :data:`MODELS`.

    Returns:
        {name: score}. If the program fails, the result is empty and the log has a warning.
    """
    pairs = [(name, image) for name in rows for image in references]
    items = [
        {"image_id": number, "test": rows[name][image][0], "refs": list(references[image])}
        for number, (name, image) in enumerate(pairs)
    ]
    jars = os.pathsep.join(
        (os.path.join(_FOLDER, spice.SPICE_JAR), os.path.join(_FOLDER, "lib", "*"), os.path.join(models, "*"))
    )
    with tempfile.TemporaryDirectory() as folder:
        given, found = (os.path.join(folder, name) for name in ("captions.json", "scores.json"))
        with open(given, "w", encoding="utf-8") as file:
            json.dump(items, file)
        command = ["java", "-Xmx8G", "-Dfile.encoding=UTF-8", "-cp", jars, "edu.anu.spice.SpiceScorer", given]
        done = subprocess.run([*command, "-out", found, "-subset", "-silent"], cwd=folder, capture_output=True)
        if done.returncode or not os.path.exists(found):
            logger.warning("SPICE failed: %s", done.stderr.decode(errors="replace").strip()[-500:])
            return {}
        with open(found, encoding="utf-8") as file:
            scores = {item["image_id"]: _number(item["scores"]["All"]["f"]) for item in json.load(file)}
    by_row: dict[str, list[float]] = {name: [] for name in rows}
    for number, (name, _) in enumerate(pairs):
        by_row[name].append(scores[number])
    return {name: sum(own) / len(own) for name, own in by_row.items()}


def _number(value: float | str | None) -> float:
    """As pycocoevalcap reads it: the program also writes "NaN"."""
    return math.nan if value is None else float(value)
