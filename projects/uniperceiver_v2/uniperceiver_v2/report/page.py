"""The page: its sections from the runs, and their HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

import jinja2

from .. import tasks  # noqa: F401  (registers the kinds)
from ..errors import UserError
from ..evaluation import result_cells
from ..files import write_atomically
from ..kinds import KINDS, TaskKind
from .blocks import Block, Note, Section, Table
from .comparison import comparison_parts
from .curves import result_curves, run_curves, task_curves
from .run import Evaluation, Run
from .sections import SECTIONS, Part
from .settings import settings_blocks

_TEMPLATES = Path(__file__).parent / "templates"


def write_report(paths: Sequence[str], output: str) -> None:
    """Write a report on runs. The page needs no other file and no network.

    Args:
        paths: the OUTPUT_DIRs. The first run is shown in full, the others are compared with it.
        output: the HTML file. It is written completely or not at all.

    Raises:
        UserError: a folder does not exist, or has no file of a run. What else a run lacks is said on the page.
        OSError: the file cannot be written.
    """
    if not paths:
        raise UserError("a report needs the folder of a run")
    text = render([Run(path) for path in paths])
    write_atomically(output, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def render(runs: Sequence[Run]) -> str:
    """The HTML of a report."""
    if len({run.name for run in runs}) < len(runs):  # folders of the same name
        for run in runs:
            run.name = run.path
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,  # captions, names and paths are other people's texts
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html").render(
        title=" · ".join(run.name for run in runs),
        lead=_lead(runs),
        sections=list(_sections(runs)),
        style=(_TEMPLATES / "style.css").read_text(encoding="utf-8"),
    )


def _lead(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Pairs of a word and a value that say what runs they are."""
    run, *others = runs
    pairs = [
        ("folder", run.path),
        ("compared with", ", ".join(other.path for other in others)),
        ("tasks", ", ".join(f"{name} ({node.get('KIND', '?')})" for name, node in run.tasks.items())),
        ("iterations", _iterations(run)),
        ("tested on", ", ".join(run.datasets)),
    ]
    return [(name, value) for name, value in pairs if value]


def _iterations(run: Run) -> str:
    """How many iterations the run has done, and how many it was to do if these are more."""
    if not run.rows:
        return ""
    done = max(row["iteration"] for row in run.rows) + 1
    wanted = (run.settings.get("SOLVER") or {}).get("MAX_ITER", done)
    # The results at the end of a run are in a row of their own, at the iteration after the last.
    return f"{done} of {wanted}" if done < wanted else f"{wanted}"


def _sections(runs: Sequence[Run]) -> Iterable[Section]:
    run = runs[0]
    if len(runs) > 1:
        yield _section("Comparison", comparison_parts(runs))
    yield _section("Results", [Part("", partial(_results, run))])
    yield _section("Settings", [Part("", partial(settings_blocks, run))])
    curves = [Part("The run", partial(run_curves, runs))]
    curves += [Part(f"Task {name}", partial(task_curves, runs, name)) for name in run.tasks]
    yield _section("Training", curves)
    evaluations = [run.evaluation(dataset) for dataset in run.datasets]
    for kind in KINDS.values():
        for evaluation in evaluations:
            if evaluation.kind is kind:
                yield _evaluation(runs, evaluation, kind)
    for evaluation in evaluations:
        if evaluation.kind is None:
            yield _evaluation(runs, evaluation, None)
    evaluated = {evaluation.kind.name for evaluation in evaluations if evaluation.kind}
    lacking = {node.get("KIND") for node in run.tasks.values()} & KINDS.keys() - evaluated
    if lacking:
        names = ", ".join(name.replace("_", " ") for name in KINDS if name in lacking)
        note = Note(f"This run trained these kinds of task and has no evaluation of them: {names}.", is_gap=True)
        yield _section("Not evaluated", [Part("", lambda: [note])])


def _section(title: str, parts: Iterable[Part]) -> Section:
    """A section with the parts that have blocks."""
    shown = [(part.title, blocks) for part in parts if (blocks := part.blocks())]
    return Section(title, _anchor(title), shown)


def _evaluation(runs: Sequence[Run], evaluation: Evaluation, kind: TaskKind | None) -> Section:
    """The section of a dataset: its results in training if there were several, and what its kind shows."""
    parts = [Part("Results during training", partial(result_curves, runs, evaluation.dataset))]
    if kind is None:
        note = Note("It is not known what kind of task evaluates this dataset.", is_gap=True)
        return _section(evaluation.dataset, [*parts, Part("", lambda: [note])])
    if kind.name in SECTIONS:
        parts += SECTIONS[kind.name](evaluation)
    else:
        parts.append(Part("", lambda: [Note("Its figures are among the results above.")]))
    return _section(f"{kind.name.replace('_', ' ').capitalize()}: {evaluation.dataset}", parts)


def _results(run: Run) -> list[Block]:
    if not run.results:
        return [Note("There are no results: neither results.json nor a file of an evaluator can be read.", is_gap=True)]
    tables: list[Block] = []
    for kind in KINDS.values():
        for header, *rows in result_cells(run.results, kind):
            tables.append(Table(["dataset", "task", *header[2:]], rows, texts=2))
    lacking = [dataset for dataset in run.datasets if dataset not in run.results]
    if lacking:
        tables.append(Note(f"Without results: {', '.join(lacking)}.", is_gap=True))
    return tables


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")
