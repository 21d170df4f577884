"""Errors that a user can correct, how programs say them, and images that training can skip."""

import difflib
import sys
from collections.abc import Callable, Iterable

LONGEST_MESSAGE = 2000  # characters
_LISTED = 20  # valid names in a message


class Refusal(Exception):
    """Something from outside that is not used. Whatever its message quotes, it stays readable: of a long one the middle
    is left out, as the file is named at its beginning, and what to do at its end. Half a surrogate pair, as in a file's
    name that is no UTF-8, becomes its escape: no terminal and no log could write it."""

    def __init__(self, message: str = ""):
        message = message.encode("utf-8", "backslashreplace").decode()
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[: LONGEST_MESSAGE * 3 // 4]} [... shortened ...] {message[-LONGEST_MESSAGE // 4 :]}"
        super().__init__(message)


class UserError(Refusal):
    """A setting, a dataset or a file of weights cannot be used.

    The message says all that the user needs: what is wrong and, if possible, how to correct it. Programs print it as
    ``error: <message>`` and exit with code 1, without a traceback.
    """


def exit_code(program: Callable[[], int | None]) -> int:
    """Run a program and return its exit code.

    Args:
        program: returns its exit code, or None for 0. A UserError and an OSError, such as a full disk, are printed on
            stderr and give 1. Ctrl-C gives 130.
    """
    try:
        return program() or 0
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a message about an unknown name.

    Args:
        name: the name that the user wrote.
        valid: the names that are valid.

    Returns:
        ``"; did you mean 'X'?"`` with the closest valid name. If none is close, the list of the valid names, or of the
        first of many. ``""`` if there are no valid names.
    """
    candidates = sorted({str(name) for name in valid})  # keys of YAML can be numbers
    by_lower_case = {candidate.lower(): candidate for candidate in candidates}
    close = difflib.get_close_matches(str(name).lower(), by_lower_case, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{by_lower_case[close[0]]}'?"
    more = f" and {len(candidates) - _LISTED} more" if len(candidates) > _LISTED else ""
    return f"; valid: {', '.join(candidates[:_LISTED])}{more}" if candidates else ""


class UnreadableImage(Refusal):
    """An image file cannot be read, or its size differs from the annotation's. The message names the file."""
