"""The two global registries of datasets: functions that load them, and their metadata."""

import types
from collections import UserDict
from collections.abc import Callable
from typing import Any

__all__ = ["DatasetCatalog", "Metadata", "MetadataCatalog"]


class _DatasetCatalog(UserDict):
    """Maps a dataset's name to the function that loads it, as a list of dicts in Detectron2's format."""

    def register(self, name: str, func: Callable[[], list[dict]]) -> None:
        """
        Args:
            name: for example ``"coco_2017_val"``.
            func: a function without arguments that returns the same list at every call.

        Raises:
            AssertionError: the name is registered already, or ``func`` is not callable.
        """
        assert callable(func), f"DatasetCatalog.register needs a function, got {func!r}"
        assert name not in self, f"Dataset '{name}' is already registered!"
        self[name] = func

    def get(self, name: str) -> list[dict]:
        """Call the function registered under ``name`` and return its result.

        Raises:
            KeyError: the name is not registered.
        """
        try:
            loader = self[name]
        except KeyError as error:
            known = ", ".join(self.keys())
            raise KeyError(f"Dataset '{name}' is not registered! Available datasets are: {known}") from error
        return loader()

    def list(self) -> list[str]:
        """Names of all registered datasets."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        """Remove a dataset; KeyError if it is unknown."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"DatasetCatalog(registered datasets: {', '.join(self.keys())})"

    __str__ = __repr__


class Metadata(types.SimpleNamespace):
    """The metadata of a dataset, as attributes: ``thing_classes``, ``json_file``, ``evaluator_type``, ...

    An attribute can be set again only to an equal value, so that all users of a dataset see the same metadata.
    """

    # Messages below use self.name. Without this class attribute they could call __getattr__ without end.
    name: str = "N/A"

    def __getattr__(self, key: str) -> Any:
        known = ", ".join(self.__dict__) or "none"
        raise AttributeError(
            f"Attribute '{key}' does not exist in the metadata of dataset '{self.name}'. Available keys: {known}."
        )

    def __setattr__(self, key: str, val: Any) -> None:
        if key in self.__dict__:
            old = self.__dict__[key]
            assert old == val, (
                f"Attribute '{key}' in the metadata of '{self.name}' cannot be set "
                f"to a different value!\n{old} != {val}"
            )
        else:
            super().__setattr__(key, val)

    def as_dict(self) -> dict[str, Any]:
        """A shallow copy as a dict."""
        return dict(self.__dict__)

    def set(self, **kwargs: Any) -> "Metadata":
        """Set several attributes. Returns the object itself."""
        for key, val in kwargs.items():
            setattr(self, key, val)
        return self

    def get(self, key: str, default: Any = None) -> Any:
        """The attribute's value, or ``default`` if it is not set."""
        return getattr(self, key, default)


class _MetadataCatalog(UserDict):
    """Maps a dataset's name to its :class:`Metadata`. A name keeps the same object while the process runs."""

    def get(self, name: str) -> Metadata:
        """The metadata of ``name``. The first call creates it, empty."""
        assert len(name)
        if name not in self:
            self[name] = Metadata(name=name)
        return self[name]

    def list(self) -> list[str]:
        """Names of all datasets with metadata."""
        return [*self.keys()]

    def remove(self, name: str) -> None:
        """Remove a dataset's metadata; KeyError if there is none."""
        self.pop(name)

    def __repr__(self) -> str:
        return f"MetadataCatalog(registered metadata: {', '.join(self.keys())})"

    __str__ = __repr__


DatasetCatalog = _DatasetCatalog()
MetadataCatalog = _MetadataCatalog()
