"""Retrieval: a dual encoder with CLIP's loss, a ResNet with CLIP's attention pool and a RoBERTa."""

from __future__ import annotations

import math

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, ResNetModel

from .common import Pixels, Specialist, resnet_config
from .language_model import pad, text_encoder_files

WIDTH, STRIDE = 128, 8  # of a feature, and of the map
SMALLEST_TEMPERATURE = 0.01


class AttentionPool(nn.Module):
    """CLIP's: the mean of a map's N cells asks all of them. Cells [B,N,d] to [B,d]."""

    def __init__(self, cells: int):
        super().__init__()
        self.position = nn.Parameter(torch.randn(1 + cells, WIDTH) / math.sqrt(WIDTH))
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)

    def forward(self, cells: Tensor) -> Tensor:
        tokens = torch.cat((cells.mean(1, keepdim=True), cells), 1) + self.position
        return self.attention(tokens[:, :1], tokens, tokens, need_weights=False)[0][:, 0]


class DualEncoder(nn.Module):
    def __init__(self, cfg: CfgNode):
        super().__init__()
        text, self.tokenizer = text_encoder_files(cfg)
        self.image_encoder = ResNetModel(resnet_config(hidden_sizes=[64, WIDTH], depths=[3, 3]))
        self.pool = AttentionPool((cfg.INPUT.MIN_SIZE_TEST // STRIDE) ** 2)
        self.text_encoder = AutoModel.from_config(text, add_pooling_layer=False)
        self.of_text = nn.Linear(text.hidden_size, WIDTH)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))
        self.pixels = Pixels(cfg)

    def forward(self, inputs: list[dict]) -> Tensor | list[dict]:
        cells = self.image_encoder(self.pixels(inputs)).last_hidden_state.flatten(2).transpose(1, 2)
        images = F.normalize(self.pool(cells), dim=-1)  # [B,d]
        counts = [len(x["caption_token_ids"]) for x in inputs]
        texts = self._texts([ids for x in inputs for ids in x["caption_token_ids"]])
        if not self.training:
            return [
                {"image_feature": image, "text_features": of_image}
                for image, of_image in zip(images, texts.split(counts), strict=True)
            ]
        # Pairs of the first captions, of the second ones, and so on: a batch of images serves several times.
        temperature = self.log_temperature.exp().clamp(min=SMALLEST_TEMPERATURE)
        labels = torch.arange(len(images))
        losses = []
        for captions in texts.view(len(images), -1, WIDTH).unbind(1):
            logits = images @ captions.T / temperature
            losses.append((F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2)
        return torch.stack(losses).mean()

    def _texts(self, token_ids: list[Tensor]) -> Tensor:
        ids, valid = pad(token_ids, self.tokenizer)
        first = self.text_encoder(input_ids=ids, attention_mask=valid).last_hidden_state[:, 0]
        return F.normalize(self.of_text(first), dim=-1)


SPECIALIST = Specialist(
    task="scene_pairs",
    tests={
        "digit_scenes_retrieval_test": {
            "text R@1": ("text_retrieval", "R@1"),
            "image R@1": ("image_retrieval", "R@1"),
        }
    },
    build=DualEncoder,
    rate=1e-3,
    pace=1.2,
    weight_decay=0.05,
    settings={"TASKS.scene_pairs.IMS_PER_BATCH": 32},
)
