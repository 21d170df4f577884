"""A table of instances of one image."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor


class Instances:
    """A table with one row for each instance. Its columns ("fields") are attributes.

    A field is any object with a length and indexing: a tensor, ``Boxes``, masks, a list. All fields have the same
    length. Names with a leading underscore are ordinary attributes::

        found = Instances((480, 640), pred_boxes=Boxes(...), scores=torch.tensor([0.9, 0.2]))
        found.pred_classes = torch.tensor([3, 1])
        confident = found[found.scores > 0.5]
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any):
        """
        Args:
            image_size: (height, width) of the image that coordinates refer to.
            kwargs: the first fields.
        """
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width)."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        # Copying and unpickling read attributes before __init__ has set ``_fields``.
        if name == "_fields" or name not in self._fields:
            raise AttributeError(f"Cannot find field '{name}' in the given Instances!")
        return self._fields[name]

    def set(self, name: str, value: Any) -> None:
        """Adds or replaces a field.

        Raises:
            AssertionError: its length differs from that of the other fields.
        """
        if self._fields:
            assert len(value) == len(self), f"Field '{name}' has {len(value)} rows, the Instances have {len(self)}"
        else:
            len(value)  # raises TypeError without a length
        self._fields[name] = value

    def has(self, name: str) -> bool:
        return name in self._fields

    def remove(self, name: str) -> None:
        del self._fields[name]

    def get(self, name: str) -> Any:
        """The field.

        Raises:
            KeyError: there is no field with this name.
        """
        return self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """The dict of fields by name. It is not a copy."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """New Instances. ``to`` is called on every field that has it."""
        moved = Instances(self._image_size)
        for name, value in self._fields.items():
            moved.set(name, value.to(*args, **kwargs) if hasattr(value, "to") else value)
        return moved

    def __getitem__(self, item: int | slice | Tensor) -> Instances:
        """The chosen rows of all fields: an index, a slice, a vector of indices or a bool vector.

        Raises:
            IndexError: an index is out of range.
        """
        if type(item) is int:
            if not -len(self) <= item < len(self):
                raise IndexError("Instances index out of range!")
            # A slice returns a sequence for every field, also for a list.
            item = slice(item, None, len(self))
        chosen = Instances(self._image_size)
        for name, value in self._fields.items():
            chosen.set(name, value[item])
        return chosen

    def __len__(self) -> int:
        for value in self._fields.values():
            return len(value)
        raise NotImplementedError("Instances without fields have no length")

    def __iter__(self):
        # Without this, Python would iterate through __getitem__.
        raise NotImplementedError("`Instances` object is not iterable!")

    @staticmethod
    def cat(instance_lists: list[Instances]) -> Instances:
        """Concatenates tables. All must have the same image size and the fields of the first one.

        Raises:
            AssertionError: the list is empty, or image sizes differ.
            ValueError: a field cannot be concatenated.
        """
        assert len(instance_lists) > 0 and all(isinstance(one, Instances) for one in instance_lists)
        first = instance_lists[0]
        if len(instance_lists) == 1:
            return first
        assert all(one.image_size == first.image_size for one in instance_lists), "Image sizes differ"
        joined = Instances(first.image_size)
        for name in first.get_fields():
            joined.set(name, _join([one.get(name) for one in instance_lists]))
        return joined

    def __str__(self) -> str:
        height, width = self._image_size
        fields = ", ".join(f"{name}: {value}" for name, value in self._fields.items())
        count = len(self)
        return f"Instances(num_instances={count}, image_height={height}, image_width={width}, fields=[{fields}])"

    __repr__ = __str__


def _join(values: list[Any]) -> Any:
    kind = type(values[0])
    if isinstance(values[0], Tensor):
        return torch.cat(values, dim=0)
    if isinstance(values[0], list):
        return list(itertools.chain.from_iterable(values))
    if hasattr(kind, "cat"):
        return kind.cat(values)
    raise ValueError(f"Unsupported type {kind} for concatenation")
