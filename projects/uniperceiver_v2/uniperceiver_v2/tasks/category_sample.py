"""The categories that a batch of detection compares its objects with: all, or a federated sample.

LVIS is annotated as a federation of datasets: of a category, only some images are known to show none of it, and only in
some are all of its objects annotated (Gupta et al., CVPR 2019). Therefore a batch is compared with its own categories
and a few others, and an image not with those whose objects it may show unannotated.

Shapes: B images, N objects of an image at most, S categories compared with, K objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.samples import DetectionSample
from ..transfer import send


@dataclass(frozen=True)
class CategorySample:
    """Categories to compare with.

    Attributes:
        texts: S candidate texts.
        labels: int64 [B,N], the place of each object's category among them.
        unsure: bool [B,S], categories that are not exhaustively annotated in an image. None if all are.
    """

    texts: tuple[str, ...]
    labels: Tensor
    unsure: Tensor | None = None

    @classmethod
    def federated(
        cls, texts: tuple[str, ...], labels: Tensor, inputs: Sequence[DetectionSample], count: int
    ) -> CategorySample:
        """The batch's categories, and others drawn until there are ``count``.

        The others are drawn without replacement, by the square root of the number of training images that show them
        (as in Detic, Zhou et al., ECCV 2022). So rare categories are seldom held against an object. The softmax has no
        correction for the categories that are not drawn, which is meant.

        Args:
            texts: of all C categories.
            labels: [B,N], indices of categories.
            inputs: with "instances", "category_images" and "unsure_categories".
            count: S, unless the batch alone has more categories.
        """
        # On the CPU, so that nothing waits for a GPU, and the sample of a seed and rank is the same for every device.
        own = torch.cat([x["instances"].gt_classes.cpu() for x in inputs]).unique()
        weights = torch.tensor(inputs[0]["category_images"], dtype=torch.float64).sqrt()
        weights[own] = 0
        missing = min(count - len(own), int(weights.count_nonzero()))
        drawn = torch.multinomial(weights, missing) if missing > 0 else own[:0]
        chosen = torch.cat([own, drawn]).sort().values
        unsure = torch.zeros(len(inputs), len(weights), dtype=torch.bool)
        for row, item in zip(unsure, inputs):
            row[list(item["unsure_categories"])] = True
        place = torch.zeros(len(weights), dtype=torch.int64)
        place[chosen] = torch.arange(len(chosen))
        device = labels.device
        kept = tuple(texts[i] for i in chosen.tolist())
        return cls(kept, send(place, device)[labels], send(unsure[:, chosen], device))

    def compared(self, logits: Tensor, image: Tensor, labels: Tensor) -> Tensor:
        """Logits [K,S] of objects of the images [K], without the categories that may or may not hold for them. The own
        category, ``labels`` [K], stays."""
        if self.unsure is None:
            return logits
        left_out = self.unsure[image].scatter(1, labels[:, None], False)
        return logits.masked_fill(left_out, -torch.inf)
