"""The image encoder: from images to the tokens of equation (1), the same for every task."""

from __future__ import annotations

from dataclasses import replace

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from ...errors import UserError, nearest
from .captured import CapturedPasses
from .centre_map import CentreMap
from .conventions import CONVENTIONS
from .criterion import RegionCriterion
from .matcher import MatchCosts
from .region_network import RegionNetwork, RegionSupervision
from .structures import (
    ImageEncoding,
    Proposals,
    RegionTargets,
    has_padding,
    mean_of_valid,
    resize_valid,
    valid_pixels,
)
from .tokens import GlobalTokens, ProposalFusion

_PROPOSAL_TENSORS = ("semantics", "boxes", "masks", "objectness", "appearance", "extent")


class ImageEncoder(nn.Module):
    """f_image of equation (1).

    Args:
        backbone: a Detectron2 backbone with at least two output maps.
        regions: the region proposal network.
        fusion, global_tokens: the modules of equations (2) and (3).
        centres: compares the region network's fine map with texts, in training; None if it has none.
        boxes_around_masks, masks_are_learned: see `Proposals`.
        captured: of training passes without targets and without padding; None to launch each kernel by itself.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        regions: RegionNetwork,
        fusion: ProposalFusion,
        global_tokens: GlobalTokens,
        centres: CentreMap | None = None,
        boxes_around_masks: bool = False,
        masks_are_learned: bool = True,
        captured: CapturedPasses | None = None,
    ):
        super().__init__()
        self.backbone, self.regions = backbone, regions
        self.fusion, self.global_tokens, self.centres = fusion, global_tokens, centres
        self.boxes_around_masks, self.masks_are_learned = boxes_around_masks, masks_are_learned
        self._channels_last, self._captured = False, captured

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        node = cfg.MODEL.UNIPERCEIVER_V2
        name = cfg.MODEL.BACKBONE.NAME
        if name not in BACKBONE_REGISTRY:
            known = (entry for entry, _ in BACKBONE_REGISTRY)
            raise UserError(f"MODEL.BACKBONE.NAME: there is no backbone {name!r}{nearest(name, known)}")
        backbone = build_backbone(cfg)
        shapes = sorted(backbone.output_shape().values(), key=lambda shape: shape.stride)
        region, criterion = node.REGION, node.CRITERION
        regions = RegionNetwork(
            channels=[shape.channels for shape in shapes],
            dim=region.DIM,
            mask_dim=region.MASK_DIM,
            heads=region.HEADS,
            points=region.POINTS,
            ffn_dim=region.FFN_DIM,
            encoder_layers=region.ENCODER_LAYERS,
            decoder_layers=region.DECODER_LAYERS,
            num_queries=region.NUM_QUERIES,
            anchor_size=region.ANCHOR_SIZE,
            denoising_queries=region.DENOISING_QUERIES,
            box_noise=region.BOX_NOISE,
            boxes_from_masks=region.BOXES_FROM_MASKS and cfg.MODEL.MASK_ON,
            criterion=RegionCriterion(
                weights={name.lower(): value for name, value in criterion.WEIGHTS.items()},
                costs=MatchCosts(**{name.lower(): value for name, value in criterion.COSTS.items()}),
                num_points=criterion.NUM_POINTS,
                oversampling=criterion.OVERSAMPLING,
                uncertain_share=criterion.UNCERTAIN_SHARE,
                one_to_many=criterion.ONE_TO_MANY,
                masks_in_boxes=region.MASKS_IN_BOXES,
            ),
            first_scale=region.FIRST_SCALE,
            extra_scales=region.EXTRA_SCALES,
            objectness_parts=region.OBJECTNESS_PARTS,
            fine_dim=region.FINE_DIM,
            fine_stride=shapes[min(region.FIRST_SCALE, len(shapes) - 1)].stride // shapes[0].stride,
            conventions=CONVENTIONS[region.CONVENTIONS],
        )
        return {
            "backbone": backbone,
            "regions": regions,
            "fusion": ProposalFusion(region.DIM, node.EMBED_DIM, shapes[0].channels),
            "global_tokens": GlobalTokens(
                shapes[-1].channels, node.EMBED_DIM, node.DECODER.HEADS, node.ATTENTION_POOLS
            ),
            "centres": CentreMap(region.FINE_DIM, node.EMBED_DIM) if region.FINE_DIM else None,
            "boxes_around_masks": region.BOXES_AROUND_MASKS and cfg.MODEL.MASK_ON,
            "masks_are_learned": cfg.MODEL.MASK_ON,
            "captured": CapturedPasses() if node.CUDA_GRAPHS and cfg.MODEL.DEVICE.startswith("cuda") else None,
        }

    def centre_loss(
        self, regions: RegionSupervision, texts: Tensor, targets: RegionTargets, true: Tensor, asked: Tensor
    ) -> Tensor:
        """`CentreMap.loss` on the fine map of a batch, which the region network has to have."""
        assert self.centres is not None and regions.fine is not None
        return self.centres.loss(regions.fine, texts, targets, true, asked)

    def put_channels_last(self) -> None:
        """Lets convolutions compute with the channels of a pixel side by side in memory (NHWC), as the tensor cores of
        GPUs read them. Shapes and names of parameters stay, and results up to the order of sums."""
        self.backbone.to(memory_format=torch.channels_last)
        self.regions.to(memory_format=torch.channels_last)
        self._channels_last = True

    def forward(
        self, images: ImageList, targets: RegionTargets | None = None
    ) -> tuple[ImageEncoding, RegionSupervision | None]:
        """Encodes a batch. With targets it also returns the region network's losses and matches."""
        learns = self.training and torch.is_grad_enabled()
        if self._captured is not None and learns and targets is None and not has_padding(images):
            return self._from_tensors(*self._captured(_TensorsOf(self), images.tensor)), None
        return self.encode_maps(self.maps(images), valid_pixels(images), has_padding(images), targets)

    def encode_maps(
        self, maps: list[Tensor], valid: Tensor, has_padding: bool = True, targets: RegionTargets | None = None
    ) -> tuple[ImageEncoding, RegionSupervision | None]:
        """`forward` behind the backbone.

        Args:
            maps: the backbone's maps, see :meth:`maps`.
            valid: [B,H,W] bool of the batch of images, False at padding.
            has_padding: False if `valid` is all True, which spares some work.
            targets: as in `forward`.
        """
        output = self.regions(maps, valid, targets, has_padding)
        proposals = replace(
            output.proposals(),
            boxes_around_masks=self.boxes_around_masks,
            masks_are_learned=self.masks_are_learned,
        )
        global_tokens, global_valid = self._global_tokens(maps, valid)
        encoding = ImageEncoding(global_tokens, global_valid, self.fusion(proposals), proposals)
        return encoding, None if targets is None else self.regions.losses(output, targets)

    def _from_tensors(
        self, global_tokens: Tensor, proposal_tokens: Tensor, global_valid: Tensor, *proposals: Tensor
    ) -> ImageEncoding:
        found = Proposals(
            **dict(zip(_PROPOSAL_TENSORS, proposals, strict=True)),
            masks_in_boxes=self.regions.criterion.masks_in_boxes,
            boxes_around_masks=self.boxes_around_masks,
            masks_are_learned=self.masks_are_learned,
        )
        return ImageEncoding(global_tokens, global_valid, proposal_tokens, found)

    def mean_global_token(self, images: ImageList) -> Tensor:
        """[B,d], `ImageEncoding.mean_global_token` without a pass through the region network."""
        return mean_of_valid(*self._global_tokens(self.maps(images), valid_pixels(images)))

    def _global_tokens(self, maps: list[Tensor], valid: Tensor) -> tuple[Tensor, Tensor]:
        return self.global_tokens(maps[-1], resize_valid(valid, maps[-1].shape[-2:]))

    def maps(self, images: ImageList) -> list[Tensor]:
        """The backbone's maps [B,C,h,w], finest first."""
        shapes = self.backbone.output_shape()
        layout = torch.channels_last if self._channels_last else torch.contiguous_format
        maps = self.backbone(images.tensor.contiguous(memory_format=layout))
        return [maps[name] for name in sorted(maps, key=lambda name: shapes[name].stride)]


class _TensorsOf(nn.Module):
    """The tensors of an encoding as a tuple, for batches [B,3,H,W] without padding. Only tokens have gradients: without
    targets nothing else is learned from."""

    def __init__(self, encoder: ImageEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        batch = ImageList(images, [tuple(images.shape[-2:])] * len(images))
        found, _ = self.encoder.encode_maps(self.encoder.maps(batch), valid_pixels(batch), has_padding=False)
        proposals = (getattr(found.proposals, name).detach() for name in _PROPOSAL_TENSORS)
        return found.global_tokens, found.proposal_tokens, found.global_valid, *proposals
