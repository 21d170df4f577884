"""The interface of augmentations: an augmentation looks at its input and draws a transform to apply to it."""

import inspect
import pprint
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList

__all__ = ["AugInput", "Augmentation", "AugmentationList", "StandardAugInput", "apply_augmentations"]


class Augmentation:
    """Base class of all augmentations. A subclass defines :meth:`get_transform`.

    The parameter names of ``get_transform`` decide which attributes of the input it gets: those of :class:`AugInput`
    ("image", "boxes", "sem_seg") or of a user's own class. A single parameter, with any name, gets the image.
    """

    input_args: tuple[str, ...] | None = None

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Store a constructor's ``locals()`` as attributes, which ``repr`` shows."""
        for name, value in (params or {}).items():
            if name != "self" and not name.startswith("_"):
                setattr(self, name, value)

    def get_transform(self, *args) -> Transform:
        """Draw the transform for the given attributes of an input.

        An image is [H, W] or [H, W, C], uint8 or float. Boxes are [N, 4] float32, absolute XYXY. sem_seg is [H, W]
        uint8.
        """
        raise NotImplementedError

    def _input_names(self) -> tuple[str, ...]:
        parameters = inspect.signature(self.get_transform).parameters.values()
        if len(parameters) == 1:
            return ("image",)
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError(
                f"{type(self)}.get_transform takes *args or **kwargs, so that what it needs is unknown: "
                "reimplement `__call__` instead."
            )
        return tuple(p.name for p in parameters)

    def __call__(self, aug_input: "AugInput") -> Transform:
        """Draw a transform, apply it to ``aug_input`` in place and return it.

        Raises:
            AttributeError: ``aug_input`` lacks an attribute that :meth:`get_transform` asks for.
            TypeError: :meth:`get_transform` takes ``*args`` or ``**kwargs``.
        """
        if self.input_args is None:
            self.input_args = self._input_names()
        missing = [name for name in self.input_args if not hasattr(aug_input, name)]
        if missing:
            raise AttributeError(
                f"{type(self)}.get_transform needs input attribute '{missing[0]}', "
                f"but it is not an attribute of {type(aug_input)}!"
            )
        transform = self.get_transform(*(getattr(aug_input, name) for name in self.input_args))
        assert isinstance(transform, Transform), (
            f"{type(self)}.get_transform must return an instance of Transform! Got {type(transform)} instead."
        )
        aug_input.transform(transform)
        return transform

    def _rand_range(self, low: float = 1.0, high: float | None = None, size=None):
        """Uniform in [low, high), or in [0, low) without ``high``."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, [] if size is None else size)

    def __repr__(self) -> str:
        """``Name(argument=value, ...)`` with the arguments that differ from their defaults."""
        shown = []
        for name, parameter in inspect.signature(self.__init__).parameters.items():
            variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            if variadic or not hasattr(self, name):
                return super().__repr__()
            value = getattr(self, name)
            if value is not parameter.default:
                text = pprint.pformat(value)
                shown.append(f"{name}={'...' if chr(10) in text else text}")
        return f"{type(self).__name__}({', '.join(shown)})"

    __str__ = __repr__


class _TransformToAug(Augmentation):
    """An augmentation that always returns the same transform."""

    def __init__(self, tfm: Transform):
        self.tfm = tfm

    def get_transform(self, *args):
        return self.tfm

    def __repr__(self):
        return repr(self.tfm)

    __str__ = __repr__


def _transform_to_aug(tfm_or_aug: Transform | Augmentation) -> Augmentation:
    assert isinstance(tfm_or_aug, Transform | Augmentation), tfm_or_aug
    return tfm_or_aug if isinstance(tfm_or_aug, Augmentation) else _TransformToAug(tfm_or_aug)


class AugmentationList(Augmentation):
    """Augmentations and transforms in sequence. Each gets the output of the one before.

    It has no :meth:`get_transform`, as the second draw depends on the first one's output.
    """

    def __init__(self, augs: list[Augmentation | Transform]):
        self.augs = [_transform_to_aug(aug) for aug in augs]

    def __call__(self, aug_input: "AugInput") -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList[{', '.join(map(str, self.augs))}]"

    __str__ = __repr__


class AugInput:
    """The input that augmentations look at and transform in place.

    The transforms that augmentations return can be applied to other data afterwards. Another class can take the place
    of this one, if it has a ``transform`` method and the attributes that the augmentations need.

    Args:
        image: [H, W] or [H, W, C], uint8 in 0..255 or float in 0..1 or 0..255.
        boxes: [N, 4] float32, absolute XYXY.
        sem_seg: [H, W] uint8 labels.
    """

    def __init__(self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None):
        assert isinstance(image, np.ndarray), f"AugInput needs a numpy array, but got a {type(image)}!"
        assert not np.issubdtype(image.dtype, np.integer) or image.dtype == np.uint8, (
            f"Got an image of type {image.dtype}, use uint8 or floating points instead!"
        )
        assert image.ndim in (2, 3), image.ndim
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Replace each attribute by its transformed value."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: list[Augmentation | Transform]) -> TransformList:
        """``AugmentationList(augmentations)(self)``."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(augmentations: list[Transform | Augmentation], inputs):
    """Apply augmentations to an :class:`AugInput` or to an image alone.

    Returns:
        The transformed input (an image if ``inputs`` is an image), and the transforms.
    """
    image_only = isinstance(inputs, np.ndarray)
    aug_input = AugInput(inputs) if image_only else inputs
    transforms = aug_input.apply_augmentations(augmentations)
    return aug_input.image if image_only else aug_input, transforms


StandardAugInput = AugInput  # its name in upstream's first releases
