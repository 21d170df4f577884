"""Everything that the documents name exists: files, headings behind links, modules, programs, settings, make's
targets. The site of `make docs` shows all documents and public names."""

import functools
import importlib
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode, get_cfg

import uniperceiver_v2_commands
from uniperceiver_v2.config import add_uniperceiver_v2_config

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "projects" / "uniperceiver_v2"
DOCUMENTS = sorted(
    {
        *(
            ROOT / name
            for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "datasets/README.md")
        ),
        *(ROOT / "docs").rglob("*.md"),
        *PROJECT.glob("*.md"),
        *(ROOT / "projects" / "detectron2_core").glob("*.md"),
    }
)
# A path in a document starts at one of these or at the document's own folder.
ROOTS = (ROOT, PROJECT, PROJECT / "uniperceiver_v2", ROOT / "configs")
# Files that a reader or a run writes.
NOT_OURS = {
    *("configs/boats.yaml", "train_boats.py", "configs/count_digits.yaml", "count_digits.py", "config.yaml"),
    *("make_shapes.py", "shapes.yaml", "tuned.yaml", "ask.py", "output/shapes/config.yaml"),
}
# These documents describe an earlier state.
DATED = ("CHANGELOG.md", "docs/reports/")

LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?<![\w./<>{}*-])((?:[\w.-]+/)*[\w-]+\.(?:py|md|yaml|toml|cff))(?![\w/*])")
MODULE = re.compile(r"(?<![\w./-])((?:uniperceiver_v2|detectron2)(?:\.\w+)+)")
TARGET = re.compile(r"(?<![\w-])make ((?:[a-z][a-z-]* ?)+)")
COMMANDS = "|".join(uniperceiver_v2_commands.COMMANDS)
PROGRAM = re.compile(
    r"python3? (?P<file>(?:projects|datasets)/[\w/]+\.py)\b|-m (?P<module>uniperceiver_v2\.\w+)\b"
    rf"|uniperceiver(?:-v2|_v2_commands) (?P<command>{COMMANDS})\b"
)
NAME = re.compile(r"(?<![\w/-])([A-Z][a-z0-9]+[A-Z]\w*|[a-z_]\w*(?=\(\)))(?![\w/-])")
SETTING = re.compile(
    r"(?<![\w.])((?:MODEL|SOLVER|TASKS|DATASETS|DATALOADER|INPUT|TEST)(?:\.[A-Za-z_<>0-9]+)+)(?![\w.])"
)


def anchors(text: str) -> set[str]:
    """GitHub's names of the headings of a document."""
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title)) for title in HEADING.findall(text))
    return {title.strip().lower().replace(" ", "-") for title in plain}


def code_of(text: str) -> str:
    """Code blocks and code spans, each on a separate line."""
    return "\n".join(block or span for block, span in CODE.findall(text))


def broken_links(document: Path, text: str) -> Iterator[str]:
    for target in LINK.findall(FENCED.sub("", text)):
        if re.match(r"\w+:", target):
            continue  # another site's
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        content = text if file == document else None
        if not file.exists():
            yield f"link to {target}"
        elif anchor and anchor not in anchors(content or file.read_text(encoding="utf-8")):
            yield f"link to {target}, which has no such heading"


def missing_files(document: Path, text: str) -> Iterator[str]:
    for path in FILE.findall(code_of(text)):
        if path in NOT_OURS:
            continue
        if "/" in path:
            found = any((root / path).exists() for root in (document.parent, *ROOTS))
        else:
            found = (document.parent / path).exists() or any(_files_named(path))
        if not found:
            yield f"file {path}"


def _files_named(name: str) -> Iterator[Path]:
    if (ROOT / name).exists():
        yield ROOT / name
    for folder in ("projects", "tests", "datasets", "configs", "docs"):
        yield from (ROOT / folder).rglob(name)


def missing_modules(document: Path, text: str) -> Iterator[str]:
    for name in MODULE.findall(code_of(text)):
        if FILE.fullmatch(name):
            continue
        if not _importable(name):
            yield f"module or name {name}"


def _importable(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def missing_targets(document: Path, text: str) -> Iterator[str]:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in TARGET.findall(code_of(text)):
        yield from (f"make {word}" for word in words.split() if word not in targets)


def missing_settings(document: Path, text: str) -> Iterator[str]:
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    for key in SETTING.findall(code_of(text)):
        if key.startswith("TASKS.") and key != "TASKS.NAMES":
            continue  # users name these nodes
        node: CfgNode | None = cfg
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                yield f"setting {key}"
                break
            node = node[part]


@functools.cache
def _words_of_the_code() -> frozenset[str]:
    sources = [path for folder in ("projects", "datasets") for path in (ROOT / folder).rglob("*.py")]
    return frozenset(re.findall(r"\w+", "\n".join(source.read_text(encoding="utf-8") for source in sources)))


def missing_names(document: Path, text: str) -> Iterator[str]:
    """Classes and calls in code spans that do not exist. They are recognised by their form: ``AsThis``,
    ``as_this()``."""
    spans = "\n".join(span for span in re.findall(r"`([^`\n]+)`", FENCED.sub("", text)))
    for name in NAME.findall(spans):
        if name not in _words_of_the_code():
            yield f"name {name}"


def missing_options(document: Path, text: str) -> Iterator[str]:
    """Options in commands that their program does not know."""
    for line in code_of(text).replace("\\\n", " ").splitlines():
        found = PROGRAM.search(line)
        if found is None:
            continue
        sources = _sources_of(**found.groupdict())
        for option in re.findall(r"(?<= )--[a-z][a-z-]*", line[found.end() :].partition(" #")[0]):
            if f'"{option}"' not in sources:
                yield f"option {option} of {found[0].strip()}"


@functools.cache
def _sources_of(file: str | None, module: str | None, command: str | None) -> str:
    """The text of a program and the modules beside it. That of training has options of Detectron2 and the engine."""
    if command is not None:
        its = uniperceiver_v2_commands.COMMANDS[command]
        return _sources_of(its.file or None, its.module or None, None)
    place = ROOT / file if file else PROJECT / str(module).replace(".", "/") / "__main__.py"
    shared = ("detectron2_core/detectron2/engine/_setup.py", "uniperceiver_v2/uniperceiver_v2/engine/processes.py")
    more = [ROOT / "projects" / name for name in shared if place.name == "train_net.py"]
    return "\n".join(path.read_text(encoding="utf-8") for path in (*sorted(place.parent.glob("*.py")), *more))


CHECKS = (
    *(broken_links, missing_files, missing_modules, missing_targets, missing_settings, missing_names),
    missing_options,
)


def test_the_version_is_one_everywhere():
    version = re.search(r'version="([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8")).group(1)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert str(citation["version"]) == version
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## ([\d.]+)", changes, re.MULTILINE).group(1) == version


def test_every_pinned_package_has_its_licence_in_the_list():
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    rows = re.findall(r"^\| (?!licence|-).+ \| (.+) \|$", (ROOT / "docs/licences.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(pins) == sorted(name for row in rows for name in row.split(", "))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_exists(document):
    assert document.is_file()
    text = document.read_text(encoding="utf-8")
    dated = str(document.relative_to(ROOT)).startswith(DATED)
    checks = (broken_links,) if dated else CHECKS
    assert [found for check in checks for found in check(document, text)] == []


def tour_stops() -> list[tuple[str, set[str], set[str]]]:
    """(text, files, names in code spans) of each stop of the code tour."""
    tour = (ROOT / "docs" / "code_tour.md").read_text(encoding="utf-8")
    stops = re.split(r"^\d+\. ", tour.split("\nThen the tests.")[0], flags=re.MULTILINE)[1:]
    spans = [set(re.findall(r"`([^`]+)`", stop)) for stop in stops]
    files = [{span for span in of_stop if FILE.fullmatch(span)} for of_stop in spans]
    names = [
        {span.split(".")[-1].removesuffix("()") for span in of_stop if re.fullmatch(r"[\w.]+(\(\))?", span)}
        - {file.split(".")[-1] for file in of_files}
        for of_stop, of_files in zip(spans, files, strict=True)
    ]
    return list(zip(stops, files, names, strict=True))


def test_the_code_tour_shows_what_it_says():
    """Ten stops. Every name in a stop occurs in one of the files of the stop."""
    stops = tour_stops()
    assert len(stops) == 10
    for stop, files, names in stops:
        paths = [next(root / file for root in ROOTS if (root / file).is_file()) for file in files]
        words = set(re.findall(r"\w+", "\n".join(path.read_text(encoding="utf-8") for path in paths)))
        assert names - words == set(), stop


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml. Python objects in it, which need MkDocs's packages, are None."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
# Public names that are a number, a type's name or a table alone, or that only fill registries when they are imported.
WITHOUT_AN_ENTRY = {"THRESHOLD", "ImageLike", "ImagesLike", "MODEL_ZOO", "SECTIONS"}


def leaves(nav: list | dict | str) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from leaves(part)


def not_in_the_navigation(nav: list) -> set[str]:
    """Pages that the navigation lacks, and entries of it without a page."""
    folder = ROOT / "docs"
    documents = [path for end in ("md", "ipynb") for path in folder.rglob(f"*.{end}")]
    pages = {path.relative_to(folder).with_suffix(".md").as_posix() for path in documents}
    return pages.union(SITE["extra"]["brought_in"].values()).symmetric_difference(leaves(nav))


def test_every_page_is_in_the_navigation():
    assert not_in_the_navigation(SITE["nav"]) == set()
    assert not_in_the_navigation([part for part in SITE["nav"] if "API" not in part]) == {
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / "api").glob("*.md")
    }


def test_every_document_is_a_page():
    outside = {path.relative_to(ROOT).as_posix() for path in DOCUMENTS if not path.is_relative_to(ROOT / "docs")}
    zoo = {path.relative_to(ROOT).as_posix() for path in (ROOT / "zoo").rglob("*.md")}
    assert set(SITE["extra"]["brought_in"]) == outside | zoo


@pytest.mark.parametrize("module", ["predictor", "config", "data", "solver", "report"])
def test_every_public_name_has_an_entry(module):
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "api").glob("*.md"))
    entries = re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)
    assert all(_importable(entry) for entry in entries) and len(set(entries)) == len(entries)
    public = set(importlib.import_module(f"uniperceiver_v2.{module}").__all__) - WITHOUT_AN_ENTRY
    assert {f"uniperceiver_v2.{module}.{name}" for name in public} - set(entries) == set()


def tool(name: str):
    """A module of tools/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = {
    "README.md": "index.md",
    "docs/report.md": "report.md",
    "docs/api/data.md": "api/data.md",
    "docs/pictures/report.jpg": "pictures/report.jpg",
    "zoo/digit_scenes_small/README.md": "zoo.md",
}


@pytest.mark.parametrize(
    ("origin", "text", "on_the_site"),
    [
        ("docs/report.md", "[start](../README.md#license)", "[start](index.md#license)"),
        ("README.md", "[a](docs/report.md), [b](docs/api/data.md)", "[a](report.md), [b](api/data.md)"),
        ("docs/api/data.md", "![it](../pictures/report.jpg)", "![it](../pictures/report.jpg)"),
        ("README.md", "![it](docs/pictures/report.jpg)", "![it](pictures/report.jpg)"),
        ("README.md", "[the model](zoo/digit_scenes_small)", "[the model](zoo.md)"),
        ("README.md", "see [LICENSE](LICENSE)", "see LICENSE"),
        ("docs/report.md", "[its\nterms](../LICENSE)", "its\nterms (`LICENSE`)"),
        ("docs/report.md", "[`setup.py`](../setup.py)", "`setup.py`"),
        ("docs/report.md", "[a](#b), [c](https://example.org/d)", "[a](#b), [c](https://example.org/d)"),
        ("docs/report.md", "`[a](../LICENSE)`", "`[a](../LICENSE)`"),
        ("docs/report.md", "```\n[a](../LICENSE)\n```", "```\n[a](../LICENSE)\n```"),
    ],
)
def test_links_hold_on_the_site(origin, text, on_the_site):
    assert tool("site_pages").with_links_of_the_site(text, origin, PAGES[origin], PAGES) == on_the_site


def test_a_link_to_nothing_is_a_warning(caplog):
    """MkDocs ends a strict build at a warning of its loggers."""
    tool("site_pages").with_links_of_the_site("[a](nowhere.md)", "docs/report.md", "report.md", PAGES)
    assert [(record.levelname, record.name) for record in caplog.records] == [("WARNING", "mkdocs.hooks.site_pages")]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("[there](docs/architecture.md) and [not there](docs/nowhere.md)", "link to docs/nowhere.md"),
        ("[no part](docs/architecture.md#nowhere)", "link to docs/architecture.md#nowhere, which has no such heading"),
        ("see `docs/architecture.md` and `engine/nowhere.py`", "file engine/nowhere.py"),
        ("`trainer.py`, `nowhere.py`", "file nowhere.py"),
        ("```sh\npython projects/uniperceiver_v2/nowhere.py --help\n```", "file projects/uniperceiver_v2/nowhere.py"),
        ("`uniperceiver_v2.config.load_config`, `uniperceiver_v2.nowhere`", "module or name uniperceiver_v2.nowhere"),
        ("`uniperceiver_v2.config.nothing`", "module or name uniperceiver_v2.config.nothing"),
        ("`make lint test` and `make nothing`", "make nothing"),
        ("`UnifiedDecoder`, `NoDecoder` and `not_at_all()`", ["name NoDecoder", "name not_at_all"]),
        ("`SOLVER.BASE_LR` and `SOLVER.NOTHING 1`", "setting SOLVER.NOTHING"),
        (
            "`python projects/uniperceiver_v2/train_net.py --resume --resum`",
            "option --resum of python projects/uniperceiver_v2/train_net.py",
        ),
        (
            "```sh\npython -m uniperceiver_v2.new x --base y \\\n    --bas z  # --else\n```",
            "option --bas of -m uniperceiver_v2.new",
        ),
        ("`uniperceiver-v2 serve --port 1 --prt 1`", "option --prt of uniperceiver-v2 serve"),
        ("`MODEL.UNIPERCEIVER_V2.REGION.NOTHING`", "setting MODEL.UNIPERCEIVER_V2.REGION.NOTHING"),
    ],
)
def test_what_does_not_exist_is_found(text, found):
    messages = [message for check in CHECKS for message in check(ROOT / "README.md", text)]
    assert messages == (found if isinstance(found, list) else [found])
