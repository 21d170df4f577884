"""Matching by COCO's rules, against COCO's own evaluation and by hand."""

import numpy as np
import pytest
from detectron2.structures import BoxMode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from uniperceiver_v2.report.matching import IGNORED, NOTHING, category_curves, confusion, ious, matched

CLASSES = {1: 0, 2: 1, 3: 2}


def record(image_id, *annotations, **more):
    objects = [
        {"category_id": category, "bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "iscrowd": crowd}
        for category, box, crowd in annotations
    ]
    return {"image_id": image_id, "annotations": objects, **more}


def detection(category, box, score):
    return {"category_id": category, "bbox": list(box), "score": score}


def random_boxes(rng, count):
    return np.concatenate((rng.uniform(0, 60, (count, 2)), rng.uniform(5, 40, (count, 2))), 1)


@pytest.mark.parametrize("seed", range(4))
def test_ap50_of_each_category_is_cocos(seed):
    rng = np.random.default_rng(seed)
    images, truth, found = [], [], []
    for image in range(12):
        boxes = random_boxes(rng, rng.integers(0, 7))
        own = [(int(c), box, int(rng.random() < 0.15)) for c, box in zip(rng.integers(0, 3, len(boxes)), boxes)]
        guesses = np.concatenate((boxes + rng.normal(0, 3, boxes.shape), random_boxes(rng, 5)))
        guesses[:, 2:] = np.maximum(guesses[:, 2:], 1)
        detections = [
            detection(int(c), box.tolist(), float(s))
            for c, box, s in zip(
                np.concatenate(([c + 1 for c, _, _ in own], rng.integers(1, 4, 5))), guesses, rng.random(len(guesses))
            )
        ]
        images.append(matched(record(image, *own), detections, CLASSES))
        truth += [
            {"image_id": image, "category_id": c + 1, "bbox": b.tolist(), "area": float(b[2] * b[3]), "iscrowd": crowd}
            for c, b, crowd in own
        ]
        found += [{"image_id": image, **d} for d in detections]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(12)],
        "categories": [{"id": i} for i in CLASSES],
        "annotations": [{"id": i, **a} for i, a in enumerate(truth, 1)],
        "info": {},
    }
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.evaluate()
    evaluation.accumulate()
    expected = evaluation.eval["precision"][0, :, :, 0, -1].mean(0)
    assert [curve.ap for curve in category_curves(images, 3)] == pytest.approx(expected.tolist(), abs=1e-9)
    assert (expected < 1).any()


def test_a_detection_takes_the_object_of_its_category_that_is_left():
    image = matched(
        record(7, (0, (0, 0, 10, 10), 0), (0, (1, 0, 10, 10), 0), (1, (0, 0, 10, 10), 0)),
        [detection(1, (0, 0, 10, 10), s) for s in (0.5, 0.9, 0.7)] + [detection(3, (0, 0, 10, 10), 0.8)],
        CLASSES,
    )
    assert image.scores.tolist() == [0.9, 0.8, 0.7, 0.5]
    assert image.found.tolist() == [0, NOTHING, 1, NOTHING]
    assert image.missed.tolist() == [2]
    assert image.quality == pytest.approx(2 * 2 / (4 + 3))
    assert image.above(0.8).missed.tolist() == [1, 2]


def test_what_a_crowd_covers_does_not_count():
    image = matched(
        record(1, (0, (0, 0, 50, 50), 1)),
        [detection(1, (5, 5, 10, 10), 0.9), detection(1, (5, 20, 10, 10), 0.8), detection(2, (5, 5, 10, 10), 0.7)],
        CLASSES,
    )
    assert image.found.tolist() == [IGNORED, IGNORED, NOTHING]
    assert image.missed.tolist() == []
    curve = category_curves([image], 3)[0]
    assert curve.objects == 0 and np.isnan(curve.ap)


def test_lvis_judges_only_what_an_image_says_something_about():
    image = matched(
        record(1, (0, (0, 0, 10, 10), 0), neg_category_ids=[2], not_exhaustive_category_ids=[1]),
        [
            detection(1, (0, 0, 10, 10), 0.9),
            detection(1, (30, 30, 10, 10), 0.8),  # there may be more of them than are annotated
            detection(2, (0, 0, 10, 10), 0.7),  # is known not to be there
            detection(3, (0, 0, 10, 10), 0.6),  # nobody has looked for it
        ],
        CLASSES,
    )
    assert image.scores.tolist() == [0.9, 0.8, 0.7]
    assert image.found.tolist() == [0, IGNORED, NOTHING]


def test_confusion_counts_each_object_and_each_detection_once():
    images = [
        matched(
            record(1, (0, (0, 0, 10, 10), 0), (1, (20, 20, 10, 10), 0), (2, (40, 40, 10, 10), 0)),
            [
                detection(1, (0, 0, 10, 10), 0.9),  # right
                detection(3, (20, 20, 10, 10), 0.8),  # another category
                detection(1, (70, 70, 10, 10), 0.7),  # on nothing
                detection(3, (40, 40, 10, 10), 0.1),  # below the score that is shown
            ],
            CLASSES,
        )
    ]
    expected = np.zeros((4, 4), int)
    expected[0, 0] = expected[1, 2] = expected[3, 0] = expected[2, 3] = 1
    assert (confusion(images, 3) == expected).all()


def test_precision_and_recall_at_a_score():
    image = matched(
        record(1, (0, (0, 0, 10, 10), 0), (0, (20, 20, 10, 10), 0)),
        [detection(1, (0, 0, 10, 10), 0.9), detection(1, (50, 50, 10, 10), 0.6), detection(1, (20, 20, 9, 9), 0.2)],
        CLASSES,
    )
    curve = category_curves([image], 3)[0]
    assert curve.at(0.5) == pytest.approx((1 / 2, 1 / 2))
    assert curve.at(0.1) == pytest.approx((2 / 3, 1))
    precision, recall = curve.at(0.95)
    assert np.isnan(precision) and recall == 0


def test_iou_of_a_crowd_is_the_share_of_the_detection():
    boxes = np.array([[0.0, 0, 10, 10]])
    assert ious(boxes, np.array([[5.0, 0, 15, 10]])).tolist() == [[pytest.approx(1 / 3)]]
    assert ious(boxes, np.array([[5.0, 0, 500, 500]]), np.array([True])).tolist() == [[pytest.approx(0.5)]]
