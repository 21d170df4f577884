"""The common form of all adapters: rules from a source's keys to ours, and the table of what became of each key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from ...errors import UserError

LISTED = 12  # keys in a message, of each kind


@dataclass(frozen=True)
class Rule:
    """What becomes of the source's keys of a pattern.

    In a pattern ``*`` stands for one part of a key and ``**`` for any number of parts. In a target they stand for what
    they stood for in the source, in their order. For example, ``Rule("layers.*.norm1.**", "layers.*.ffn_norm.**")``.

    Attributes:
        source: pattern of the source's keys.
        target: our key; "" if the source's is skipped.
        how: how values are changed, or why they are skipped; "" if they are loaded as they are.
        convert: from the source's tensor to ours.
        like: the source's key that this one has to equal, where the original shares a part. ``{0}`` is what the
            pattern's first star stands for, ``{1}`` the second.
    """

    source: str
    target: str
    how: str = ""
    convert: Callable[[Tensor], Tensor] | None = None
    like: str = ""


@dataclass(frozen=True)
class Plan:
    """All that an adapter says about a source.

    Attributes:
        source: its name, for people.
        rules: a key follows each rule whose pattern it has. A key without one is left over, which is an error.
        supplied: our keys with values that the source does not have, and the reason.
        kept: patterns of our keys that keep the values of their initialisation, and the reason.
        parts: patterns of our keys that the source has to fill. Other keys are none of its business.
        needs: the settings with which the model fits the source, for people.
    """

    source: str
    rules: list[Rule]
    parts: tuple[str, ...]
    needs: str = ""
    supplied: dict[str, tuple[Tensor, str]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


@dataclass
class Table:
    """What became of the keys, as lists of (source's key, our key, how or why)."""

    source: str
    needs: str = ""
    loaded: list[tuple[str, str, str]] = field(default_factory=list)
    converted: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)
    supplied: list[tuple[str, str, str]] = field(default_factory=list)
    kept: list[tuple[str, str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        """A line for keys that differ in numbers alone. Their numbers are shown as ``*``."""
        lines = [f"{self.source}:" if not self.needs else f"{self.source}, which needs {self.needs}:"]
        for name in ("loaded", "converted", "skipped", "supplied", "kept"):
            entries = getattr(self, name)
            lines.append(f"  {name} {len(entries)}")
            groups: dict[tuple[str, str, str], int] = {}
            for source, target, how in entries:
                group = _without_numbers(_module(source)), _without_numbers(_module(target)), how
                groups[group] = groups.get(group, 0) + 1
            for (source, target, how), count in groups.items():
                keys = " -> ".join(key for key in (source, target) if key)
                lines.append(f"    {count:4d}  {keys}" + (f"  ({how})" if how else ""))
        return "\n".join(lines)


def _module(key: str) -> str:
    return re.sub(r"\.(weight|bias|running_mean|running_var|num_batches_tracked)$", "", key)


def _without_numbers(key: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", key)


def convert(state: Mapping[str, Tensor], own: Mapping[str, Tensor], plan: Plan) -> tuple[dict[str, Tensor], Table]:
    """Our tensors of a source's, and the table of what became of all keys.

    Args:
        state: the source's tensors.
        own: the state of our model, whose keys and shapes the result has to have.

    Raises:
        UserError: a key of the source is left over, one of ours gets no value or two, or a shape differs. The message
            names the keys.
    """
    table, found, wrong = Table(plan.source, plan.needs), dict[str, Tensor](), list[str]()
    for key, value in state.items():
        matches = [(rule, match) for rule in plan.rules if (match := _pattern(rule.source).fullmatch(key))]
        if not matches:
            wrong.append(f"{key} {list(value.shape)}: left over, nothing is known of it")
        for rule, match in matches:
            twin, target = rule.like.format(*match.groups()), _fill(rule.target, match)
            if twin and not torch.equal(value, state.get(twin, value[:0])):
                wrong.append(f"{key}: differs from {twin}, with which the original shares it")
            if not target:
                table.skipped.append((key, "", rule.how))
                continue
            if target in found:
                wrong.append(f"{target}: {key} is a second value of it")
            found[target] = value if rule.convert is None else rule.convert(value)
            (table.converted if rule.convert else table.loaded).append((key, target, rule.how))
    for key, (value, reason) in plan.supplied.items():
        found[key] = value
        table.supplied.append(("", key, reason))
    for key, value in found.items():
        if key not in own:
            wrong.append(f"{key} {list(value.shape)}: not in the model")
        elif value.shape != own[key].shape:
            wrong.append(f"{key}: {list(value.shape)} in the source, {list(own[key].shape)} in the model")
    for key in own.keys() - found.keys():
        if any(_pattern(part).fullmatch(key) for part in plan.parts):
            if (reason := reason_for(key, plan.kept)) is None:
                wrong.append(f"{key} {list(own[key].shape)}: gets no value")
            else:
                table.kept.append(("", key, reason))
    table.kept.sort()
    if wrong:
        more = f"\n  and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        listed = "\n  ".join(sorted(wrong)[:LISTED])
        needs = f"\nThe settings that it needs: {plan.needs}" if plan.needs else ""
        raise UserError(
            f"{plan.source}: {len(wrong)} keys do not fit the settings or are not known:\n  {listed}{more}{needs}"
        )
    return {key: value.to(own[key].dtype) for key, value in found.items()}, table


def reason_for(key: str, reasons: Mapping[str, str]) -> str | None:
    """The reason of the first pattern that a key has, None if it has none."""
    return next((reason for pattern, reason in reasons.items() if _pattern(pattern).fullmatch(key)), None)


@lru_cache(maxsize=4096)
def _pattern(pattern: str) -> re.Pattern:
    stars = {"**": "(.+)", "*": r"([^.]+)"}
    return re.compile("".join(stars.get(part, re.escape(part)) for part in re.split(r"(\*\*|\*)", pattern)))


def _fill(target: str, match: re.Match) -> str:
    values = iter(match.groups())
    return re.sub(r"\*\*|\*", lambda _: next(values), target)
