"""What COCO's and LVIS's programs evaluate against, made usable before inference instead of failing after it."""

import contextlib
import io
import logging
from typing import Any

from ..errors import UserError
from ..reading import LARGEST_ID, check_entries, check_instances

logger = logging.getLogger(__name__)


def make_usable(truth: Any, json_file: str) -> bool:
    """Check the annotations that an evaluator has read, and number them anew where their ids would falsify results.

    To COCO's and LVIS's programs, an object with the id 0 looks as if it was not found, and so do objects whose ids are
    no whole numbers in 1..2**63-1. Files that begin with 0 are frequent. Results do not depend on other ids.

    Args:
        truth: pycocotools' ``COCO`` or ``LVIS``.
        json_file: its file, for messages.

    Returns:
        whether each object has a segmentation. If not, only boxes can be evaluated.

    Raises:
        UserError: an image, a category or an annotation is wrong, or an image whose masks are evaluated has no size.
    """
    check_entries(json_file, truth.dataset)
    check_instances(json_file, truth.dataset)
    annotations = truth.dataset.get("annotations", ())
    if not all(type(entry["id"]) is int and 1 <= entry["id"] <= LARGEST_ID for entry in annotations):
        for number, entry in enumerate(annotations, 1):
            entry["id"] = number
        with contextlib.redirect_stdout(io.StringIO()):
            truth.createIndex() if hasattr(truth, "createIndex") else truth._create_index()
    bare = next((a for a in annotations if a["image_id"] in truth.imgs and not a.get("segmentation")), None)
    if bare is not None:
        logger.warning("%s: annotation %s has no segmentation, so masks are not evaluated", json_file, bare["id"])
        return False
    for image in truth.imgs.values():
        if image.get("height") is None or image.get("width") is None:
            raise UserError(f"{json_file}: image {image['id']} has no height or no width, which masks need")
    return True
