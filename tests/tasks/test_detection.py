"""Detection: its losses compared with plain formulas, its predictions with plain rules."""

import dataclasses
import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from uniperceiver_v2.modeling.image_encoder import Proposals, RegionTargets
from uniperceiver_v2.modeling.image_encoder.centre_map import centre_heat, centre_losses
from uniperceiver_v2.tasks.labelled_proposals import ImageSizes, best_pairs, paste_masks

NAMES = ("zero", "one", "two", "three", "seven")  # those of the scenes
REGION_LOSSES = {"loss_objectness", "loss_box", "loss_giou", "loss_mask", "loss_dice"}


def train_losses(model, batch: list[dict]) -> dict[str, torch.Tensor]:
    with EventStorage():
        return model.train()(batch)


def test_losses_are_finite_and_teach_every_part(tiny_model, scenes):
    losses = train_losses(tiny_model, scenes)
    assert losses.keys() > REGION_LOSSES
    assert "loss_category" in losses
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for part in ("image_encoder.backbone", "image_encoder.regions", "text_encoder", "decoder", "likelihood"):
        gradients = [p.grad for p in tiny_model.get_submodule(part).parameters() if p.grad is not None]
        assert any(g.abs().sum() > 0 for g in gradients), part
        assert all(g.isfinite().all() for g in gradients), part


def test_images_without_objects_train(tiny_model, scenes):
    losses = train_losses(tiny_model, scenes[1:2])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_category"] == 0
    assert losses["loss_objectness"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_model.parameters())


def plain_cross_entropy(inputs, candidates, labels: list[int], temperature: float) -> float:
    """The mean of -log P by equation (7), in Python's floats."""
    total = 0.0
    for x, label in zip(inputs.detach().double(), labels, strict=True):
        cosines = [float(x @ y / (x.norm() * y.norm())) / temperature for y in candidates.double()]
        total += math.log(sum(math.exp(c) for c in cosines)) - cosines[label]
    return total / len(labels)


def test_category_losses_are_equation_7(tiny_model, scenes):
    tiny_model.train()
    with torch.no_grad():
        images = tiny_model.preprocess(scenes)
        targets = RegionTargets.from_instances([x["instances"] for x in scenes], images)
        torch.manual_seed(7)
        encoding, regions = tiny_model.image_encoder(images, targets)
        candidates = tiny_model.encode_candidates(scenes[0]["candidates"])
        matches, proposals = regions.matches, tiny_model.decode_proposals(encoding)
    assert sorted(zip(matches.image.tolist(), matches.target.tolist(), strict=True)) == [(0, 0), (0, 1), (2, 0)]
    labels = [scenes[i]["instances"].gt_classes[t].item() for i, t in zip(matches.image, matches.target, strict=True)]
    temperature = tiny_model.likelihood.temperature.item()
    expected = plain_cross_entropy(proposals[matches.image, matches.query], candidates, labels, temperature)

    torch.manual_seed(7)
    with EventStorage() as storage:
        losses = tiny_model(scenes)
        accuracy = storage.latest()["category_accuracy"][0]
    settings = tiny_model.tasks["scenes"].settings
    assert losses["loss_category"].item() == pytest.approx(settings.category_weight * expected, rel=1e-4)
    best = tiny_model.likelihood(proposals[matches.image, matches.query], candidates).argmax(-1).tolist()
    assert accuracy == pytest.approx(sum(a == b for a, b in zip(best, labels, strict=True)) / 3)
    states = tiny_model.image_encoder.fusion.semantics(regions.states)
    alignment_targets = tiny_model.alignment_targets(scenes[0]["candidates"])
    of_states = [
        plain_cross_entropy(state[None], alignment_targets, [label], temperature)
        for state, label in zip(states, regions.labels.tolist(), strict=True)
    ]
    weights = regions.weights.tolist()
    expected = sum(w * loss for w, loss in zip(weights, of_states, strict=True)) / sum(weights)
    assert losses["loss_alignment"].item() == pytest.approx(settings.alignment_weight * expected, rel=1e-4)


def supervision(model, batch: list[dict]):
    """Targets of a batch, and what the region network returns for them."""
    with torch.no_grad():
        images = model.train().preprocess(batch)
        targets = RegionTargets.from_instances([x["instances"] for x in batch], images)
        torch.manual_seed(7)
        return targets, model.image_encoder(images, targets)[1]


