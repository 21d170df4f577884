"""The repeated blocks of a model, found by its structure."""

from __future__ import annotations

from torch import nn


def repeated_parts(module: nn.Module, count: int | None = None) -> list[nn.Module]:
    """Entries of the outermost lists below `module` whose modules all have the same class, one that PyTorch does not
    have. With `count`, only lists of this length count."""
    found = []
    for child in module.children():
        entries = list(child) if isinstance(child, nn.ModuleList | nn.Sequential) else []
        alike = len({type(entry) for entry in entries}) == 1 and not type(entries[0]).__module__.startswith("torch.")
        found += entries if alike and count in (None, len(entries)) else repeated_parts(child, count)
    return found
