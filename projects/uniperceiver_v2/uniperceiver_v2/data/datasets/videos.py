"""Clips with a class each, in the files of Kinetics (Kay et al., 2017)."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.data import MetadataCatalog

from ...errors import UserError
from ...reading import read_table
from .records import Records, register_dataset

logger = logging.getLogger(__name__)
_COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def register_clips(name: str, csv_file: str, root: str, *, names: Sequence[str] | None = None, **metadata: Any) -> None:
    """Register clips with a class each, for video classification.

    Args:
        name: for ``DatasetCatalog``.
        csv_file, root, names: see :func:`load_kinetics`.
        metadata: more of it.
    """

    def load() -> Records:
        records, labels = load_kinetics(csv_file, root, names)
        MetadataCatalog.get(name).thing_classes = labels
        return records

    register_dataset(name, load, source=csv_file, image_root=root, evaluator_type="video", **metadata)


def load_kinetics(csv_file: str, root: str, names: Sequence[str] | None = None) -> tuple[Records, list[str]]:
    """Records of clips {"file_name", "video", "image_id", "label"} in the order of the file, and the classes' names.

    Many of Kinetics' videos are no longer published. A clip that is not there is left out, and the log says how many.

    Args:
        csv_file: with the columns "label", "youtube_id", "time_start" and "time_end", such as Kinetics-400's train.csv.
        root: has ``<youtube_id>_<time_start>_<time_end>.mp4`` of each clip, with times of six digits, or a folder of
            this name without its ending, with an image for each frame.
        names: of the classes, in the order of labels; by default those of the file, sorted.

    Raises:
        UserError: a class is not among ``names``, or no clip is there.
    """
    rows = read_table(csv_file, _COLUMNS)
    labels = list(names) if names is not None else sorted({row["label"] for row in rows})
    place = {label: index for index, label in enumerate(labels)}
    records = []
    for row in rows:
        if row["label"] not in place:
            raise UserError(f"{csv_file}: clip {row['youtube_id']} is of class '{row['label']}', which is not known")
        stem = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        path = os.path.join(root, stem)
        path = path if os.path.isdir(path) else f"{path}.mp4"
        if os.path.exists(path):
            records.append({"file_name": path, "video": path, "image_id": stem, "label": place[row["label"]]})
    if not records:
        raise UserError(f"{csv_file}: none of its {len(rows)} clips is in {root}")
    if len(records) < len(rows):
        logger.warning("%s: %d of %d clips are not in %s", csv_file, len(rows) - len(records), len(rows), root)
    return records, labels
