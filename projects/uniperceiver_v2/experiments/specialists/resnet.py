"""Classification: Hugging Face's ResNet with a first convolution for small images."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetForImageClassification

from .common import NUM_CLASSES, Pixels, Specialist, resnet_config


class Classifier(nn.Module):
    def __init__(self, cfg: CfgNode):
        super().__init__()
        config = resnet_config(hidden_sizes=[32, 64, 128], depths=[2, 2, 2], num_labels=NUM_CLASSES)
        self.model = ResNetForImageClassification(config)
        # A digit has 32 pixels: the stem's strides of 2 and 2, made for 224, would leave 8.
        stem = self.model.resnet.embedder
        stem.embedder.convolution = nn.Conv2d(3, config.embedding_size, 3, padding=1, bias=False)
        stem.pooler = nn.Identity()
        self.pixels = Pixels(cfg)

    def forward(self, inputs: list[dict]) -> Tensor | list[dict]:
        logits = self.model(pixel_values=self.pixels(inputs)).logits
        if self.training:
            labels = logits.new_tensor([x["label"] for x in inputs]).long()
            return F.cross_entropy(logits, labels, label_smoothing=0.1)
        return [{"scores": scores} for scores in logits.softmax(-1)]


SPECIALIST = Specialist(
    task="digits",
    tests={"digits_test": {"top-1": ("classification", "top1")}},
    build=Classifier,
    rate=2e-3,
    pace=3.3,
    weight_decay=0.05,
    settings={"TASKS.digits.IMS_PER_BATCH": 32},
)
