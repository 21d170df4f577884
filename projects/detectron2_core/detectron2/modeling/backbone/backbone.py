from __future__ import annotations

from abc import ABCMeta, abstractmethod

from detectron2.layers import ShapeSpec
from torch import nn


class Backbone(nn.Module, metaclass=ABCMeta):
    """A network that turns a batch of images into named feature maps.

    A subclass implements :meth:`forward`. It also overrides :meth:`output_shape`, or sets the attributes that the
    default of this method reads: ``_out_features`` (names, in order), ``_out_feature_channels`` and
    ``_out_feature_strides`` (dicts by name).
    """

    @abstractmethod
    def forward(self):
        """Maps images [B,C,H,W] to a dict of feature maps by name, each [B,C',H/stride,W/stride]."""

    @property
    def size_divisibility(self) -> int:
        """The height and width of the input must be multiples of this number. 0 means no condition."""
        return 0

    @property
    def padding_constraints(self) -> dict[str, int]:
        """The padding of inputs, as an argument of :meth:`ImageList.from_tensors`.

        Optional keys: ``size_divisibility``, and ``square_size``, the side of the square that inputs are padded to if
        it is positive.
        """
        return {}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of every feature map that :meth:`forward` returns."""
        return {
            name: ShapeSpec(channels=self._out_feature_channels[name], stride=self._out_feature_strides[name])
            for name in self._out_features
        }
