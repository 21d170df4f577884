"""Docstrings as the site shows them: references in Sphinx's form, such as :class:`Predictor`, become code."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr):`(?:~[\w.]*?)?\.?(\w[\w.]*)`")


def plain(docstring: str) -> str:
    """A docstring without Sphinx's roles. Of ``~a.b.C`` the last name is shown."""
    return ROLE.sub(lambda match: f"`{match.group(1)}`", docstring)


class PlainReferences(griffe.Extension):
    """Changes all docstrings of a package when it is loaded."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)
