"""What ``make docs`` adds to MkDocs: documents from outside docs/, notebooks, and links that hold on the site.

Documents link to each other, and to files of the repository, by relative paths. On disk and on a code host these work.
The site has other paths, and not all files. There a link to a page leads to the page, and one to another file of the
repository becomes the name of the file.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|!?\[[^\[\]]*\]\([^()]*\))+)\]\(([^)\s]+)\)")
CODE_IN_TEXT = re.compile("\0(\\d+)\0")

log = logging.getLogger("mkdocs.hooks.site_pages")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """MkDocs's event: the files of docs/ are known."""
    from mkdocs.structure.files import File

    for source, page in config.extra["brought_in"].items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for notebook in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(notebook)
        for name, content in pages_of_notebook(Path(notebook.abs_src_path), notebook.src_uri).items():
            files.append(File.generated(config, name, content=content))
    return files


def pages_of_notebook(notebook: Path, uri: str) -> dict[str, str | bytes]:
    """A notebook as a page, {path in the site: content}, with the pictures of its outputs beside it."""
    from nbconvert import MarkdownExporter

    folder, stem = posixpath.dirname(uri), notebook.stem
    text, resources = MarkdownExporter().from_filename(str(notebook), {"output_files_dir": f"{stem}_files"})
    pictures = {posixpath.join(folder, name): content for name, content in resources["outputs"].items()}
    return {posixpath.join(folder, f"{stem}.md"): text, **pictures}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """MkDocs's event: the text of a page was read."""
    pages = dict(config.extra["brought_in"])
    for uri in set(files.src_uris) - set(pages.values()):
        notebook = f"docs/{uri.removesuffix('.md')}.ipynb"
        pages[notebook if (ROOT / notebook).is_file() else f"docs/{uri}"] = uri
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]  # it would show the page itself alone
    (origin,) = (source for source, uri in pages.items() if uri == page.file.src_uri)
    return with_links_of_the_site(markdown, origin, page.file.src_uri, pages)


def with_links_of_the_site(markdown: str, origin: str, uri: str, pages: Mapping[str, str]) -> str:
    """The text of a page, with links that hold on the site.

    Args:
        markdown: the document.
        origin: its path in the repository, from which its links start.
        uri: its path in the site.
        pages: {path in the repository: path in the site} of all that the site has.
    """
    code = CODE.findall(markdown)  # which is kept as it is
    places = iter(range(len(code)))
    text = CODE.sub(lambda _: f"\0{next(places)}\0", markdown)

    def linked(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        path, _, anchor = target.partition("#")
        if not path or re.match(r"\w+:", target):
            return match.group()
        source = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        found = pages.get(source) or pages.get(f"{source}/README.md")
        if found:
            relative = posixpath.relpath(found, posixpath.dirname(uri) or ".")
            return f"{mark}[{words}]({relative}{'#' if anchor else ''}{anchor})"
        if mark or not (ROOT / source).exists():
            log.warning("%s links to %s, which is neither on the site nor in the repository", origin, target)
        shown = CODE_IN_TEXT.sub(lambda m: code[int(m.group(1))], words)
        return words if source in shown or shown == posixpath.basename(source) else f"{words} (`{source}`)"

    return CODE_IN_TEXT.sub(lambda m: code[int(m.group(1))], LINK.sub(linked, text))
