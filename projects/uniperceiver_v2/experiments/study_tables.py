"""The tables of a study, from what is there of its runs.

A row has means and standard deviations over seeds. With a reference arm, each row is also compared with it by a t-test:
a paired one over the seeds that both have, or one of a single seed against all of the reference. A task of a run has
left its plateau if, at the end of training, it has learned ``LEARNED`` of what a model on the plateau does not know.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run_records import log_of, report_of

from uniperceiver_v2.files import write_atomically

if TYPE_CHECKING:
    from study import Study

LEARNED = 0.2  # of the share of wrong answers on the plateau
END = 0.1  # of the log's lines are the end of training
CERTAIN = 0.05  # a difference with a smaller p has a mark
HELP_OF_OUTPUT = "folder of the runs; one that is not the usual gets tables of its own"

Values = Mapping[int, float]  # of a metric by seed


def spread_of(values: Sequence[float]) -> float:
    """The sample's standard deviation. It is 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def mean_and_spread(values: Sequence[float]) -> str:
    """A cell of a table: the mean, and for several values ± their spread."""
    spread = f" ± {spread_of(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}" if values else "-"


def span_of(dates: Iterable[str]) -> str:
    """The first and the last date, or the only one."""
    first, *_, last = sorted(2 * [*dates])
    return first if first == last else f"{first} to {last}"


def marks_of(program: str) -> tuple[str, str]:
    """The lines before and after the table that a program of this folder writes into a document."""
    return f"<!-- table: written by experiments/{program}.py -->\n", "<!-- end of table -->\n"


def document_of(records: Path, document: Path, usual: Path) -> Path:
    """Where the tables of a folder of records belong: in the document if it is the usual one, otherwise in a file of
    the same name among the records."""
    return document if records.resolve() == usual.resolve() else records / document.name


def write_between_marks(document: Path, program: str, table: str) -> None:
    """Replace the table that a program has written into a document. One that is missing holds nothing but the table."""
    first, last = marks_of(program)
    document.parent.mkdir(parents=True, exist_ok=True)
    before, rest = (document.read_text() if document.exists() else first + last).split(first)
    text = before + first + table + last + rest.split(last, 1)[1]
    write_atomically(str(document), lambda file: file.write(text.encode()))


@dataclass(frozen=True)
class Difference:
    """Of two arms: its mean, and the p of a t-test that there is none."""

    mean: float
    p: float

    @property
    def mark(self) -> str:
        return "" if not self.p < CERTAIN else " ↑" if self.mean > 0 else " ↓"


def difference(values: Values, reference: Values) -> Difference | None:
    """Of the seeds that both have, in pairs; None if there are fewer than two. A single seed is compared with all of
    the reference, as if its arm's differed as much. p is NaN if there is no difference at all."""
    from scipy.stats import ttest_ind, ttest_rel

    seeds = sorted(values.keys() & reference.keys())
    if len(values) == 1 and len(reference) > 1:
        own, others, test = list(values.values()), list(reference.values()), ttest_ind
    elif len(seeds) > 1:
        own, others = ([of_arm[seed] for seed in seeds] for of_arm in (values, reference))
        test = ttest_rel
    else:
        return None
    mean = statistics.mean(own) - statistics.mean(others)
    alike = own == others or len({*own, *others}) == 1
    return Difference(mean, math.nan if alike else float(test(own, others).pvalue))


@dataclass(frozen=True)
class Plateau:
    """Where a task waits before it learns: the accuracy of training there, and the scalar that tells it."""

    scalar: str
    level: float

    def is_left(self, log: Sequence[Mapping[str, float]]) -> bool:
        """Whether the accuracy at the end of a log is far enough above the level."""
        last = log[-max(1, round(END * len(log))) :]
        found = [line[self.scalar] for line in last if self.scalar in line]
        return bool(found) and 1 - statistics.mean(found) <= (1 - LEARNED) * (1 - self.level)


