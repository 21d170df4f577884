"""Registries, which map names to objects, and objects by dotted paths."""

import importlib
import pydoc
from typing import Any

from fvcore.common.registry import Registry

__all__ = ["Registry", "locate"]


def locate(name: str) -> Any:
    """The object with the dotted path ``name``, such as "torch.optim.sgd.SGD".

    Raises:
        ImportError: there is no such object.
    """
    found = pydoc.locate(name)
    if found is not None:
        return found
    # pydoc follows attributes. It misses a module if its package has another attribute of the same name.
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ImportError(f"Cannot dynamically locate object {name}!") from error
