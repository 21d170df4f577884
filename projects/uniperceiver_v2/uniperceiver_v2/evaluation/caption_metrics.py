"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions, by pycocoevalcap."""

import logging
import math
import os
import subprocess
from collections.abc import Mapping, Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice import spice

from .caption_tokens import tokenize
from .meteor import Captions, meteor_scores

logger = logging.getLogger(__name__)

METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")

_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def caption_metrics(
    references: Mapping[int, Sequence[str]], rows: Mapping[str, Mapping[int, str]]
) -> dict[str, dict[str, float]]:
    """All metrics of several sets of captions of the same images, in percent.

    Without Java, METEOR and SPICE cannot be computed, and :func:`~.caption_tokens.tokenize_plainly` splits captions
    into words. SPICE also needs models that do not come with pycocoevalcap. The log says which metrics are missing and
    why.

    Args:
        references: {image id: captions}, at least one caption for each image.
        rows: {name: {image id: caption}}, each with a caption for every image.

    Returns:
        {name: {metric: value}}. A missing metric is NaN. If no reference contains a word, all metrics are NaN.
    """
    texts = {text for captions in references.values() for text in captions}
    texts |= {text for row in rows.values() for text in row.values()}
    texts = sorted(texts)
    tokenized, by_java = tokenize(texts)
    words = dict(zip(texts, tokenized))
    references = {image: [words[text] for text in captions] for image, captions in references.items()}
    rows = {name: {image: [words[row[image]]] for image in references} for name, row in rows.items()}
    if not any(caption for captions in references.values() for caption in captions):
        logger.warning("no reference caption has a word: there is nothing to compare with")
        return {name: dict.fromkeys(METRICS, math.nan) for name in rows}

    if by_java:
        meteor, spice_scores = meteor_scores(references, rows), _spice_scores(references, rows)
    else:
        meteor = spice_scores = {}
        logger.warning("no Java: captions are tokenized by simpler rules, and METEOR and SPICE are missing")
    found = {
        name: {
            **_plain_metrics(references, row),
            "METEOR": meteor.get(name, math.nan),
            "SPICE": spice_scores.get(name, math.nan),
        }
        for name, row in rows.items()
    }
    return {name: {metric: 100 * float(values[metric]) for metric in METRICS} for name, values in found.items()}


def _plain_metrics(references: Captions, candidates: Captions) -> dict[str, float]:
    """The metrics that are computed in Python, in 0..1."""
    bleu, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    rouge, _ = Rouge().compute_score(references, candidates)
    cider, _ = Cider().compute_score(references, candidates)
    return {**{f"Bleu_{n + 1}": value for n, value in enumerate(bleu)}, "ROUGE_L": rouge, "CIDEr": cider}


def _spice_scores(references: Captions, rows: Mapping[str, Captions]) -> dict[str, float]:
    """SPICE in 0..1 by name. If its models are missing or it fails, the result is empty and the log says why."""
    folder = os.path.join(os.path.dirname(spice.__file__), "lib")
    # Without this check pycocoevalcap would download the models in the middle of an evaluation.
    missing = [name for name in _SPICE_MODELS if not os.path.exists(os.path.join(folder, name))]
    if missing:
        logger.info("no SPICE: %s not found in %s", " and ".join(missing), folder)
        return {}
    try:
        scorer = spice.Spice()
        return {name: scorer.compute_score(references, row)[0] for name, row in rows.items()}
    except (OSError, subprocess.CalledProcessError) as error:
        logger.warning("SPICE failed: %s", error)
        return {}
