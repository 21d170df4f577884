"""The whole region network: scales, query selection, padding, denoising."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from uniperceiver_v2.modeling.image_encoder import RegionTargets
from uniperceiver_v2.modeling.image_encoder.conventions import Conventions
from uniperceiver_v2.modeling.image_encoder.criterion import RegionCriterion
from uniperceiver_v2.modeling.image_encoder.deformable_encoder import DeformableEncoder
from uniperceiver_v2.modeling.image_encoder.feature_maps import FeatureProjection, PixelEmbedding
from uniperceiver_v2.modeling.image_encoder.matcher import MatchCosts
from uniperceiver_v2.modeling.image_encoder.query_selection import QuerySelection
from uniperceiver_v2.modeling.image_encoder.region_decoder import RegionDecoder
from uniperceiver_v2.modeling.image_encoder.region_network import RegionNetwork
from uniperceiver_v2.modeling.image_encoder.structures import FeatureMaps, Matches, image_extent, on_padded_map
from uniperceiver_v2.modeling.layers import map_position_encoding

from .windows import inside

DIM, HEADS, POINTS, FFN_DIM = 16, 2, 2, 24
LOSSES = ("objectness", "box", "giou", "mask", "dice")


def randomise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)


def make_network(**changes) -> RegionNetwork:
    weights = dict.fromkeys(LOSSES, 1.0)
    settings = {
        "channels": [4, 6, 8],
        "dim": DIM,
        "mask_dim": 12,
        "heads": HEADS,
        "points": POINTS,
        "ffn_dim": FFN_DIM,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_queries": 6,
        "anchor_size": 0.2,
        "denoising_queries": 4,
        "box_noise": 0.4,
        "boxes_from_masks": False,
        "criterion": RegionCriterion(weights, MatchCosts(**weights), 16, 3.0, 0.75, one_to_many=3, masks_in_boxes=True),
    }
    network = RegionNetwork(**(settings | changes))
    randomise(network)
    return network


def make_maps(batch: int = 2) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Maps of strides 4, 8 and 16, and the valid pixels of 64×96 images. The last image is 40×64."""
    maps = [torch.randn(batch, c, 64 // s, 96 // s) for c, s in ((4, 4), (6, 8), (8, 16))]
    valid = torch.ones(batch, 64, 96, dtype=torch.bool)
    valid[-1, 40:] = False
    valid[-1, :, 64:] = False
    return maps, valid


def make_targets(counts=(2, 1)) -> RegionTargets:
    number = max(1, *counts)
    valid = torch.arange(number) < torch.tensor(counts)[:, None]
    boxes = (torch.rand(len(counts), number, 4) * 0.2 + 0.3) * valid[..., None]
    masks = (torch.rand(len(counts), number, 64, 96) < 0.5) & valid[..., None, None]
    return RegionTargets(boxes, masks, torch.zeros_like(valid, dtype=torch.int64), valid)


def test_scales():
    """Two backbone maps become scales, and a strided convolution adds the last one."""
    project, (maps, valid) = FeatureProjection([6, 8], DIM), make_maps()
    features = project(maps[1:], valid)
    assert features.spatial_shapes == [(8, 12), (4, 6), (2, 3)]
    assert features.tokens.shape == features.positions.shape == (2, 8 * 12 + 4 * 6 + 2 * 3, DIM)
    coarsest = project.projections[2](maps[2])
    assert coarsest.shape == (2, DIM, 2, 3)
    torch.testing.assert_close(features.tokens[:, -6:], coarsest.flatten(2).transpose(1, 2))
    torch.testing.assert_close(features.tokens[:, :96], project.projections[0](maps[1]).flatten(2).transpose(1, 2))
    # 40×64 of 64×96 pixels at strides 8, 16 and 32.
    finest = features.valid[1, :96].view(8, 12)
    assert torch.equal(finest, (torch.arange(8)[:, None] < 5) & (torch.arange(12) < 8))
    assert features.valid[0].all()
    expected = [[8 / 12, 5 / 8], [4 / 6, 3 / 4], [2 / 3, 2 / 2]]
    torch.testing.assert_close(features.extents[1], torch.tensor(expected))
    first = map_position_encoding(finest[None], DIM)[0] + project.scale_embedding[0]
    torch.testing.assert_close(features.positions[1, :96], first.flatten(0, 1))


def test_pixel_embeddings_have_the_size_of_the_finest_map():
    module = PixelEmbedding(4, DIM, 12)
    finest, encoded = torch.randn(2, 4, 16, 24, requires_grad=True), torch.randn(2, DIM, 8, 12, requires_grad=True)
    embedded = module(finest, encoded)
    assert embedded.shape == (2, 12, 16, 24)
    embedded.sum().backward()
    assert finest.grad.abs().sum() > 0
    assert encoded.grad.abs().sum() > 0


def padded_and_alone(size=((3, 4), (2, 2)), padded=((6, 6), (4, 3))) -> tuple[FeatureMaps, FeatureMaps]:
    """Features of one image alone, and the same in larger maps. The padding has numbers that must have no effect."""
    alone, larger = [], []
    for (h, w), (height, width) in zip(size, padded, strict=True):
        inner = torch.randn(1, h, w, DIM)
        outer = torch.randn(1, height, width, DIM) * 10
        outer[:, :h, :w] = inner
        valid = torch.zeros(1, height, width, dtype=torch.bool)
        valid[:, :h, :w] = True
        full = torch.ones(1, h, w, dtype=torch.bool)
        alone.append((inner, map_position_encoding(full, DIM), full, (1.0, 1.0)))
        larger.append((outer, map_position_encoding(valid, DIM), valid, (w / width, h / height)))

    def gather(parts) -> FeatureMaps:
        tokens, positions, valid = (torch.cat([part[i].flatten(1, 2) for part in parts], dim=1) for i in range(3))
        shapes = [tuple(part[0].shape[1:3]) for part in parts]
        return FeatureMaps(tokens, positions, valid, shapes, torch.tensor([[part[3] for part in parts]]))

    return gather(alone), gather(larger)


def test_padding_changes_nothing_from_scales_to_boxes():
    """Encoder, query selection and decoder give the same for an image alone and padded, even with numbers in the
    padding."""
    encoder = DeformableEncoder(2, DIM, HEADS, 2, POINTS, FFN_DIM)
    select = QuerySelection(DIM, num_queries=5, anchor_size=0.2)
    decoder = RegionDecoder(2, DIM, HEADS, 2, POINTS, FFN_DIM)
    for module in (encoder, select, decoder):
        randomise(module)
    outcomes = []
    for features in padded_and_alone():
        memory = encoder(features)
        dense, queries = select(memory, features)
        hidden, boxes = decoder(queries.contents, queries.boxes, memory, features)
        kept = features.valid[0]
        outcomes.append(
            (memory[:, kept], dense.objectness[:, kept], dense.boxes[:, kept], queries.boxes, hidden, boxes)
        )
    torch.testing.assert_close(*outcomes, atol=1e-5, rtol=1e-4)


def test_query_selection_keeps_the_most_promising_valid_tokens():
    select, (_, features) = QuerySelection(DIM, num_queries=4, anchor_size=0.2), padded_and_alone()
    randomise(select)
    dense, queries = select(features.tokens, features)
    logits = select.objectness(select.project(features.tokens))[0, :, 0]
    best = max(range(logits.numel()), key=lambda i: logits[i].item() if features.valid[0, i] else -1e9)
    order = logits.masked_fill(~features.valid[0], -1e9).topk(4).indices
    assert order[0] == best
    torch.testing.assert_close(queries.boxes[0], dense.boxes[0, order])
    torch.testing.assert_close(queries.contents[0], select.content(select.project(features.tokens))[0, order])
    assert (dense.objectness[~features.valid] < -1e3).all()


def test_anchors_double_with_each_scale():
    select, (features, _) = QuerySelection(DIM, num_queries=100, anchor_size=0.1), padded_and_alone()
    dense, queries = select(features.tokens, features)  # at the start nothing is corrected
    widths = torch.tensor([0.1] * 12 + [0.2] * 4)
    torch.testing.assert_close(dense.boxes[0, :, 2:], widths[:, None].expand(-1, 2))
    torch.testing.assert_close(dense.boxes[0, :, :2], dense.centres[0])
    torch.testing.assert_close(dense.centres[0, 5], torch.tensor([1.5 / 4, 1.5 / 3]))
    assert queries.boxes.shape == (1, 16, 4)  # no more queries than tokens


def test_the_decoder_does_not_teach_the_selected_boxes():
    network, (maps, valid) = make_network(), make_maps()
    output = network(maps, valid, make_targets())
    head = network.select.box_head.layers[-1].weight
    from_decoder = sum(x.sum() for x in (output.predictions.boxes, output.hidden))
    assert not torch.autograd.grad(from_decoder, head, retain_graph=True, allow_unused=True)[0]
    assert torch.autograd.grad(output.selected.boxes.sum(), head)[0].any()


def test_one_to_many_supervision_leaves_the_score_that_selects_alone():
    network, (maps, valid) = make_network(), make_maps()
    targets = make_targets()
    output, criterion, select = network(maps, valid, targets), network.criterion, network.select
    _, quality, matches = criterion.match(output.predictions, output.pixel_embeddings, targets, output.dense)
    dense = sum(criterion.dense_losses(output.dense, quality, matches, targets, 1.0).values())
    assert not torch.autograd.grad(dense, select.objectness.weight, retain_graph=True, allow_unused=True)[0]
    assert torch.autograd.grad(dense, select.one_to_many.weight, retain_graph=True)[0].any()
    # One-to-one: of the selected queries one is the answer for each object, the others are background.
    objectness = output.selected.objectness
    loss = network.losses(output, targets).losses["loss_objectness"]
    gradient, p = torch.autograd.grad(loss, objectness)[0][0], objectness[0].sigmoid()
    as_background = torch.isclose(gradient, p**2.5 / 3, rtol=1e-3, atol=1e-6)  # of 3 objects
    assert (~as_background).sum(1).tolist() == [2, 1]


@torch.no_grad()
def test_denoising_queries_see_the_ordinary_ones():
    network, (maps, valid) = make_network(box_noise=0.0).eval(), make_maps()
    targets = make_targets()
    found = []
    for queries in (6, 2):
        network.select.num_queries = queries
        output = network(maps, valid, targets)
        found.append(output.hidden[:, 0, : output.num_denoising])
    assert found[0].shape == found[1].shape
    assert (found[0] - found[1]).abs().amax() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("masks_in_boxes", [False, True])
def test_queries_can_begin_with_the_boxes_of_their_masks(masks_in_boxes):
    network, (maps, valid) = make_network(boxes_from_masks=True).eval(), make_maps()
    network.criterion.masks_in_boxes = masks_in_boxes
    initial = []
    network.decoder.register_forward_pre_hook(lambda module, args: initial.append(args[1]))
    output = network(maps, valid, make_targets())
    network(maps, valid, None)
    found, alone = initial[0][:, output.num_denoising :], initial[1]
    torch.testing.assert_close(found, alone)
    selected = output.selected
    changed = 0
    for image, (width, height) in enumerate(((24, 16), (16, 10))):
        for query in range(6):
            logits = torch.einsum(
                "d,dhw->hw", selected.mask_embeddings[0, image, query], output.pixel_embeddings[image]
            )
            inside = logits[:height, :width] > 0
            cx, cy, w, h = selected.boxes[0, image, query].tolist()
            if masks_in_boxes:  # the pixels of the window that its box and a margin touch
                for x, y in itertools.product(range(width), range(height)):
                    inside[y, x] &= abs((x + 0.5) / width - cx) < 0.6 * w + 0.5 / width
                    inside[y, x] &= abs((y + 0.5) / height - cy) < 0.6 * h + 0.5 / height
            expected = [cx, cy, w, h]
            if inside.any():
                ys, xs = inside.nonzero(as_tuple=True)
                x0, x1, y0, y1 = xs.min() / width, (xs.max() + 1) / width, ys.min() / height, (ys.max() + 1) / height
                expected = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
                changed += 1
            assert found[image, query].tolist() == pytest.approx([float(x) for x in expected], abs=1e-5)
    assert changed > 6


def test_without_targets_the_proposals_are_the_same_and_what_losses_alone_read_is_left_out():
    network, (maps, valid) = make_network().eval(), make_maps()
    network.denoising_queries = 0
    without, complete = network(maps, valid, None), network(maps, valid, make_targets())
    torch.testing.assert_close(vars(without.proposals()), vars(complete.proposals()), atol=1e-5, rtol=1e-5)
    assert without.dense is None
    assert complete.dense is not None
    assert (len(without.hidden), len(complete.hidden)) == (1, 2)
    assert (len(without.predictions.mask_embeddings), len(complete.predictions.mask_embeddings)) == (1, 2)


def test_padding_may_count_as_image():
    """An image in padding has the losses and the proposals of the larger image that it then is."""
    network = make_network(conventions=Conventions(padding_is_image=True))
    maps, valid = make_maps()
    extent, targets = image_extent(valid), make_targets()
    larger = replace(targets, boxes=on_padded_map(targets.boxes, extent))
    found = []
    for pixels, its, padding in (
        (valid, replace(targets, extent=extent), True),
        (torch.ones_like(valid), larger, False),
    ):
        torch.manual_seed(0)
        output = network(maps, pixels, its, padding)
        found.append((network.losses(output, its).losses, output.proposals()))
    (losses, proposals), (its_losses, its_proposals) = found
    assert losses.keys() == its_losses.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, its_losses[name])
    torch.testing.assert_close(proposals.masks, its_proposals.masks)
    torch.testing.assert_close(on_padded_map(proposals.boxes, extent), its_proposals.boxes)
    assert not torch.allclose(proposals.boxes[1], its_proposals.boxes[1])


def test_denoising_queries_do_not_leak():
    network, (maps, valid) = make_network().eval(), make_maps()
    targets = make_targets()
    with_known = network(maps, valid, targets)
    number, network.denoising_queries = network.denoising_queries, 0
    without = network(maps, valid, targets)
    network.denoising_queries = number
    count = with_known.num_denoising
    assert count == 2 * 2 * 2
    assert without.num_denoising == 0
    ordinary = slice(count, None)
    torch.testing.assert_close(with_known.hidden[:, :, ordinary], without.hidden, atol=1e-5, rtol=1e-4)
    found, expected = with_known.predictions.queries(ordinary), without.predictions
    torch.testing.assert_close(vars(found), vars(expected), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vars(with_known.proposals()), vars(without.proposals()), atol=1e-4, rtol=1e-4)

    # And the answers are nowhere else: gradients of the ordinary queries' outputs with respect to the known boxes.
    targets.boxes.requires_grad_()
    output = network(maps, valid, targets)
    assert not torch.autograd.grad(output.hidden[:, :, ordinary].sum(), targets.boxes, allow_unused=True)[0]


@torch.no_grad()
def test_padded_targets_change_nothing_for_denoising():
    """An image's denoising queries do not depend on its neighbours. They are defined for an image without objects,
    too."""
    network, (maps, valid) = make_network(box_noise=0.0, denoising_queries=1).eval(), make_maps()
    targets, crowded = make_targets((1, 0)), make_targets((1, 3))
    crowded.boxes[0, 0] = targets.boxes[0, 0]
    found = [network(maps, valid, x) for x in (targets, crowded)]
    first, second = (
        x.hidden[:, 0, : x.num_denoising][:, x.denoising.positive[0] | x.denoising.negative[0]] for x in found
    )
    assert first.shape == (2, 2, DIM)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)
    assert found[0].hidden.isfinite().all()


