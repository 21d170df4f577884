"""COCO's evaluation in C++, where upstream has its own extension: faster-coco-eval's."""

from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO

__all__ = ["COCOeval_opt"]


class COCOeval_opt(COCOeval_faster):
    """A faster ``pycocotools.cocoeval.COCOeval`` for "bbox" and "segm": same calls, same numbers.

    Args:
        cocoGt, cocoDt: ground truth and detections.
        iouType: "bbox" or "segm".
    """

    def __init__(self, cocoGt: COCO | None = None, cocoDt: COCO | None = None, iouType: str = "segm"):
        super().__init__(cocoGt, cocoDt, iouType, print_function=print)
