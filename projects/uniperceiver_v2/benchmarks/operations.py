"""The operations of a piece of work, their numbers of calls and their times, by PyTorch's profiler on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Operations:
    """Times and calls of PyTorch's operations.

    Attributes:
        times: microseconds of each operation, without the operations that it calls.
        calls: the number of calls of each operation.
        outermost: the number of calls that no other operation made.
    """

    times: Counter[str]
    calls: Counter[str]
    outermost: int

    @classmethod
    def of_events(cls, events: list) -> Operations:
        times, calls, outermost = Counter(), Counter(), 0
        for event in events:
            if event.name.startswith("aten::"):
                times[event.name] += event.self_cpu_time_total
                calls[event.name] += 1
                outermost += event.cpu_parent is None or not event.cpu_parent.name.startswith("aten::")
        return cls(times, calls, outermost)

    @classmethod
    def of_work(cls, work: Callable[[], object]) -> Operations:
        """The operations of one call."""
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            work()
        return cls.of_events(recorded.events())

    def heaviest(self, count: int) -> str:
        """The ``count`` heaviest operations, as in "mm 39.3 (11%, 255), ...": milliseconds, share of all operations,
        calls."""
        whole = self.times.total()
        return ", ".join(
            f"{name.removeprefix('aten::')} {value / 1000:.2f} ({value / whole:.0%}, {self.calls[name]})"
            for name, value in self.times.most_common(count)
        )
