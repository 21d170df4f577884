"""Settings by their full keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def flat_settings(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{full key: value} of all settings in a configuration or a section. An empty section is a value."""

    def leaves() -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, Mapping) and value:
                yield from flat_settings(value, f"{prefix}{key}.").items()
            else:
                yield f"{prefix}{key}", value

    return dict(leaves())
