"""The site of `make docs`: it builds without a warning, its links hold, it asks no network, and its notebooks run."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}

pytestmark = pytest.mark.slow


class References(HTMLParser):
    """What a page fetches, what it links to, and the names of its parts."""

    def __init__(self, page: Path):
        super().__init__()
        self.fetched: list[str] = []
        self.linked: list[str] = []
        self.parts: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        its = dict(attrs)
        self.parts.update(its[key] for key in ("id", "name") if its.get(key))
        if its.get(FETCHED.get(tag, "")):
            self.fetched.append(its[FETCHED[tag]])
        if tag == "a" and its.get("href"):
            self.linked.append(its["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    for package in ("material", "mkdocstrings", "nbconvert"):
        pytest.importorskip(package, reason="make docs installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    nowhere = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https")}
    environment = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def test_links_lead_to_pages_and_parts(site):
    pages = {path: References(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 25
    broken = []
    for page, references in pages.items():
        for link in references.linked:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = pages[target].parts if target in pages else set()
            if not target.is_file() or (parts.fragment and unquote(parts.fragment) not in known):
                broken.append(f"{page.relative_to(site)}: {link}")
    assert broken == []


def test_pages_fetch_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        fetched = References(page).fetched
        assert fetched and not [x for x in fetched if re.match(r"(\w+:)?//", x)], page
        if page.name != "404.html":  # which lies wherever a server finds nothing
            assert all((page.parent / unquote(urlsplit(x).path)).is_file() for x in fetched if x[:5] != "data:"), page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(\w+:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_docstrings_are_on_the_pages(site):
    page = (site / "api" / "predictor.html").read_text(encoding="utf-8")
    assert "Asks a trained model about images and texts." in page and ":meth:" not in page
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert any("TaskBalancedAdamW" in entry["title"] for entry in index["docs"])
    assert (site / "search" / "search_index.js").is_file()  # for pages that are opened from disk


def test_arguments_of_one_entry_have_entries(site):
    page = (site / "api" / "solver.html").read_text(encoding="utf-8")
    assert page.count("as in torch.optim.AdamW.") == 4


def texts(notebook) -> str:
    """What the cells of a notebook printed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout")


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("ask_the_model", r"log-likelihood -\d.*\na red three -> \[\('\d+\.png'"),
        ("own_data", r"2 categories: square 33, circle 32.*\nbox AP ([5-9]\d|100)\ncircle .*\n10\n$"),
    ],
)
def test_notebooks_run(name, printed, tmp_path):
    """The notebook that is kept shows the same as a new run."""
    nbformat = pytest.importorskip("nbformat", reason="make docs installs it")
    nbclient = pytest.importorskip("nbclient", reason="make docs installs it")
    pytest.importorskip("ipykernel", reason="make docs installs it")
    kept, notebook = (nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4) for _ in range(2))
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=resources).execute()
    for shown in (kept, notebook):
        assert re.search(printed, texts(shown), re.DOTALL), texts(shown)
    assert "/" not in re.sub(r"shapes/\S+", "", texts(kept))  # no path of anybody's machine
    assert not [o for cell in kept.cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
