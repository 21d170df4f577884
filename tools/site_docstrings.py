"""Docstrings as the site shows them.

References in Sphinx's form, such as :class:`Predictor`, become code. An entry of several arguments, such as "lr, betas:
as in AdamW", becomes an entry of each, which MkDocs shows with its type and default.
"""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr):`(?:~[\w.]*?)?\.?(\w[\w.]*)`")
# The names at the start of an entry, and its text with the deeper lines that follow.
SHARED_ENTRY = re.compile(r"^    (\w+(?:, \w+)+)(:.*(?:\n {5,}.*)*)", re.MULTILINE)


def plain(docstring: str) -> str:
    """A docstring, its indentation removed, in the form that the site understands. Of ``~a.b.C`` the last name is
    shown."""
    docstring = ROLE.sub(lambda match: f"`{match.group(1)}`", docstring)
    return SHARED_ENTRY.sub(
        lambda match: "\n".join(f"    {name}{match.group(2)}" for name in match.group(1).split(", ")), docstring
    )


class PlainDocstrings(griffe.Extension):
    """Changes all docstrings of a package when it is loaded."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)
