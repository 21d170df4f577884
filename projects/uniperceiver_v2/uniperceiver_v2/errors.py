"""Errors that a user can correct, and images that training can skip."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A setting, a dataset or a file of weights cannot be used.

    The message says all that the user needs: what is wrong and, if possible, how to correct it. ``train_net.py`` prints
    it as ``error: <message>`` and exits with code 1, without a traceback.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name.

    Args:
        name: the name that the user wrote.
        valid: the names that are valid.

    Returns:
        ``"; did you mean 'X'?"`` with the closest valid name. If none is close, the list of the valid names. ``""`` if
        there are no valid names.
    """
    candidates = sorted(set(valid))
    by_lower_case = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{by_lower_case[close[0]]}'?"
    return f"; valid: {', '.join(candidates)}" if candidates else ""


class UnreadableImage(Exception):
    """An image file cannot be read, or its size differs from the annotation's. The message names the file."""
