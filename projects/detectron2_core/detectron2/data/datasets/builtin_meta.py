"""Metadata of the built-in datasets: COCO's 80 categories."""

# In the order of their ids, which are 1 to 90 without the unused ids below.
# fmt: off
_COCO_NAMES = [
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush",
]
# fmt: on

# Ids of categories that COCO dropped before its first release.
_COCO_UNUSED_IDS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


def _get_coco_instances_meta() -> dict:
    """``thing_classes`` and ``thing_dataset_id_to_contiguous_id`` of COCO's instances."""
    ids = [i for i in range(1, 91) if i not in _COCO_UNUSED_IDS]
    assert len(ids) == len(_COCO_NAMES) == 80
    return {
        "thing_dataset_id_to_contiguous_id": {dataset_id: index for index, dataset_id in enumerate(ids)},
        "thing_classes": list(_COCO_NAMES),
    }


def _get_builtin_metadata(dataset_name: str) -> dict:
    """Metadata of a family of datasets by its name; KeyError if there is none."""
    if dataset_name == "coco":
        return _get_coco_instances_meta()
    raise KeyError(f"No built-in metadata for dataset {dataset_name}")
