"""Matching and losses of the region network beside Hugging Face's, forward and backward.

    python projects/uniperceiver_v2/benchmarks/criterion.py [--quick]

Both sides get the same predictions of all decoder layers, and the same objects, of one class. They match predictions
and objects in each layer, and compute the gradients of the summed losses with respect to the predictions.

* boxes: The peer is DeformableDetrForObjectDetectionLoss with auxiliary losses: matching by focal, L1 and GIoU costs;
focal, L1 and GIoU losses; counts of predictions for its log. Our side calls our functions for the same parts.
* boxes and masks: The peer is Mask2FormerLoss with auxiliary losses: matching by class, mask and dice costs at P random
points; cross-entropy, mask and dice losses at P of 3·P points, three quarters of them the most uncertain. It has no
boxes. Our side matches by boxes and masks, learns both, and draws points in the objects' boxes. So it does more work
than the peer. Mask2Former's masks are maps of logits of all queries in all layers, which its decoder computes from
embeddings. Our losses compute only the values that they need. Therefore there are two rows. In "from embeddings" the
peer computes its maps, too, and the gradients of the embeddings. In "maps given" it does not, which favours the peer.

Denoising queries are left out, as the peers do not have them. The last row is the peak memory "from embeddings", with
the data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import harness
import torch
from torch import Tensor
from transformers import DeformableDetrConfig, Mask2FormerConfig
from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from uniperceiver_v2.modeling.image_encoder.criterion import RegionCriterion, RegionPredictions, detection_losses
from uniperceiver_v2.modeling.image_encoder.matcher import MatchCosts, assign, pairwise_box_costs, rows_of_images
from uniperceiver_v2.modeling.image_encoder.query_selection import DensePredictions
from uniperceiver_v2.modeling.image_encoder.structures import RegionTargets
from uniperceiver_v2.transfer import fetch

WEIGHTS = {"objectness": 2.0, "box": 5.0, "giou": 2.0, "mask": 4.0, "dice": 4.0}
STRIDE = 4  # of the mask logits


@dataclass
class Scale:
    """The size of a case: images of ``side`` pixels, and ``objects`` is the range of their numbers of objects."""

    name: str
    batch: int
    layers: int
    queries: int
    objects: tuple[int, int]
    side: int
    mask_dim: int
    points: int


TINY = Scale("digit_scenes", 8, 3, 30, (1, 6), 96, 64, 400)
COCO = Scale("800 px", 2, 6, 300, (5, 20), 800, 256, 12544)
COCO_8 = Scale("800 px", 8, 6, 300, (5, 20), 800, 256, 12544)


def make_targets(scale: Scale, device: str) -> RegionTargets:
    """Ellipses in boxes whose sides are 5 to 35 percent of the image's."""
    low, high = scale.objects
    counts = torch.randint(low, high + 1, (scale.batch,))
    counts[0] = high
    valid = torch.arange(high) < counts[:, None]
    size = torch.rand(scale.batch, high, 2) * 0.3 + 0.05
    boxes = torch.cat((torch.rand(scale.batch, high, 2) * (1 - size) + size / 2, size), dim=-1)
    places = (torch.arange(scale.side) + 0.5) / scale.side
    x, y = ((places - boxes[..., i, None]) / boxes[..., i + 2, None] * 2 for i in (0, 1))
    masks = (x[..., None, :] ** 2 + y[..., None] ** 2 <= 1) & valid[..., None, None]
    parts = boxes * valid[..., None], masks, torch.zeros_like(valid, dtype=torch.int64), valid
    return RegionTargets(*(part.to(device) for part in parts), extent=torch.ones(scale.batch, 2, device=device))


def make_predictions(scale: Scale, targets: RegionTargets) -> RegionPredictions:
    """Boxes near those of random objects, as after some training, with random logits and masks."""
    shape, device = (scale.layers, scale.batch, scale.queries), targets.boxes.device
    which = torch.randint(10**6, shape[1:], device=device) % targets.valid.sum(1, keepdim=True)
    near = targets.boxes.gather(1, which[..., None].expand(-1, -1, 4))
    return RegionPredictions(
        (torch.randn(shape, device=device) - 2).requires_grad_(),
        (near + torch.randn(*shape, 4, device=device) * 0.05).clamp(0.02, 0.98).requires_grad_(),
        (torch.randn(*shape, scale.mask_dim, device=device) / scale.mask_dim**0.5).requires_grad_(),
    )