def test_centred_states_are_aligned_without_their_mean(tiny_model, scenes):
    task = tiny_model.tasks["scenes"]
    task.settings = dataclasses.replace(task.settings, centred_states=True)
    _, regions = supervision(tiny_model, scenes)
    states = tiny_model.image_encoder.fusion.semantics(regions.states).detach().double()
    names, temperature = tiny_model.alignment_targets(NAMES), tiny_model.likelihood.temperature.item()
    expected = [
        plain_cross_entropy((state - states.mean(0))[None], names, [label], temperature)
        for state, label in zip(states, regions.labels.tolist(), strict=True)
    ]
    weights = regions.weights.tolist()
    mean = sum(w * loss for w, loss in zip(weights, expected, strict=True)) / sum(weights)
    torch.manual_seed(7)
    losses = train_losses(tiny_model, scenes)
    assert losses["loss_alignment"].item() == pytest.approx(task.settings.alignment_weight * mean, rel=1e-4)


@pytest.mark.parametrize("unsure", [(), (2, 4)])
def test_the_centre_loss_is_a_mean_over_objects(tiny_model, scenes, unsure):
    """Of a federated sample, an image has its own categories, without those that it does not exhaustively annotate."""
    task = tiny_model.tasks["scenes"]
    if unsure:
        task.settings = dataclasses.replace(task.settings, federated_sample=len(NAMES))
        for item in scenes:
            item.update(category_images=[1] * len(NAMES), unsure_categories=())
        scenes[0]["unsure_categories"] = unsure
    targets, regions = supervision(tiny_model, scenes)
    names = torch.nn.functional.normalize(tiny_model.alignment_targets(NAMES).detach(), dim=-1)
    centres, total = tiny_model.image_encoder.centres, 0.0
    for image, cells in enumerate(centres.features(regions.fine)):
        own = set(targets.labels[image][targets.valid[image]].tolist())
        for label in own - set(unsure if image == 0 else ()) if unsure else range(len(NAMES)):
            logits = (cells * names[label][:, None, None]).sum(0) + centres.bias
            named = (targets.labels[image] == label) & targets.valid[image]
            height, width = scenes[image]["image"].shape[-2:]  # of a batch of 64 x 64 pixels
            boxes = targets.boxes[image : image + 1] * torch.tensor([width, height, width, height]) / 64
            heat = centre_heat(boxes, named[None, :, None], tuple(logits.shape))[0, 0]
            total += centre_losses(logits, heat).sum().item()
    torch.manual_seed(7)
    losses = train_losses(tiny_model, scenes)
    assert losses["loss_centre"].item() == pytest.approx(task.settings.centre_weight * total / 3, rel=1e-4)


