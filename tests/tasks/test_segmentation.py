"""Segmentation: it learns as detection does, and shares out the pixels by plain rules."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from uniperceiver_v2.tasks.segmentation import SegmentationSettings, SegmentationTask

NAMES = ("zero", "one", "two", "three", "grass")
IS_STUFF = (False, False, False, False, True)


@pytest.fixture
def parted(scenes) -> list[dict]:
    for item in scenes:
        item.update(task="segmentation", candidates=NAMES, is_stuff=IS_STUFF)
    return scenes


def test_losses_are_those_of_detection(tiny_model, parted):
    weight = tiny_model.tasks["scenes"].settings.centre_weight
    tiny_model.tasks["segmentation"] = SegmentationTask(SegmentationSettings(centre_weight=weight))
    found = {}
    for task in ("segmentation", "detection"):
        torch.manual_seed(3)
        with EventStorage():
            found[task] = tiny_model.train()([{**item, "task": task} for item in parted])
    assert found["segmentation"].keys() == found["detection"].keys()
    for name, loss in found["segmentation"].items():
        torch.testing.assert_close(loss, found["detection"][name])
    assert tiny_model.loss_count(parted) == 3


def test_predictions_have_the_size_of_the_file(tiny_model, parted):
    parted[1].update(height=30, width=44)
    tiny_model.tasks["segmentation"].settings = SegmentationSettings(score_threshold=0.0, overlap_threshold=0.0)
    with torch.no_grad():
        found = tiny_model.eval()(parted)
    for item, output in zip(parted, found, strict=True):
        ids, segments = output["panoptic_seg"]
        size = (item["height"], item["width"])
        assert tuple(ids.shape) == tuple(output["semantic"].shape) == size
        assert {*ids.unique().tolist()} - {0} <= {s["id"] for s in segments}
        assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
        assert output["semantic"].max() < len(NAMES)
        alone = tiny_model([item])[0]
        assert torch.equal(alone["panoptic_seg"][0], ids)


def square(y0, y1, x0, x1, inside=0.9):
    share = torch.full((10, 10), 0.01)
    share[y0:y1, x0:x1] = inside
    return share


def panoptic(shares, scores, labels, **settings):
    task = SegmentationTask(SegmentationSettings(**settings))
    return task._panoptic(torch.tensor(scores), torch.tensor(labels), torch.stack(shares), IS_STUFF)


def test_a_pixel_belongs_to_the_likeliest_proposal():
    ids, segments = panoptic(
        [square(0, 4, 0, 10), square(3, 8, 0, 10), square(8, 10, 0, 10)],
        [0.5, 0.9, 0.2],
        [0, 2, 1],
        overlap_threshold=0.5,
    )
    assert [(s["id"], s["category_id"], round(s["score"], 2)) for s in segments] == [(1, 2, 0.9), (2, 0, 0.5)]
    assert ids[:, 0].tolist() == [2, 2, 2, 1, 1, 1, 1, 1, 0, 0]  # below the threshold nobody has the last rows


def test_a_proposal_that_loses_most_of_its_mask_has_no_segment():
    shares, scores, labels = [square(0, 6, 0, 10), square(2, 8, 0, 10)], [0.9, 0.5], [0, 1]
    assert len(panoptic(shares, scores, labels, overlap_threshold=0.3)[1]) == 2
    ids, segments = panoptic(shares, scores, labels, overlap_threshold=0.4)
    assert len(segments) == 1 and {*ids.unique().tolist()} == {0, 1}


def test_stuff_of_a_category_is_one_segment_and_things_are_several():
    shares = [square(0, 3, 0, 10), square(5, 8, 0, 10)]
    ids, segments = panoptic(shares, [0.9, 0.8], [4, 4])
    assert len(segments) == 1 and ids[0, 0] == ids[6, 0] == 1 and ids[4, 0] == 0
    assert len(panoptic(shares, [0.9, 0.8], [3, 3])[1]) == 2


def test_the_semantic_map_is_the_plain_sum(tiny_model, parted):
    """Pixel by pixel: the sum over proposals of score times probability."""
    task, item = tiny_model.tasks["segmentation"], parted[0]
    with torch.no_grad():
        found = tiny_model.eval()([item])[0]["semantic"]
        encoding, _ = tiny_model.image_encoder(tiny_model.preprocess([item]))
        candidates = tiny_model.encode_candidates(NAMES)
        p = tiny_model.likelihood.of_directions(tiny_model.decode_proposals(encoding), candidates).softmax(-1)[0]
        objectness = encoding.proposals.objectness[0].sigmoid()
        masks = torch.nn.functional.interpolate(
            encoding.proposals.masks, size=(64, 64), mode="bilinear", align_corners=False
        )[0].sigmoid()
    assert task.texts_of(NAMES) == NAMES
    for y, x in ((3, 4), (20, 40), (60, 10), (33, 33)):
        totals = [sum(objectness[o] * p[o, c] * masks[o, y, x] for o in range(len(p))) for c in range(len(NAMES))]
        best, second = sorted(totals, reverse=True)[:2]
        assert found[y, x] == totals.index(best) or best - second < 1e-5
