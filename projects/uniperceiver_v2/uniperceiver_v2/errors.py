"""What a user can put right: settings, data, weights; and images that training can do without."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A setting, a dataset or a file of weights that cannot be used.

    The message stands alone: it names what is wrong and, where there is one, the way out. ``train_net.py``
    prints it as ``error: <message>`` and exits with code 1, without a traceback.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """How to end a message about an unknown name.

    Args:
        name: what the user wrote.
        valid: what could have been written.

    Returns:
        ``"; did you mean 'X'?"`` with the closest valid name, the valid names where none comes close, or
        ``""`` where there are none.
    """
    candidates = sorted(set(valid))
    by_lower_case = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{by_lower_case[close[0]]}'?"
    return f"; valid: {', '.join(candidates)}" if candidates else ""


class UnreadableImage(Exception):
    """An image file that cannot be read, or whose size is not the annotations'; the message names it."""
