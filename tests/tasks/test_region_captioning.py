"""Captions of regions: which proposal stands for a region, and what a caption of it sees."""

import pytest
import torch
from detectron2.utils.events import EventStorage

from uniperceiver_v2.modeling.image_encoder.boxes import cxcywh_to_xyxy
from uniperceiver_v2.tasks.captioning import CaptioningTask
from uniperceiver_v2.tasks.region_captioning import RegionCaptioningSettings, RegionCaptioningTask, of_regions

REGIONS = [[[0.05, 0.1, 0.4, 0.5], [0.5, 0.3, 0.95, 0.9]], [[0.2, 0.2, 0.6, 0.7]]]
CAPTIONS = [["a red seven", "a blue two"], ["a small white zero in the middle"]]


@pytest.fixture
def described(tiny_model) -> list[dict]:
    """Two images with two regions and one."""
    found = []
    for index, (boxes, captions) in enumerate(zip(REGIONS, CAPTIONS, strict=True)):
        image = torch.full((3, 64, 64), 60, dtype=torch.uint8)
        image[index, 10:40, 8:40], image[2, 30:50, 40:60] = 200, 150
        rows = zip(*tiny_model.text_encoder.tokenize(captions), strict=True)
        ids = [row[valid].cpu() for row, valid in rows]
        item = {"task": "region_captioning", "image": image, "regions": torch.tensor(boxes)}
        found.append({**item, "captions": captions, "caption_token_ids": ids})
    return found


def plain_iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(0.0, width) * max(0.0, height)
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


@torch.no_grad()
def test_a_region_is_the_proposal_that_overlaps_it_most(tiny_model, described):
    encoding, _ = tiny_model.image_encoder(tiny_model.preprocess(described))
    found = of_regions(encoding, [x["regions"] for x in described])
    assert found.proposal_tokens.shape == (3, 1, 32) and len(found.global_tokens) == len(found.global_valid) == 3
    for row, (image, box) in enumerate((i, box) for i, boxes in enumerate(REGIONS) for box in boxes):
        boxes = cxcywh_to_xyxy(encoding.proposals.boxes[image]).tolist()
        overlaps = [plain_iou(box, own) for own in boxes]
        assert max(overlaps) > 0
        best = overlaps.index(max(overlaps))
        assert torch.equal(found.proposal_tokens[row, 0], encoding.proposal_tokens[image, best])
        assert torch.equal(found.global_tokens[row], encoding.global_tokens[image])


def test_the_loss_is_that_of_captions_of_the_regions(tiny_model, described):
    """As if each region were an image with one proposal."""
    settings = RegionCaptioningSettings(vocabulary_sample=0)
    task = CaptioningTask(settings)
    with torch.no_grad():
        encoding, _ = tiny_model.image_encoder(tiny_model.preprocess(described))
        regions = of_regions(encoding, [x["regions"] for x in described])
        task.encode = lambda model, inputs: regions
        alone = [{"caption_token_ids": [ids]} for x in described for ids in x["caption_token_ids"]]
        with EventStorage():
            expected = task.losses(tiny_model, alone)["loss_caption"]
        task = RegionCaptioningTask(settings)
        with EventStorage():
            found = task.losses(tiny_model, described)
    torch.testing.assert_close(found["loss_caption"], expected)
    assert task.loss_count(described) == sum(len(ids) - 1 for x in described for ids in x["caption_token_ids"])


def test_training_reaches_every_part(tiny_model, described):
    with EventStorage() as storage:
        losses = tiny_model.train()(described)
        assert "word_accuracy" in storage.latest()
    assert losses.keys() == {"loss_caption"}
    losses["loss_caption"].backward()
    reached = {name.split(".")[0] for name, p in tiny_model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"image_encoder", "text_encoder", "decoder", "likelihood"}


def test_predictions_are_of_each_region_alone(tiny_model, described):
    tiny_model.tasks["region_captioning"] = RegionCaptioningTask(RegionCaptioningSettings(beam_size=1, max_length=5))
    # The masks of a new model cover images whole, and so would their boxes: all regions would have one proposal.
    tiny_model.image_encoder.regions.boxes_from_masks = False
    with torch.no_grad():
        found = tiny_model.eval()(described)
        first_region = [{**described[0], "regions": described[0]["regions"][:1]}]
        (alone,) = tiny_model(first_region)
    assert [len(x["captions"]) for x in found] == [len(x["log_likelihoods"]) for x in found] == [2, 1]
    assert alone["captions"] == found[0]["captions"][:1]
    assert alone["log_likelihoods"] == pytest.approx(found[0]["log_likelihoods"][:1], abs=1e-4)
    assert found[0]["log_likelihoods"][0] != pytest.approx(found[0]["log_likelihoods"][1], abs=1e-5)
