"""The evaluator of a dataset."""

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator

from ..kinds import evaluated_kind
from ..reading import explained, require_source


def build_evaluator(cfg: CfgNode, dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator for a registered dataset, which writes its files into ``output_folder``.

    Args:
        cfg: the run's settings.
        dataset_name: the dataset. A kind of task must list the "evaluator_type" of its metadata.
        output_folder: created if it does not exist.

    Raises:
        UserError: no kind of task evaluates the dataset, its files are missing or cannot be read, or an annotation is
            wrong.
    """
    kind = evaluated_kind(dataset_name)
    with explained(dataset_name):
        require_source(dataset_name)
        return kind.evaluators[MetadataCatalog.get(dataset_name).evaluator_type](dataset_name, output_folder)
