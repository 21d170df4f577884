"""The class-agnostic region proposal network (Uni-Perceiver v2): Mask DINO with one foreground class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...ranks import mean_divisor, sum_over_ranks
from ..layers import MLP, DeformableAttention, compile_modules
from ..layers.compilation import Backend
from .boxes import touched
from .centre_map import FineMap, convolution
from .conventions import Conventions
from .criterion import RegionCriterion, RegionPredictions, mask_windows
from .deformable_encoder import DeformableEncoder
from .denoising import DenoisingQueries, denoising_attention_mask, make_denoising_queries
from .feature_maps import FeatureProjection, PixelEmbedding
from .query_selection import DensePredictions, Queries, QuerySelection, largest
from .region_decoder import RegionDecoder
from .structures import (
    Matches,
    Proposals,
    RegionTargets,
    average_over_masks,
    boxes_of_masks,
    image_extent,
    on_image,
    on_padded_map,
)


@dataclass
class RegionOutput:
    """Output of a forward pass, for the losses and for the rest of the image encoder.

    Attributes:
        hidden: [layers,B,D+O,dim], states of the D denoising and the O ordinary queries. Without targets, D is 0 and
            only the last layer is there.
        predictions: of the same layers and queries.
        selected: the encoder's own predictions for the O selected queries, as of one layer; None without targets.
        pixel_embeddings: [B,dim,h,w].
        finest: [B,channels,h,w], the backbone's finest map.
        dense: predictions of the encoder's tokens; None without targets.
        denoising: the denoising queries; None without targets.
        extent: [B,2], see `structures.image_extent`.
        masks_in_boxes: see `Proposals`.
        padding_is_image: see `Conventions`. Boxes are then those of the padded map.
        fine: [B,fine_dim,h,w], the fine map, if there is one.
    """

    hidden: Tensor
    predictions: RegionPredictions
    selected: RegionPredictions | None
    pixel_embeddings: Tensor
    finest: Tensor
    dense: DensePredictions | None
    denoising: DenoisingQueries | None
    extent: Tensor
    masks_in_boxes: bool
    padding_is_image: bool
    fine: Tensor | None = None

    @property
    def num_denoising(self) -> int:
        return 0 if self.denoising is None else self.denoising.boxes.shape[1]

    def proposals(self) -> Proposals:
        """The proposals: the last layer's predictions for the ordinary queries."""
        ordinary = slice(self.num_denoising, None)
        boxes = self.predictions.boxes[-1][:, ordinary]
        boxes = on_image(boxes, self.extent) if self.padding_is_image else boxes
        masks = mask_logits(self.predictions.mask_embeddings[-1][:, ordinary], self.pixel_embeddings)
        windows = boxes if self.masks_in_boxes else whole_map(boxes)
        return Proposals(
            semantics=self.hidden[-1][:, ordinary],
            boxes=boxes,
            masks=masks,
            objectness=self.predictions.objectness[-1][:, ordinary],
            appearance=average_over_masks(self.finest, masks, on_padded_map(windows, self.extent)),
            extent=self.extent,
            masks_in_boxes=self.masks_in_boxes,
        )


def whole_map(boxes: Tensor) -> Tensor:
    """Boxes (0.5, 0.5, 1, 1), as many as these [...,4]."""
    return torch.cat((torch.full_like(boxes[..., :2], 0.5), torch.ones_like(boxes[..., 2:])), dim=-1)


def mask_logits(mask_embeddings: Tensor, pixel_embeddings: Tensor) -> Tensor:
    """[B,Q,h,w] of mask embeddings [B,Q,dim] and pixel embeddings [B,dim,h,w]."""
    return torch.einsum("bqd,bdhw->bqhw", mask_embeddings, pixel_embeddings)


@dataclass
class RegionSupervision:
    """Losses of the region network, and its matches with objects for the losses of the tasks.

    Attributes:
        losses: scalars by name.
        matches: of the last layer. Query numbers are proposal numbers.
        states: [K,dim], the states that are matched with an object: encoder tokens by the one-to-many assignment,
            queries of all decoder layers by the one-to-one matching, and near misses among the denoising queries.
        labels: [K] int64, the category of each state's object.
        weights: [K], with which states count: the near misses of an object count together as one for each layer.
        fine: see `RegionOutput`.
    """

    losses: dict[str, Tensor]
    matches: Matches
    states: Tensor
    labels: Tensor
    weights: Tensor
    fine: Tensor | None = None