@pytest.mark.parametrize(("boxes_from_masks", "steps"), [(False, 30), (True, 60)])
def test_a_batch_is_learned(tiny_config, scenes, boxes_from_masks, steps):
    """Boxes of masks are boxes of noise at first, so they take longer."""
    tiny_config.MODEL.UNIPERCEIVER_V2.REGION.BOXES_FROM_MASKS = boxes_from_masks
    model = build_model(tiny_config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(steps):
        losses = train_losses(model, scenes)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    first, last = ({n: sum(h[n] for h in part) / 3 for n in history[0]} for part in (history[:3], history[-3:]))
    assert sum(last.values()) < 0.6 * sum(first.values())
    for name in ("loss_box", "loss_mask", "loss_category"):
        assert last[name] < 0.9 * first[name], name


def check_instances(instances: Instances, item: dict, labels: int) -> None:
    assert instances.image_size == (item["height"], item["width"])
    assert set(instances.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
    scores = instances.scores
    assert (scores[:-1] >= scores[1:]).all()
    assert ((scores > 0) & (scores <= 1)).all()
    assert ((instances.pred_classes >= 0) & (instances.pred_classes < labels)).all()
    assert instances.pred_masks.shape == (len(instances), item["height"], item["width"])
    assert instances.pred_masks.dtype == torch.bool
    boxes = instances.pred_boxes.tensor
    assert (boxes >= 0).all()
    assert (boxes[:, 0::2] <= item["width"]).all()
    assert (boxes[:, 1::2] <= item["height"]).all()


def test_predictions_are_in_the_original_size(tiny_model, scenes):
    scenes[0].update(height=100, width=150)
    scenes[2].update(height=33, width=20)
    for item, prediction in zip(scenes, tiny_model(scenes), strict=True):
        assert prediction.keys() == {"instances"}
        # 12 proposals and 5 names.
        assert len(prediction["instances"]) == 60
        check_instances(prediction["instances"], item, labels=5)


@pytest.mark.parametrize("kind", ["detection", "grounding"])
def test_masks_that_are_not_learned_are_not_predicted(tiny_config, scenes, kind):
    tiny_config.MODEL.MASK_ON = False
    tiny_config.MODEL.UNIPERCEIVER_V2.REGION.BOXES_FROM_MASKS = True  # there is nothing to take them from
    model = build_model(tiny_config).eval()
    assert not model.image_encoder.regions.boxes_from_masks
    inputs = [{**item, "phrases": ("a boat",)} for item in scenes]
    for prediction in model.tasks[kind].predict(model, inputs):
        instances = prediction["instances"]
        assert len(instances) > 0 and instances.has("pred_boxes") and not instances.has("pred_masks")


def test_without_a_size_the_images_own_is_meant(tiny_model, scenes):
    item = {key: scenes[1][key] for key in ("image", "candidates")}
    instances = tiny_model([item])[0]["instances"]
    assert instances.image_size == (48, 64)
    assert instances.pred_masks.shape[1:] == (48, 64)


def test_a_label_set_of_the_users_own(tiny_model, scenes):
    """Only those labels are returned, as indices into the set, with scores that depend on the set."""
    for item in scenes:
        item["candidates"] = ("seven", "two")
    for item, prediction in zip(scenes, tiny_model(scenes), strict=True):
        instances = prediction["instances"]
        assert len(instances) == 24
        assert set(instances.pred_classes.tolist()) == {0, 1}
        check_instances(instances, item, labels=2)
    for item in scenes:
        item["candidates"] = ("two", "seven")
    swapped = tiny_model(scenes)[0]["instances"]
    first = tiny_model([{**x, "candidates": ("seven", "two")} for x in scenes])[0]["instances"]
    torch.testing.assert_close(swapped.scores, first.scores)
    assert torch.equal(swapped.pred_classes, 1 - first.pred_classes)


def test_a_proposals_scores_sum_to_its_objectness(tiny_model, scenes):
    encoding, _ = tiny_model.image_encoder(tiny_model.preprocess(scenes))
    expected = encoding.proposals.objectness.sigmoid().sum(1)
    for prediction, total in zip(tiny_model(scenes), expected, strict=True):
        assert prediction["instances"].scores.sum().item() == pytest.approx(total.item(), rel=1e-4)


@torch.no_grad()
def test_the_best_pairs_go_out(tiny_config, scenes):
    tiny_config.TEST.DETECTIONS_PER_IMAGE = 7
    model = build_model(tiny_config).eval()
    images = model.preprocess(scenes)
    encoding, _ = model.image_encoder(images)
    logits = model.likelihood(model.decode_proposals(encoding), model.encode_candidates(scenes[0]["candidates"]))
    for index, prediction in enumerate(model(scenes)):
        pairs = []
        for o, objectness in enumerate(encoding.proposals.objectness[index].tolist()):
            exponentials = [math.exp(x) for x in logits[index, o].tolist()]
            for c, e in enumerate(exponentials):
                pairs.append((e / sum(exponentials) / (1 + math.exp(-objectness)), o, c))
        pairs = sorted(pairs, reverse=True)[:7]
        instances = prediction["instances"]
        torch.testing.assert_close(instances.scores, torch.tensor([p[0] for p in pairs]), atol=1e-6, rtol=1e-4)
        assert instances.pred_classes.tolist() == [p[2] for p in pairs]
        height, width = images.image_sizes[index]
        for (_, o, _), box in zip(pairs, instances.pred_boxes.tensor.tolist(), strict=True):
            cx, cy, w, h = encoding.proposals.boxes[index, o].tolist()
            corners = [(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height]
            clipped = [min(max(x, 0), limit) for x, limit in zip(corners, [width, height] * 2, strict=True)]
            assert box == pytest.approx(clipped, abs=1e-3)


def make_proposals(masks: torch.Tensor) -> Proposals:
    """The proposals of one image with these mask logits [O,h,w], and boxes as large as the image."""
    count = len(masks)
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(count, 1)
    appearance = torch.zeros(1, count, 8)
    return Proposals(torch.zeros(1, count, 4), boxes[None], masks[None], torch.zeros(1, count), appearance)


def test_each_pair_gets_the_mask_of_its_proposal():
    """Proposal o covers row o of a 4×4 map. Both categories of proposal 2 have the highest scores, then one of
    proposal 0."""
    masks = torch.full((4, 4, 4), -5.0)
    masks[range(4), range(4)] = 5.0
    scores = torch.tensor([[0.1, 0.7], [0.0, 0.0], [0.9, 0.8], [0.0, 0.05]])
    found = best_pairs(scores, make_proposals(masks), 0, ImageSizes([(4, 4)], (4, 4)), count=3).instances((4, 4))
    assert found.pred_classes.tolist() == [0, 1, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert [mask.any(1).nonzero().flatten().tolist() for mask in found.pred_masks] == [[2], [2], [0]]


def test_more_detections_than_pairs_are_all_pairs():
    proposals = make_proposals(torch.zeros(2, 4, 4))
    found = best_pairs(torch.rand(2, 3), proposals, 0, ImageSizes([(4, 4)], (4, 4)), count=100)
    assert len(found) == 6


def test_a_mask_ends_at_its_box_where_it_is_learned_so():
    """The masks cover the image. The boxes are 2.5×1 pixels in the middle of row 1, and the lower left quarter."""
    proposals = make_proposals(torch.full((2, 4, 4), 5.0))
    proposals.boxes[0] = torch.tensor([[2.25 / 4, 1.5 / 4, 2.5 / 4, 1 / 4], [0.25, 0.75, 0.5, 0.5]])
    scores, sizes = torch.tensor([[0.9], [0.8]]), ImageSizes([(4, 4)], (4, 4))
    assert best_pairs(scores, proposals, 0, sizes, count=2).instances((4, 4)).pred_masks.all()
    proposals.masks_in_boxes = True
    found = best_pairs(scores, proposals, 0, sizes, count=2).instances((4, 4))
    # A pixel that a box only touches is the mask's still.
    assert found.pred_masks[0].nonzero().tolist() == [[1, 1], [1, 2], [1, 3]]
    assert found.pred_masks[1].nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([[1.0, 1.0, 3.5, 2.0], [0.0, 2.0, 2.0, 4.0]]))


def test_boxes_can_be_those_around_the_masks():
    """A 32×48 image in a batch of 64×64. Proposal 0's mask covers four logits, that is 16×16 pixels at (16, 8), of
    which its box leaves the right half. Proposal 1 has no mask and keeps its box."""
    masks = torch.full((2, 16, 16), -5.0)
    masks[0, 2:6, 4:8] = 5.0
    proposals, scores = make_proposals(masks), torch.tensor([[0.9], [0.8]])
    proposals.boxes[0] = torch.tensor([[28.5 / 48, 0.5, 8 / 48, 1.0], [0.5, 0.5, 0.5, 0.5]])
    proposals.masks_in_boxes = proposals.boxes_around_masks = True
    found = best_pairs(scores, proposals, 0, ImageSizes([(32, 48)], (64, 64)), count=2)
    expected = torch.tensor([[24.0, 8, 32, 24], [12, 8, 36, 24]])
    for size in ((32, 48), (64, 96)):
        boxes = found.instances(size).pred_boxes.tensor
        torch.testing.assert_close(boxes, expected * size[0] / 32)
        torch.testing.assert_close(found.boxes_at(size).tensor, boxes)
    proposals.boxes_around_masks = False
    plain = best_pairs(scores, proposals, 0, ImageSizes([(32, 48)], (64, 64)), count=2)
    torch.testing.assert_close(plain.boxes_at((32, 48)).tensor[0], torch.tensor([24.5, 0, 32.5, 32]))


def test_masks_are_cut_to_the_image_and_scaled():
    """The left third of a 32×48 image that is padded to 64×64, requested at twice its size."""
    logits = torch.full((1, 16, 16), -5.0)
    logits[..., :4] = 5.0  # 16 of 64 pixels
    own = paste_masks(logits, (32, 48), (64, 64), (32, 48))
    assert own.shape == (1, 32, 48)
    assert own.dtype == torch.bool
    assert torch.equal(own[0], (torch.arange(48) < 16).expand(32, 48))
    larger = paste_masks(logits, (32, 48), (64, 64), (64, 96))
    assert torch.equal(larger[0], (torch.arange(96) < 32).expand(64, 96))


def test_candidates_are_needed(tiny_model, scenes):
    del scenes[0]["candidates"]
    with pytest.raises(ValueError, match="candidates"):
        tiny_model(scenes)
