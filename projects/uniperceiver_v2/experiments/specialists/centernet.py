"""Detection and grounding by centre points (Zhou et al., Objects as Points, 2019), the quickest to learn.

A map of stride 4 says for each cell how likely it is the centre of an object of each class, and how far the sides of
its box are. The classes are ten embeddings, or for grounding an image's phrases, as a text encoder reads them.
Shapes: B images, N objects of an image, P classes or phrases of an image at most, d = WIDTH.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoBackbone, AutoModel

from uniperceiver_v2.modeling.image_encoder.boxes import box_overlaps, xyxy_to_cxcywh
from uniperceiver_v2.modeling.image_encoder.centre_map import centre_losses

from .common import BEST_OF_IMAGE, NUM_CLASSES, Pixels, Specialist, resnet_config
from .language_model import pad, text_encoder_files

WIDTH, STRIDE = 96, 4
BOX_WEIGHT = 2.0
BEST_OF_PHRASE = 10


class CentreMap(nn.Module):
    """Images [B,3,H,W] to features [B,d,h,w] and the distances of boxes' sides [B,4,h,w] in pixels, of stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = AutoBackbone.from_config(resnet_config("stage1", "stage2", "stage3", "stage4"))
        self.lateral = nn.ModuleList(nn.Conv2d(channels, WIDTH, 1) for channels in self.backbone.channels)
        self.joint, self.classes, self.sides = (_convolution() for _ in range(3))
        self.features = nn.Conv2d(WIDTH, WIDTH, 1)
        self.distances = nn.Conv2d(WIDTH, 4, 1)
        nn.init.constant_(self.distances.bias, 2.3)  # the log of 10 pixels

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = [convolution(x) for convolution, x in zip(self.lateral, self.backbone(images).feature_maps)]
        top = maps[-1]
        for finer in reversed(maps[:-1]):
            top = finer + F.interpolate(top, finer.shape[-2:], mode="nearest")
        top = self.joint(top)
        return self.features(self.classes(top)), self.distances(self.sides(top)).exp()


def _convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU())


class Detector(nn.Module):
    """Of ten classes."""

    num_classes = NUM_CLASSES

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.map, self.pixels = CentreMap(), Pixels(cfg)
        self.bias = nn.Parameter(torch.tensor(-3.0))  # few cells are centres
        self._make_classes(cfg)

    def _make_classes(self, cfg: CfgNode) -> None:
        self.names = nn.Embedding(self.num_classes, WIDTH)

    def _classes(self, inputs: list[dict]) -> Tensor:
        """What is asked for in each image, [B,P,d]."""
        return self.names.weight.expand(len(inputs), -1, -1)

    def _objects(self, x: dict) -> Tensor:
        """Which objects of an image each of its classes means, bool [P,N]."""
        return F.one_hot(x["instances"].gt_classes, self.num_classes).T.bool()

    def forward(self, inputs: list[dict]) -> Tensor | list[dict]:
        features, distances = self.map(self.pixels(inputs))
        logits = torch.einsum("bdhw,bpd->bphw", features, self._classes(inputs)) / WIDTH**0.5 + self.bias
        if self.training:
            return self._loss(logits, distances, inputs)
        return [
            {"instances": self._instances(heat, boxes, x)}
            for heat, boxes, x in zip(peaks(logits.sigmoid()), boxes_of(distances), inputs, strict=True)
        ]

    def _loss(self, logits: Tensor, distances: Tensor, inputs: list[dict]) -> Tensor:
        size = logits.shape[-2:]
        heat, asked = torch.zeros_like(logits), torch.zeros(logits.shape[:2], dtype=torch.bool)
        found, wanted = [], []
        for index, x in enumerate(inputs):
            boxes, objects = x["instances"].gt_boxes.tensor, self._objects(x)
            asked[index, : len(objects)] = True
            for label, meant in enumerate(objects):
                if meant.any():
                    heat[index, label] = gaussians(boxes[meant], size).amax(0)
            column, row = cells_of(boxes, size)
            found.append(boxes_of(distances[index : index + 1])[0, :, row, column].T)
            wanted.append(boxes)
        found, wanted = torch.cat(found), torch.cat(wanted)
        _, giou = box_overlaps(xyxy_to_cxcywh(found), xyxy_to_cxcywh(wanted))
        return centre_loss(logits[asked], heat[asked]) + BOX_WEIGHT * (1 - giou).sum() / max(len(wanted), 1)

    def _instances(self, heat: Tensor, boxes: Tensor, x: dict) -> Instances:
        """The best cells and classes of an image. heat [P,h,w], boxes [4,h,w]."""
        scores, flat = heat.flatten().topk(BEST_OF_IMAGE)
        cells = heat[0].numel()
        return instances_of(scores, flat // cells, boxes.flatten(1)[:, flat % cells].T, x)


class PhraseDetector(Detector):
    """Of the phrases that are asked for in an image."""

    def _make_classes(self, cfg: CfgNode) -> None:
        config, self.tokenizer = text_encoder_files(cfg)
        self.text_encoder = AutoModel.from_config(config, add_pooling_layer=False)
        self.of_text = nn.Linear(config.hidden_size, WIDTH)

    def _classes(self, inputs: list[dict]) -> Tensor:
        row_of = {text: row for row, text in enumerate(dict.fromkeys(p for x in inputs for p in x["phrases"]))}
        token_ids = [torch.tensor(ids) for ids in self.tokenizer(list(row_of))["input_ids"]]
        ids, valid = pad(token_ids, self.tokenizer)
        tokens = self.text_encoder(input_ids=ids, attention_mask=valid).last_hidden_state
        means = (tokens * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)
        places = [torch.tensor([row_of[phrase] for phrase in x["phrases"]], dtype=torch.int64) for x in inputs]
        return self.of_text(means)[nn.utils.rnn.pad_sequence(places, True)]

    def _objects(self, x: dict) -> Tensor:
        return x["phrase_objects"]

    def _instances(self, heat: Tensor, boxes: Tensor, x: dict) -> Instances:
        """For one phrase after the other its best cells."""
        asked = len(x["phrases"])
        scores, cells = heat[:asked].flatten(1).topk(BEST_OF_PHRASE)
        labels = torch.arange(asked).repeat_interleave(BEST_OF_PHRASE)
        return instances_of(scores.flatten(), labels, boxes.flatten(1)[:, cells.flatten()].T, x)


def instances_of(scores: Tensor, labels: Tensor, boxes: Tensor, x: dict) -> Instances:
    """Scores [K], labels [K] and boxes [K,4] in the image as it was read, at the size of the image in the file."""
    size, (height, width) = (x["height"], x["width"]), x["image"].shape[-2:]
    found = Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=labels)
    found.pred_boxes.scale(size[1] / width, size[0] / height)
    found.pred_boxes.clip(size)
    return found


