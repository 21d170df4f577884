from __future__ import annotations

from abc import ABCMeta, abstractmethod

from detectron2.layers import ShapeSpec
from torch import nn


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network that turns a batch of images into named feature maps.

    A subclass implements :meth:`forward`, and either overrides :meth:`output_shape` or sets the attributes
    that its default reads: ``_out_features`` (names, in order), ``_out_feature_channels`` and
    ``_out_feature_strides`` (each a dict by name).
    """

    @abstractmethod
    def forward(self):
        """Images [B,C,H,W] to a dict of feature maps by name, each [B,C',H/stride,W/stride]."""

    @property
    def size_divisibility(self) -> int:
        """What height and width of the input must be multiples of; 0 for no such need."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """How inputs must be padded, as :meth:`ImageList.from_tensors` takes it.

        Optional keys: ``size_divisibility``; ``square_size``, the side of a square to pad to if positive.
        """
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature map that :meth:`forward` returns."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
