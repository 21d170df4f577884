"""How much the values of a file stand for, where a part may stand in several places without being written again."""

from typing import Any

_CONTAINERS = (dict, list, tuple, set)


def require_bounded(value: Any, most: int, deepest: int) -> None:
    """Check the number of values and the depth as if each part was written out in every place. Forty lists of two that
    each hold the next one twice are a trillion values to whoever walks through them.

    Args:
        value: dicts, lists, tuples and sets in each other, and other values.
        most: the largest number of values.
        deepest: the largest number of levels. A value that contains itself has more.

    Raises:
        ValueError: there are more.
    """
    known: dict[int, tuple[int, int]] = {}  # what is known of parts

    def measured(part: Any, level: int) -> tuple[int, int]:
        """The number of values and the depth of a part."""
        if level > deepest:
            raise ValueError(f"it is nested deeper than {deepest} levels")
        if id(part) not in known:
            known[id(part)] = (0, deepest)  # for a part that contains itself
            inner = [*part.keys(), *part.values()] if isinstance(part, dict) else part
            sizes = [measured(each, level + 1) for each in inner if isinstance(each, _CONTAINERS)]
            alone = len(inner) - len(sizes)
            known[id(part)] = (
                1 + alone + sum(size for size, _ in sizes),
                1 + max((depth for _, depth in sizes), default=0),
            )
        size, depth = known[id(part)]
        if size > most:
            raise ValueError(f"it stands for more than {most} values")
        if depth > deepest:
            raise ValueError(f"it is nested deeper than {deepest} levels")
        return size, depth

    if isinstance(value, _CONTAINERS):
        measured(value, 0)
