"""Texts that a model is asked about: a label, a phrase, a question."""

from typing import Any

from ..errors import UserError

LONGEST_TEXT = 2**16  # characters


def require_text(text: Any, what: str) -> None:
    """
    Args:
        text: what should be a text.
        what: its name in the message.

    Raises:
        UserError: it is none, is blank, has more than ``LONGEST_TEXT`` characters, or half a surrogate pair, which no
            encoding has.
    """
    if not isinstance(text, str) or not text.strip():
        wanted = "with at least one letter"
    elif len(text) > LONGEST_TEXT:
        wanted = f"of at most {LONGEST_TEXT} characters (one has {len(text)})"
    elif not _is_encodable(text):
        wanted = "of whole characters"
    else:
        return
    raise UserError(f"{what} have to be texts {wanted}, not {text!r:.100}")


def _is_encodable(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False
