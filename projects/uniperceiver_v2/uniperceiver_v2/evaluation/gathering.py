"""The base of this project's evaluators: records of samples, gathered from all ranks, and JSON files."""

import itertools
import logging
import os
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..files import write_json
from ..reading import id_order

logger = logging.getLogger(__name__)


class GatheringEvaluator(DatasetEvaluator):
    """Keeps a record of every sample in ``process``. The main process computes metrics from the records of all ranks.

    A subclass appends to ``_records`` and computes metrics in :meth:`_metrics`.

    Args:
        dataset_name: a registered dataset.
        output_folder: for ``results.json`` and the subclass's predictions. None writes no files.
    """

    _ORDER = "image_id"  # records are sorted by this key, so that their order does not depend on the number of ranks

    def __init__(self, dataset_name: str, output_folder: str | None = None):
        self._dataset_name = dataset_name
        self._output_folder = output_folder
        self._records: list[dict] = []

    def reset(self) -> None:
        """Forget all records."""
        self._records = []

    def evaluate(self) -> dict[str, dict[str, float]]:
        """
        Returns:
            {task: {metric: value}}, with NaN for a metric that cannot be computed. Empty if there are no predictions,
            and on all ranks but the first.
        """
        gathered = comm.gather(self._records)
        if not comm.is_main_process():
            return {}
        records = sorted(itertools.chain.from_iterable(gathered), key=lambda record: id_order(record[self._ORDER]))
        if not records:
            logger.warning("no predictions for %s", self._dataset_name)
            return {}
        results = self._metrics(records)
        self._write("results.json", results)
        return results

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        """Results from the records of all ranks. There is at least one record."""
        raise NotImplementedError

    def _write(self, file_name: str, content: Any) -> None:
        if self._output_folder is not None:
            write_json(os.path.join(self._output_folder, file_name), content)