def test_masks_are_products_of_mask_and_pixel_embeddings():
    network, (maps, valid) = make_network().eval(), make_maps()
    output = network(maps, valid, None)
    masks = output.proposals().masks
    assert masks.shape == (2, 6, 16, 24)
    embeddings, pixels = output.predictions.mask_embeddings[-1], output.pixel_embeddings
    torch.testing.assert_close(masks[1, 2, 3, 4], embeddings[1, 2] @ pixels[1, :, 3, 4])


@pytest.mark.parametrize("masks_in_boxes", [False, True])
def test_appearance_is_averaged_over_the_whole_mask_unless_it_ends_at_its_box(masks_in_boxes):
    network, (maps, valid) = make_network().eval(), make_maps()
    network.criterion.masks_in_boxes = masks_in_boxes
    output = network(maps, valid, None)
    proposals = output.proposals()
    # The last image covers 10×16 of the map's 16×24 pixels.
    box = proposals.boxes[1, 2].tolist() if masks_in_boxes else [0.5, 0.5, 1.0, 1.0]
    weight = proposals.masks[1, 2].sigmoid() * inside(box, (10, 16), (16, 24))
    torch.testing.assert_close(proposals.appearance[1, 2], (maps[0][1] * weight).sum((1, 2)) / weight.sum())


