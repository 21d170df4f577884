"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE of captions, by pycocoevalcap."""

import logging
import math
from collections.abc import Mapping, Sequence

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from .caption_tokens import tokenize
from .meteor import Captions, meteor_scores
from .spice import spice_scores

logger = logging.getLogger(__name__)

METRICS = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr", "SPICE")


def caption_metrics(
    references: Mapping[int, Sequence[str]], rows: Mapping[str, Mapping[int, str]], spice_models: str = ""
) -> dict[str, dict[str, float]]:
    """All metrics of several sets of captions of the same images, in percent.

    Without Java, METEOR and SPICE cannot be computed, and :func:`~.caption_tokens.tokenize_plainly` splits captions
    into words. SPICE also needs models that do not come with pycocoevalcap. The log says which metrics are missing.

    Args:
        references: {image id: captions}, at least one caption for each image.
        rows: {name: {image id: caption}}, each with a caption for every image.
        spice_models: the folder of SPICE's models; without one there is no SPICE.

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
        meteor = meteor_scores(references, rows)
        spice = spice_scores(references, rows, spice_models) if spice_models else {}
    else:
        meteor = spice = {}
        logger.warning("no Java: captions are tokenized by simpler rules, and METEOR and SPICE are missing")
    found = {
        name: {
            **_plain_metrics(references, row),
            "METEOR": meteor.get(name, math.nan),
            "SPICE": spice.get(name, math.nan),
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
