"""COCO's evaluation in C++ by faster-coco-eval, in place of upstream's own extension."""

from faster_coco_eval import COCOeval_faster
from pycocotools.coco import COCO

__all__ = ["COCOeval_opt"]


class COCOeval_opt(COCOeval_faster):
    """A faster ``pycocotools.cocoeval.COCOeval`` for "bbox" and "segm", with the same calls and the same results.

    Args:
        cocoGt, cocoDt: ground truth and detections.
        iouType: "bbox" or "segm".
    """

    def __init__(self, cocoGt: COCO | None = None, cocoDt: COCO | None = None, iouType: str = "segm"):
        super().__init__(cocoGt, cocoDt, iouType, print_function=print)
