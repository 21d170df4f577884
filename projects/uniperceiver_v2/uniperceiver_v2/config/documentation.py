"""The documentation's tables of task settings, made from the kinds' descriptors.

This command writes them into a Markdown file, between its lines ``<!-- task settings -->`` and ``<!-- /task settings
-->``:

    python -m uniperceiver_v2.config.documentation README.md
"""

import sys
from collections.abc import Iterable
from dataclasses import Field, fields
from pathlib import Path
from typing import IO, Any

from .. import tasks  # noqa: F401  (registers the kinds)
from ..files import write_atomically
from ..kinds import KINDS, TaskSettings, shown_default, shown_range

BEGIN, END = "<!-- task settings -->", "<!-- /task settings -->"


def task_settings_tables() -> str:
    """Markdown tables: one of the settings that all kinds of task share, and one of each kind's own settings."""
    shared = fields(TaskSettings)
    names = {field.name for field in shared}
    parts = [_table(shared)]
    for kind in KINDS.values():
        own = [field for field in fields(kind.settings) if field.name not in names]
        parts.append(f"`KIND: {kind.name}`\n\n{_table(own)}")
    return "\n\n".join(parts)


def with_tables(document: str) -> str:
    """A document with its tables replaced by the present ones.

    Raises:
        ValueError: the document lacks one of the two marker lines.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the document has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{task_settings_tables()}\n\n{END}{after}"


def _table(settings: Iterable[Field[Any]]) -> str:
    lines = ["| key | default | range | meaning |", "|---|---|---|---|"]
    for field in settings:
        default, limits = shown_default(field), shown_range(field)
        lines.append(f"| `{field.name.upper()}` | {default} | {limits} | {field.metadata['meaning']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        content = with_tables(Path(name).read_text(encoding="utf-8")).encode()

        def write(file: IO[bytes], content: bytes = content) -> None:
            file.write(content)

        write_atomically(name, write)