@pytest.mark.parametrize("counts", [(2, 1), (0, 3), (0, 0)])
@pytest.mark.parametrize("number", [0, 4])
def test_losses_are_finite_and_reach_every_parameter(counts, number):
    network, (maps, valid) = make_network(denoising_queries=number), make_maps()
    targets = make_targets(counts)
    output = network(maps, valid, targets)
    supervision = network.losses(output, targets)
    assert set(supervision.losses) == {f"loss_{name}" for name in LOSSES}
    assert all(value.isfinite() for value in supervision.losses.values())
    assert len(supervision.matches.image) == sum(counts)
    assert supervision.states.shape == (len(supervision.labels), DIM)
    sum(supervision.losses.values(), supervision.states.sum()).backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    assert all(g is None or g.isfinite().all() for g in gradients.values())
    if sum(counts):
        unreached = {name for name, g in gradients.items() if g is None or not g.any()}
        assert unreached <= (set() if number else {"denoising_content"})


def test_losses_sum_encoder_selection_decoder_and_denoising():
    network, (maps, valid) = make_network(), make_maps()
    targets = make_targets()
    output = network(maps, valid, targets)
    torch.manual_seed(1)
    losses = network.losses(output, targets).losses
    torch.manual_seed(1)
    criterion, count = network.criterion, output.num_denoising
    ordinary, known = output.predictions.queries(slice(count, None)), output.predictions.queries(slice(0, count))
    matches, quality, dense = criterion.match(
        ordinary.after(output.selected), output.pixel_embeddings, targets, output.dense
    )
    selected, matches = matches.split(3, 1)
    assert (selected.layer.tolist(), sorted(set(matches.layer.tolist()))) == ([0] * 3, [0, 1])
    nothing = Matches(*torch.zeros(4, 0, dtype=torch.int64))
    parts = [
        criterion.losses(ordinary, matches, output.pixel_embeddings, targets, 3.0)[0],
        criterion.losses(known, nothing, output.pixel_embeddings, targets, 3.0, output.denoising)[0],
        criterion.losses(output.selected, selected, output.pixel_embeddings, targets, 3.0)[0],
        criterion.dense_losses(output.dense, quality, dense, targets, 3.0),
    ]
    assert all(value > 0 for value in parts[2].values())
    for name in LOSSES:
        torch.testing.assert_close(losses[f"loss_{name}"], sum(part.get(name, torch.tensor(0.0)) for part in parts))