class RegionNetwork(nn.Module):
    """Deformable encoder, two-stage query selection, decoder with iterative box refinement and denoising, masks.

    Args:
        channels: channels of all backbone maps, finest first. Masks use the finest one.
        dim, heads, points, ffn_dim: sizes of both Transformers.
        mask_dim: width of the pixel and mask embeddings.
        encoder_layers, decoder_layers: depths of the two Transformers.
        num_queries: O.
        anchor_size: side of a token's anchor box at the finest scale, as a share of the image.
        denoising_queries: near misses of an image in denoising training, about; as many wide misses are added. Their
            groups adapt to the objects, see `make_denoising_queries`. 0 turns denoising off.
        box_noise: see `make_denoising_queries`.
        boxes_from_masks: whether queries begin with the boxes of their masks instead of those that their tokens predict
            (Mask DINO, "mask-enhanced anchor box initialization").
        criterion: the losses.
        first_scale: the number of the finest backbone map that is a scale; 0 makes all of them scales.
        extra_scales: see `FeatureProjection`.
        objectness_parts: see `largest`.
        fine_dim: width of the fine map, whose features enter the finest scale; 0: none.
        fine_stride: the stride of the finest scale in cells of the fine map.
        conventions: what differs in networks with weights from elsewhere.
    """

    def __init__(
        self,
        channels: list[int],
        dim: int,
        mask_dim: int,
        heads: int,
        points: int,
        ffn_dim: int,
        encoder_layers: int,
        decoder_layers: int,
        num_queries: int,
        anchor_size: float,
        denoising_queries: int,
        box_noise: float,
        boxes_from_masks: bool,
        criterion: RegionCriterion,
        first_scale: int = 1,
        extra_scales: int = 1,
        objectness_parts: int = 1,
        fine_dim: int = 0,
        fine_stride: int = 2,
        conventions: Conventions | None = None,
    ):
        super().__init__()
        self.conventions = conventions = conventions or Conventions()
        self.first_scale, levels = first_scale, len(channels) - first_scale + extra_scales
        self.project = FeatureProjection(channels[first_scale:], dim, extra_scales, conventions.position_in_pixel)
        self.fine = FineMap(channels, fine_dim) if fine_dim else None
        self.detail = convolution(fine_dim, dim, stride=fine_stride) if fine_dim else None
        self.encoder = DeformableEncoder(encoder_layers, dim, heads, levels, points, ffn_dim)
        self.pixel_embedding = PixelEmbedding(channels[0], dim, mask_dim)
        self.select = QuerySelection(dim, num_queries, anchor_size, objectness_parts, conventions)
        self.decoder = RegionDecoder(decoder_layers, dim, heads, levels, points, ffn_dim)
        self.norm = nn.LayerNorm(dim)
        self.objectness = nn.Linear(dim, objectness_parts)
        self.mask_embedding = MLP(dim, dim, mask_dim, depth=3)
        self.denoising_content = nn.Parameter(torch.randn(dim) * 0.02)
        self.denoising_queries, self.box_noise = denoising_queries, box_noise
        self.boxes_from_masks = boxes_from_masks
        self.criterion = criterion
        nn.init.constant_(self.objectness.bias, -2.0)

    def compile_layers(self, backend: Backend = "inductor") -> None:
        """Lets torch.compile compile the layers, the projections of maps and the position encodings, in place, on first
        use. Parameters keep their names, and a graph serves images of all sizes. A layer is one graph up to the
        sampling of its deformable attention, and one behind it."""
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.sample_uncompiled()
        others = (self.pixel_embedding, self.decoder.position)
        compile_modules((*self.encoder.layers, *self.decoder.layers, *others), backend)

    def forward(
        self, maps: list[Tensor], valid: Tensor, targets: RegionTargets | None, has_padding: bool = True
    ) -> RegionOutput:
        """
        Args:
            maps: [B,C,h,w] backbone maps, finest first.
            valid: [B,H,W] bool of the batch of images.
            targets: given in training, where they add denoising queries. Without them the output leaves out everything
                that only losses need: the dense predictions, and all decoder layers except the last.
            has_padding: False if `valid` is all True.
        """
        own_extent = image_extent(valid)
        if self.conventions.padding_is_image:
            valid, has_padding = torch.ones_like(valid), False
            targets = None if targets is None else targets.of_padded_map()
        fine = None if self.fine is None else self.fine(maps)
        detail = None if self.detail is None else self.detail(fine)
        features = self.project(maps[self.first_scale :], valid, has_padding, detail)
        memory = self.encoder(features)
        height, width = features.spatial_shapes[0]
        finest = memory[:, : height * width].transpose(1, 2).unflatten(2, (height, width))
        pixel_embeddings = self.pixel_embedding(maps[0], finest)
        dense, queries = self.select(memory, features, dense=targets is not None)
        extent = image_extent(valid)
        selected, initial = self._selection(queries, pixel_embeddings, extent, with_losses=targets is not None)

        contents, boxes, mask, denoising = queries.contents, initial, None, None
        if targets is not None and self.denoising_queries > 0:
            denoising = make_denoising_queries(targets, self.denoising_queries, self.box_noise)
            mask = denoising_attention_mask(denoising, contents.shape[1])
            known = self.denoising_content.to(contents.dtype).expand(*denoising.boxes.shape[:2], -1)
            contents, boxes = torch.cat((known, contents), dim=1), torch.cat((denoising.boxes, boxes), dim=1)
        normalise = self.norm if self.conventions.decoder_normalises else None
        scores = queries.objectness.detach()
        hidden, boxes = self.decoder(contents, boxes, memory, features, mask, scores, self._judge, normalise)
        if targets is None:
            hidden, boxes = hidden[-1:], boxes[-1:]
        normalised = self._normalised(hidden)
        return RegionOutput(
            hidden=normalised,
            predictions=RegionPredictions(largest(self.objectness(normalised)), boxes, self.mask_embedding(normalised)),
            selected=selected,
            pixel_embeddings=pixel_embeddings,
            finest=maps[0],
            dense=dense,
            denoising=denoising,
            extent=own_extent,
            masks_in_boxes=self.criterion.masks_in_boxes,
            padding_is_image=self.conventions.padding_is_image,
            fine=fine,
        )

    def _judge(self, states: Tensor) -> Tensor:
        """Objectness logits [B,O] of decoder states [B,O,dim]."""
        return largest(self.objectness(self._normalised(states)))

    def _normalised(self, states: Tensor) -> Tensor:
        """Decoder states as the heads read them, except that of boxes."""
        return self.norm(self.norm(states) if self.conventions.decoder_normalises else states)

    def _selection(
        self, queries: Queries, pixel_embeddings: Tensor, extent: Tensor, with_losses: bool
    ) -> tuple[RegionPredictions | None, Tensor]:
        """The encoder's own predictions for the selected queries if a loss needs them, and the boxes [B,O,4] with which
        the queries enter the decoder. Gradients of the decoder reach the encoder through the contents only."""
        boxes = queries.boxes.detach()
        if not with_losses and not self.boxes_from_masks:
            return None, boxes
        embeddings = self.mask_embedding(self.norm(queries.contents))
        selected = RegionPredictions(queries.objectness[None], queries.boxes[None], embeddings[None])
        if self.boxes_from_masks:
            with torch.no_grad():
                inside = mask_logits(embeddings, pixel_embeddings) > 0
                if self.criterion.masks_in_boxes:
                    inside &= touched(mask_windows(on_padded_map(boxes, extent)), inside.shape[-2:])
                nothing = self.conventions.box_of_no_pixel
                otherwise = (
                    boxes
                    if nothing is None
                    else torch.stack([torch.full_like(boxes[..., 0], side) for side in nothing], -1)
                )
                boxes = boxes_of_masks(inside, extent, otherwise, self.conventions.last_pixel_counts)
        return (selected if with_losses else None), boxes

    def losses(self, output: RegionOutput, targets: RegionTargets) -> RegionSupervision:
        """The losses by name, each summed over the encoder, its selection, the decoder's layers and denoising."""
        targets = targets.of_padded_map() if output.padding_is_image else targets
        ordinary = output.predictions.queries(slice(output.num_denoising, None)).after(output.selected)
        layers, pixels = len(ordinary.objectness), output.pixel_embeddings
        matches, quality, dense = self.criterion.match(ordinary, pixels, targets, output.dense)
        selected, matches = matches.split(layers, 1)
        dense = dense.to(pixels.device)
        num_objects = mean_divisor(sum_over_ranks(targets.valid.sum()))[0]
        decoded, answering = self.criterion.losses(
            output.predictions, matches, pixels, targets, num_objects, output.denoising
        )
        parts = [
            decoded,
            self.criterion.losses(output.selected, selected, pixels, targets, num_objects)[0],
            self.criterion.dense_losses(output.dense, quality, dense, targets, num_objects),
        ]
        states = [
            output.hidden[answering.layer, answering.image, answering.query],
            self.select.content(output.dense.tokens[dense.image, dense.query]),
        ]
        # An object counts as often, whatever the number of its near misses.
        weights = torch.ones_like(output.predictions.objectness[0].detach().float())
        if output.denoising is not None:
            weights[:, : output.num_denoising] = output.denoising.weights
        losses = {f"loss_{name}": sum(part[name] for part in parts if name in part) for name in decoded}
        return RegionSupervision(
            losses=losses,
            matches=matches.split(layers - 1, layers - 2)[1].to(pixels.device),
            states=torch.cat(states),
            labels=torch.cat([targets.labels[m.image, m.target] for m in (answering, dense)]),
            weights=torch.cat((weights[answering.image, answering.query], weights.new_ones(len(dense.image)))),
            fine=output.fine,
        )