@dataclass(frozen=True)
class StudyTables:
    """The tables of a study's runs with a number of iterations and the first seeds, whatever machines did them."""

    study: Study
    seeds: int
    iterations: int

    @property
    def splits(self) -> list[str]:
        """Those of the finished runs, test first. If there are none, a nameless one."""
        names = sorted((path.name for path in self.study.output.glob("*") if path.is_dir()), reverse=True)
        return [name for name in names if any(self.reports(list(self.study.arms), name))] or [""]

    def reports(self, arms: Sequence[str], split: str) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """The arm, the seed and the report of each finished run of some arms."""
        for name in arms:
            for seed in range(self.seeds):
                report = report_of(self.study.folder_of(name, seed, self.iterations, split))
                if report is not None:
                    yield name, seed, report

    def values(self, arms: Sequence[str], metric: str, split: str) -> dict[int, float]:
        """The value of a metric by seed, from the one of the arms that was tested for it."""
        task, kind, key = self.study.metrics[metric]
        tested = [name for name in arms if task in self.study.tasks_of(name)]
        runs = self.reports(tested, split)
        results = {seed: run["results"][self.study.tests[task]].get(kind, {}) for _, seed, run in runs}
        return {seed: found[key] for seed, found in results.items() if key in found}

    def on_plateau(self, arms: Sequence[str], task: str, split: str) -> list[tuple[str, int]]:
        """The arms and seeds in which a task was on its plateau to the end. Runs without a log are not judged."""
        tested = [name for name in arms if task in self.study.tasks_of(name)]
        logs = (
            (name, seed, log_of(self.study.folder_of(name, seed, self.iterations, split)))
            for name, seed, _ in self.reports(tested, split)
        )
        return [(name, seed) for name, seed, log in logs if log and not self.study.plateau(name, task).is_left(log)]

    def compared(self, arms: Sequence[str], metric: str, split: str) -> Difference | None:
        """The difference of a row from the reference arm, if there is one and the row is another."""
        reference = self.study.reference
        if not reference or list(arms) == [reference]:
            return None
        return difference(self.values(arms, metric, split), self.values([reference], metric, split))

    def markdown(self) -> str:
        """All tables, and what has to be known about the runs and the marks."""
        parts = [self._means(), self._provenance(), self._plateaus(), self._differences()]
        return "\n".join(part for part in parts if part)

    def _rows(self) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
        """(heading, row, arms, split); a heading by itself has no row. A row without runs has its first split alone."""
        for heading, rows in self.study.tables.items():
            if heading:
                yield heading, "", (), ""
            for row, arms in rows.items():
                for split in [name for name in self.splits if any(self.reports(arms, name))] or self.splits[:1]:
                    yield heading, row, arms, split

    def _means(self) -> str:
        metrics = self.study.metrics
        lines = [f"| {self.study.first_column} | split | seeds | {' | '.join(metrics)} |"]
        lines.append("|---|---|---:|" + "---:|" * len(metrics))
        for heading, row, arms, split in self._rows():
            if not row:
                lines.append(f"| **{heading}** |" + " |" * (2 + len(metrics)))
                continue
            values = [self.values(arms, metric, split) for metric in metrics]
            counts = sorted({len(of_metric) for of_metric in values} - {0})
            cells = [self._cell(arms, metric, split, own) for metric, own in zip(metrics, values)]
            lines.append(f"| {row} | {split} | {'/'.join(map(str, counts))} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"

    def _cell(self, arms: Sequence[str], metric: str, split: str, values: Values) -> str:
        compared = self.compared(arms, metric, split)
        stays = self.on_plateau(arms, self.study.metrics[metric][0], split) if self._is_judged(metric) else []
        return mean_and_spread(list(values.values())) + (compared.mark if compared else "") + (" †" if stays else "")

    def _is_judged(self, metric: str) -> bool:
        return self.study.metrics[metric][0] in self.study.plateaus

    def _provenance(self) -> str:
        finished = [run for split in self.splits for run in self.reports(list(self.study.arms), split)]
        if not finished:
            return "No run is finished.\n"
        used, runs = sorted({seed for _, seed, _ in finished}), [report for _, _, report in finished]
        hours = sum(run["minutes"] for run in runs) / 60
        return (
            f"{len(runs)} runs with --iterations {self.iterations} and seed {', '.join(map(str, used))}, finished "
            f"{span_of(run['date'] for run in runs)}; {hours:.1f} hours of training together.\n"
        )

    def _plateaus(self) -> str:
        """Which runs did not leave a plateau, if they are judged."""
        arms, found = list(self.study.arms), []
        for split in self.splits:
            for task in self.study.plateaus:
                found += [f"{name} {seed} ({task}, {split})" for name, seed in self.on_plateau(arms, task, split)]
        return f"† On its plateau to the end, by arm and seed: {', '.join(found)}.\n" if found else ""

    def _pairs(self) -> Iterator[tuple[str, str, list[Difference | None]]]:
        """(row, split, differences by metric) of each row from the reference, then of the study's comparisons."""
        metrics = list(self.study.metrics)
        for _, row, arms, split in self._rows():
            yield row, split, [self.compared(arms, metric, split) for metric in metrics]
        for name, (arms, others) in self.study.comparisons.items():
            for split in self.splits:
                pairs = [(self.values(arms, metric, split), self.values(others, metric, split)) for metric in metrics]
                yield name, split, [difference(*pair) for pair in pairs]

    def _differences(self) -> str:
        """The differences, and how many marks are to be expected by chance."""
        metrics, lines, all_found = list(self.study.metrics), [], []
        for row, split, compared in self._pairs():
            found = [one for one in compared if one and not math.isnan(one.p)]
            if found:
                all_found += found
                cells = (f"{one.mean:+.1f} (p {one.p:.2g}){one.mark}" if one else "-" for one in compared)
                lines.append(f"| {row} | {split} | {' | '.join(cells)} |")
        if not lines:
            return ""
        certain, tests = sum(one.p < CERTAIN for one in all_found), len(all_found)
        others = " or as named" if self.study.comparisons else ""
        head = [f"| minus {self.study.reference}{others} | split | {' | '.join(metrics)} |"]
        head.append("|---|---|" + "---:|" * len(metrics))
        return "\n".join(head + lines) + (
            f"\n\nt-tests over seeds against the arm {self.study.reference!r}{others}: paired, or of one seed against "
            f"all of the other's. {certain} of {tests} have p < {CERTAIN} and an arrow; {CERTAIN * tests:.1f} would by "
            "chance alone.\n"
        )
