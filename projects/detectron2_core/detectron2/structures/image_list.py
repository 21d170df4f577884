"""Images of different sizes as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


class ImageList:
    """A padded batch of images and the size of each image.

    Attributes:
        tensor: [N,H,W] or [N,...,H,W]. Images are at the top left, with padding at the right and the bottom.
        image_sizes: (height, width) of each image before padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]):
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """Image ``idx`` without its padding."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args, **kwargs) -> ImageList:
        """Like ``Tensor.to``, for the tensor."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: Sequence[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> ImageList:
        """Pads images to the largest height and the largest width among them.

        Args:
            tensors: at least one image, each [...,H_i,W_i] with equal leading sizes.
            size_divisibility: if above 1, the batch's height and width are rounded up to multiples of it.
            pad_value: the value of the padding.
            padding_constraints: "square_size" (if above 0, height and width of the batch before rounding) and
                "size_divisibility" (replaces the argument).

        Raises:
            AssertionError: there are no images, or their leading sizes differ.
        """
        assert isinstance(tensors, (list, tuple)) and len(tensors) > 0
        leading = tensors[0].shape[:-2]
        for image in tensors:
            assert isinstance(image, Tensor), type(image)
            assert image.shape[:-2] == leading, f"{tuple(image.shape)} beside {tuple(tensors[0].shape)}"

        image_sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        height = max(size[0] for size in image_sizes)
        width = max(size[1] for size in image_sizes)
        constraints = padding_constraints or {}
        if constraints.get("square_size", 0) > 0:
            height = width = constraints["square_size"]
        multiple = max(constraints.get("size_divisibility", size_divisibility), 1)
        height = -(-height // multiple) * multiple
        width = -(-width // multiple) * multiple

        padded = [
            F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), value=pad_value)
            for image in tensors
        ]
        return ImageList(torch.stack(padded), image_sizes)
