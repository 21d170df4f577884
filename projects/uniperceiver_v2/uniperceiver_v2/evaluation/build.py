"""Which evaluator a dataset gets."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from ..kinds import evaluated_kind


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator for a registered dataset, which writes its files into ``output_folder``.

    Args:
        cfg: the run's settings.
        dataset_name: with "evaluator_type" in its metadata, which a kind of task knows.
        output_folder: made if need be.

    Raises:
        UserError: no kind of task evaluates the dataset.
    """
    kind = evaluated_kind(dataset_name)
    return kind.evaluators[MetadataCatalog.get(dataset_name).evaluator_type](dataset_name, output_folder)
