"""Which evaluator a dataset gets."""

from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator, LVISEvaluator

from ..errors import UserError, nearest
from .captions import CaptionEvaluator
from .classification import ClassificationEvaluator
from .language_modelling import LanguageModellingEvaluator
from .lvis_numpy import repair_lvis
from .retrieval import RetrievalEvaluator


def _lvis_evaluator(name: str, folder: str) -> LVISEvaluator:
    repair_lvis()
    return LVISEvaluator(name, output_dir=folder)


# By the "evaluator_type" in a dataset's metadata. A new kind of dataset adds its line here.
EVALUATORS: dict[str, Callable[[str, str], DatasetEvaluator]] = {
    "coco": lambda name, folder: COCOEvaluator(name, output_dir=folder),
    "lvis": _lvis_evaluator,
    "imagenet": ClassificationEvaluator,
    "coco_caption": CaptionEvaluator,
    "retrieval": RetrievalEvaluator,
    "corpus": LanguageModellingEvaluator,
}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator for a registered dataset, which writes its files into ``output_folder``.

    Args:
        cfg: the run's settings.
        dataset_name: with "evaluator_type" in its metadata.
        output_folder: made if need be.

    Raises:
        UserError: the dataset's metadata names no kind of evaluation that there is.
    """
    kind = str(MetadataCatalog.get(dataset_name).get("evaluator_type"))
    if kind not in EVALUATORS:
        raise UserError(f"dataset '{dataset_name}' has evaluator_type '{kind}'{nearest(kind, EVALUATORS)}")
    return EVALUATORS[kind](dataset_name, output_folder)