def gradients(losses: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(losses, leaves)


def boxes_row(scale: Scale, device: str) -> harness.Row:
    targets = make_targets(scale, device)
    predictions = make_predictions(scale, targets)
    leaves = predictions.objectness, predictions.boxes
    costs = MatchCosts(**WEIGHTS)

    def ours() -> tuple[Tensor, ...]:
        with torch.no_grad():
            rows = (rows_of_images(x) for x in leaves)
            cost = pairwise_box_costs(*rows, targets, costs).unflatten(1, (scale.layers, -1))
            matches = assign(*fetch(cost), targets.counts).to(cost.device)
        sums = detection_losses(predictions, matches, targets, None)
        num_objects = targets.valid.sum().clamp(min=1)
        return gradients(sum(WEIGHTS[name] * value / num_objects for name, value in sums.items()), *leaves)

    config = DeformableDetrConfig(
        num_labels=1,
        auxiliary_loss=True,
        decoder_layers=scale.layers,
        class_cost=int(costs.objectness),
        bbox_cost=int(costs.box),
        giou_cost=int(costs.giou),
    )
    labels = [
        {"class_labels": labels[valid], "boxes": boxes[valid]}
        for labels, boxes, valid in zip(targets.labels, targets.boxes, targets.valid, strict=True)
    ]
    logits, boxes = predictions.objectness.unsqueeze(-1), predictions.boxes

    def peer() -> tuple[Tensor, ...]:
        last = {"logits": logits[-1], "pred_boxes": boxes[-1]}
        loss, _, _ = DeformableDetrForObjectDetectionLoss(
            **last, labels=labels, device=device, config=config, outputs_class=logits, outputs_coord=boxes
        )
        return gradients(loss, *leaves)

    return harness.compare(
        f"boxes, {describe(scale)}", ours, peer, peer_name="DeformableDetrForObjectDetectionLoss", at_least=3.0
    )


def describe(scale: Scale) -> str:
    low, high = scale.objects
    return f"{scale.name}, B {scale.batch}, {scale.layers} layers, {scale.queries} queries, {low} to {high} objects"


def mask_work(scale: Scale, device: str, maps_given: bool) -> tuple[Callable[[], object], Callable[[], object]]:
    """Ours and the peer's."""
    targets = make_targets(scale, device)
    predictions = make_predictions(scale, targets)
    side = scale.side // STRIDE
    pixels = torch.randn(scale.batch, scale.mask_dim, side, side, device=device, requires_grad=True)
    return our_masks(scale, targets, predictions, pixels), peer_masks(scale, targets, predictions, pixels, maps_given)


def our_masks(
    scale: Scale, targets: RegionTargets, predictions: RegionPredictions, pixels: Tensor
) -> Callable[[], object]:
    criterion = RegionCriterion(
        WEIGHTS, MatchCosts(**WEIGHTS), scale.points, 3.0, 0.75, one_to_many=9, masks_in_boxes=True
    )
    leaves = predictions.objectness, predictions.boxes, predictions.mask_embeddings, pixels
    boxes = targets.boxes[:, :1]  # of a single token, as the peer has none
    dense = DensePredictions(
        boxes[..., 0], boxes, boxes[..., :2], torch.ones_like(boxes[..., 0], dtype=torch.bool), boxes
    )

    def work() -> tuple[Tensor, ...]:
        matches, _, _ = criterion.match(predictions, pixels, targets, dense)
        losses, _ = criterion.losses(predictions, matches, pixels, targets, targets.valid.sum().clamp(min=1))
        return gradients(sum(losses.values()), *leaves)

    return work


def peer_masks(
    scale: Scale, targets: RegionTargets, predictions: RegionPredictions, pixels: Tensor, maps_given: bool
) -> Callable[[], object]:
    config = Mask2FormerConfig(
        num_labels=1, train_num_points=scale.points, oversample_ratio=3.0, importance_sample_ratio=0.75
    )
    weights = {"loss_cross_entropy": 2.0, "loss_mask": WEIGHTS["mask"], "loss_dice": WEIGHTS["dice"]}
    criterion = Mask2FormerLoss(config, weights).to(pixels.device)
    masks = [masks[valid].float() for masks, valid in zip(targets.masks, targets.valid, strict=True)]
    labels = [labels[valid] for labels, valid in zip(targets.labels, targets.valid, strict=True)]
    logits = torch.stack((predictions.objectness, -predictions.objectness), dim=-1).detach().requires_grad_()

    def make_maps() -> Tensor:
        return torch.einsum("lbqd,bdhw->lbqhw", predictions.mask_embeddings, pixels)

    given = make_maps().detach().requires_grad_() if maps_given else None

    def work() -> tuple[Tensor, ...]:
        maps = make_maps() if given is None else given
        layers = [{"masks_queries_logits": m, "class_queries_logits": c} for m, c in zip(maps, logits, strict=True)]
        losses = criterion(**layers[-1], mask_labels=masks, class_labels=labels, auxiliary_predictions=layers[:-1])
        total = sum(weights[w] * loss for name, loss in losses.items() for w in weights if name.startswith(w))
        return gradients(total, logits, *((predictions.mask_embeddings, pixels) if given is None else (given,)))

    return work


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    for scale in (TINY, COCO, COCO_8):
        yield boxes_row(scale, args.device)
    for scale in (TINY,) if args.quick else (TINY, COCO):
        for maps_given, what in ((False, "from embeddings"), (True, "maps given")):
            name = f"boxes and masks, {describe(scale)}, {scale.points} points"
            ours, peer = mask_work(scale, args.device, maps_given)
            yield harness.compare(name, ours, peer, peer_name=f"Mask2FormerLoss, {what}", at_least=3.0)
    memory = [lambda side=side: mask_work(COCO, args.device, maps_given=False)[side]() for side in (0, 1)]
    if not args.quick:
        yield harness.compare_memory(
            f"memory of the same, {COCO.name}", *memory, peer_name="Mask2FormerLoss, from embeddings", at_most=1.0
        )


if __name__ == "__main__":
    harness.main(__doc__, rows)