def cells_of(boxes: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Column and row of the cells with the centres of boxes [N,4]."""
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE).long()
    return centre[:, 0].clamp(0, size[1] - 1), centre[:, 1].clamp(0, size[0] - 1)


def gaussians(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """How near each cell is to the centre of each box, [N,h,w]: 1 at the centre, wider for larger boxes."""
    column, row = cells_of(boxes, size)
    sigma = ((boxes[:, 2:] - boxes[:, :2]) / STRIDE / 6).clamp(min=0.5)
    x = (torch.arange(size[1]) - column[:, None]) / sigma[:, :1]
    y = (torch.arange(size[0]) - row[:, None]) / sigma[:, 1:]
    return torch.exp(-(x[:, None] ** 2 + y[:, :, None] ** 2) / 2)


def boxes_of(distances: Tensor) -> Tensor:
    """Boxes [B,4,h,w], XYXY in pixels, from the distances of their sides to the middles of the cells."""
    rows, columns = (STRIDE * (torch.arange(side) + 0.5) for side in distances.shape[-2:])
    middle = torch.stack((columns.expand(len(rows), -1), rows[:, None].expand(-1, len(columns))))
    return torch.cat((middle - distances[:, :2], middle + distances[:, 2:]), 1)


def peaks(heat: Tensor) -> Tensor:
    """Heat [B,P,h,w] where it is the highest of nine cells, 0 elsewhere: in place of suppressing overlapping boxes."""
    return torch.where(heat == F.max_pool2d(heat, 3, 1, 1), heat, 0)


def centre_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """The focal loss of the paper, divided by the number of centres."""
    return centre_losses(logits, heat).sum() / (heat == 1).sum().clamp(min=1)


DETECTOR = Specialist(
    task="scenes",
    tests={"digit_scenes_test": {"box AP": ("bbox", "AP")}},
    build=Detector,
    rate=2e-3,
    pace=5.6,
    weight_decay=0.05,
    settings={"MODEL.MASK_ON": False},
    any_size=True,
)
PHRASE_DETECTOR = Specialist(
    task="scene_phrases",
    tests={"digit_scenes_phrases_test": {"phrases found": ("grounding", "Acc@0.5")}},
    build=PhraseDetector,
    rate=1e-3,
    pace=4.4,
    weight_decay=0.05,
    settings={"MODEL.MASK_ON": False},
    any_size=True,
)
