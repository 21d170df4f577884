"""What the report shows of each kind of task, beside its figures and curves."""

from collections.abc import Callable

from ..run import Evaluation
from .captioning import captioning
from .classification import classification
from .detection import detection
from .grounding import grounding
from .language_modelling import language_modelling
from .part import Part
from .retrieval import retrieval

# By the name of a kind. A kind without an entry has its figures and curves alone.
SECTIONS: dict[str, Callable[[Evaluation], list[Part]]] = {
    "detection": detection,
    "classification": classification,
    "captioning": captioning,
    "retrieval": retrieval,
    "language_modelling": language_modelling,
    "grounding": grounding,
}

__all__ = ["SECTIONS", "Part"]
