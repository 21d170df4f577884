"""Captioning learns from rewards: of captions drawn from the model, better ones become likelier (self-critical sequence
training, Rennie et al., CVPR 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.data import MetadataCatalog
from torch import Tensor

from ..data import captioned_images
from ..data.samples import CaptionedSample
from ..errors import UserError
from ..evaluation.consensus import Consensus
from ..evaluation.digit_scenes import Scene, SceneFacts, judge
from ..modeling.model import UniPerceiver
from ..modeling.text_encoder import TextEncoder
from .generation import Step, sample

CORPUS = 10_000  # images whose captions tell how rare an n-gram is


@dataclass(frozen=True)
class DrawnCaptions:
    """Captions drawn for a batch of images, those of an image one behind the other.

    Attributes:
        token_ids: ids [T] of each on the host, with start and stop token.
        rewards: [B,K] of the K captions of each image.
    """

    token_ids: list[Tensor]
    rewards: Tensor

    def advantages(self) -> Tensor:
        """[B * K]: how much better a caption is than the mean of the image's other ones, which has no bias (Kool et
        al., 2019)."""
        count = self.rewards.shape[1]
        return ((self.rewards - self.rewards.mean(1, keepdim=True)) * count / (count - 1)).flatten()


class Rewards:
    """The rewards of captions of a task's training images.

    Args:
        datasets: the registered datasets of the task.
        cider: weight of CIDEr-D with all captions of the image, in 0..10.
        truth: weight of being wholly true of the scene, 0 or 1. The datasets' metadata must name the scenes' facts.

    Raises:
        UserError: the facts of a dataset's scenes are not known, or two datasets have different scenes with one id.
    """

    def __init__(self, datasets: Sequence[str], cider: float, truth: float):
        self._datasets, self._cider, self._truth = tuple(datasets), cider, truth
        self._consensus: Consensus | None = None
        files = {name: MetadataCatalog.get(name).get("scene_facts") for name in datasets} if truth else {}
        if unknown := [name for name, file in files.items() if file is None]:
            raise UserError(f"TRUTH_WEIGHT: nothing tells what is true of the images of dataset '{unknown[0]}'")
        self._scenes: dict[int, Scene] = {}
        for file in dict.fromkeys(files.values()):
            scenes = SceneFacts(file).by_image
            if other := [i for i, scene in scenes.items() if self._scenes.get(i, scene) != scene]:
                raise UserError(f"TRUTH_WEIGHT: image {other[0]} of {file} is another scene in another dataset")
            self._scenes |= scenes

    def of(self, captions: Sequence[str], sample: CaptionedSample, text_encoder: TextEncoder) -> list[float]:
        """The rewards of captions of one image."""
        total = [0.0] * len(captions)
        if self._cider:
            if self._consensus is None:
                self._consensus = self._count(text_encoder)
            references = sample["references"]
            total = [self._cider * self._consensus.score(caption, references) for caption in captions]
        if self._truth:
            scene = self._scenes[sample["image_id"]]
            total = [x + self._truth * judge(caption, scene).is_true for x, caption in zip(total, captions)]
        return total

    def _count(self, text_encoder: TextEncoder) -> Consensus:
        """From the first images of a fixed order, the same on each rank and after a resume."""
        records = captioned_images(self._datasets, text_encoder.tokenizer)
        order = torch.randperm(len(records), generator=torch.Generator().manual_seed(0))[:CORPUS]
        return Consensus(records[index]["captions"] for index in order.tolist())


def draw_captions(
    model: UniPerceiver,
    step: Step,
    inputs: Sequence[CaptionedSample],
    rewards: Rewards,
    *,
    count: int,
    max_length: int,
) -> DrawnCaptions:
    """``count`` captions of each image of a batch, drawn word by word, with their rewards.

    Args:
        step: of generation, for the encoded images of the batch.
    """
    text_encoder = model.text_encoder
    start = torch.full((len(inputs),), text_encoder.bos_id, device=model.device)
    drawn = sample(step, start, text_encoder.eos_id, count=count, max_length=max_length).cpu()
    texts = text_encoder.decode(drawn)
    values = [rewards.of(texts[index * count : (index + 1) * count], x, text_encoder) for index, x in enumerate(inputs)]
    return DrawnCaptions([_ended(row, text_encoder) for row in drawn], torch.tensor(values, dtype=torch.float32))


def _ended(row: Tensor, text_encoder: TextEncoder) -> Tensor:
    """A drawn caption from its start token to its first stop token, if it has one."""
    stops = (row == text_encoder.eos_id).nonzero()
    words = row[: stops[0, 0] + 1] if len(stops) else row
    return torch.cat((torch.tensor([text_encoder.bos_id]), words))