def test_states_that_answer_for_objects_and_their_labels():
    """States of all decoder layers, of the denoising queries, and of the encoder's tokens."""
    network, (maps, valid) = make_network(), make_maps()
    targets = make_targets((2, 1))
    targets.labels[0] = torch.tensor([4, 7])
    targets.labels[1, 0] = 5
    output = network(maps, valid, targets)
    supervision = network.losses(output, targets)
    rows = [(state, label.item()) for state, label in zip(supervision.states, supervision.labels, strict=True)]

    def labels_of(wanted: torch.Tensor) -> list[int]:
        return [label for state, label in rows if torch.allclose(state, wanted, atol=1e-4)]

    matches = supervision.matches
    for image, query, target in zip(matches.image, matches.query, matches.target, strict=True):
        last = output.hidden[-1, image, output.num_denoising + query]
        assert labels_of(last) == [targets.labels[image, target].item()]
    # Four near misses, in two groups of the targets 0 and 1, then as many wide ones.
    for query, label in enumerate((4, 7, 4, 7)):
        for layer in range(2):
            assert labels_of(output.hidden[layer, 0, query]) == [label]
    for query in (4, 5, 6, 7):
        assert labels_of(output.hidden[0, 0, query]) == []
    _, _, dense = network.criterion.match(output.predictions, output.pixel_embeddings, targets, output.dense)
    assert len(dense.image) > 0
    for image, token, target in zip(dense.image, dense.query, dense.target, strict=True):
        content = network.select.content(output.dense.tokens[image, token])
        assert labels_of(content) == [targets.labels[image, target].item()]
    # Of each layer three matches, and four near misses of each image: half a state's weight in the first image, where
    # two are of the same object, and a quarter in the second.
    assert len(rows) == 2 * 3 + 2 * 8 + len(dense.image)
    assert sorted(supervision.weights.tolist()) == [0.25] * 8 + [0.5] * 8 + [1.0] * (6 + len(dense.image))
