"""The page: a picture on the left, a tab for each question on the right."""

from __future__ import annotations

import functools
import html
import logging
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from ..errors import UnreadableImage, UserError
from ..predictor import THRESHOLD
from ..predictor.learned import NAMES_SHOWN
from .answers import Answers, Found
from .index import Index, Shown
from .limits import megabytes

logger = logging.getLogger(__name__)

AT_ONCE = 2  # requests: while the model answers one, the other reads or draws its picture
RESULTS = 12  # of a search
COLUMNS = ["name", "score", "left", "top", "right", "bottom"]
UPLOADS_KEPT = 3600  # seconds
UNEXPECTED = "the server could not answer this question; its log says why"
UNTRAINED = "*The model was not trained for this. Its answers here mean nothing.*"
OTHERS = """Stop the server and start it with another model:

```sh
python -m uniperceiver_v2.web --zoo digit_scenes/small
python -m uniperceiver_v2.web my_model                # a directory of Predictor.save_pretrained
python -m uniperceiver_v2.web --config-file output/RUN/config.yaml --weights output/RUN/model_final.pth
```
"""

# Small pictures fill their frame.
STYLE = """
#picture img, #detect-picture img, #ground-picture img { width: 100%; height: 100%; object-fit: contain; }
#search-gallery .grid-wrap { max-height: none; }
#search-gallery .caption-label { left: 0; right: 0; max-width: none; text-align: center; font-size: 0.75em; }
footer .divider { display: none; }
.about p { margin: 0.2em 0; }
.said p { font-size: 0.95em; opacity: 0.85; margin: 0; }
"""


def theme() -> gr.themes.Base:
    """Fonts of the reader's own machine: gradio's usual ones come from a server elsewhere."""
    fonts = ["system-ui", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif"]
    mono = ["ui-monospace", "Consolas", "DejaVu Sans Mono", "monospace"]
    legible = {"block_info_text_color": "*neutral_600", "input_placeholder_color": "*neutral_500"}
    return gr.themes.Default(primary_hue="blue", font=fonts, font_mono=mono).set(
        **legible, block_info_text_color_dark="*neutral_300", input_placeholder_color_dark="*neutral_400"
    )


def in_sentences(question: Callable[..., Any]) -> Callable[..., Any]:
    """Errors as sentences on the page. What nobody expected goes into the log, and not to the visitor."""

    @functools.wraps(question)
    def asked(*inputs: Any) -> Any:
        try:
            return question(*inputs)
        except (UserError, UnreadableImage) as error:
            text = str(error)
        except Exception:
            logger.exception("a question failed")
            text = UNEXPECTED
        text = f"{text[:1].upper()}{text[1:]}" + "." * (text[-1:] not in ".!?")
        raise gr.Error(html.escape(text, quote=False), print_exception=False)  # gradio shows messages as HTML

    return asked


class Page:
    """The functions behind the tabs, with values as the page shows them.

    Args:
        answers: the model.
        index: the folder to search, if the operator named one.
        examples: paths of pictures to pick from.
    """

    def __init__(self, answers: Answers, index: Index | None = None, examples: Sequence[str] = ()):
        self.answers, self.index, self.examples = answers, index, list(examples)

    def detect(self, picture: str | None, labels: str, threshold: float) -> tuple[Any, Any, str]:
        return _shown(self.answers.detect(picture, labels, threshold))

    def ground(self, picture: str | None, phrases: str, threshold: float) -> tuple[Any, Any, str]:
        return _shown(self.answers.ground(picture, phrases, threshold))

    def classify(self, picture: str | None, labels: str) -> dict[str, float]:
        return self.answers.classify(picture, labels)

    def caption(self, picture: str | None) -> tuple[str, str]:
        return self.answers.caption(picture)

    def search_by_text(self, text: str) -> tuple[list[tuple[Any, str]], str]:
        index = self._index()
        return _gallery(index.shown(self.answers.search(index.gallery(), text, RESULTS))), index.said()

    def search_by_picture(self, picture: str | None) -> tuple[list[tuple[Any, str]], str]:
        index = self._index()
        return _gallery(index.nearest(self.answers.feature_of(picture), RESULTS)), index.said()

    def _index(self) -> Index:
        if self.index is None:
            raise UserError(self.said_of_search())
        return self.index

    def said_of_search(self) -> str:
        if self.index is not None:
            return self.index.said()
        return "no folder can be searched: whoever starts the server names one with --search FOLDER"

    def blocks(self) -> gr.Blocks:
        """The page. Its queue holds back what the model cannot answer yet."""
        limits = self.answers.limits
        title = "Uni-Perceiver v2"
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(UPLOADS_KEPT // 4, UPLOADS_KEPT)) as page:
            gr.Markdown(f"# {title}\n{self.answers.learned}", elem_classes="about")
            with gr.Accordion(f"Model: {self.answers.name or 'without a name'}. How to load another", open=False):
                gr.Markdown(OTHERS)
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    picture = _upload(limits.upload_bytes)
                    gr.Markdown(
                        f"Up to {megabytes(limits.upload_bytes)} and {limits.pixels / 1e6:.3g} megapixels. The picture "
                        "is encoded once and kept in memory for a while, for the questions of all tabs.",
                        elem_classes="said",
                    )
                    if self.examples:
                        gr.Examples(self.examples, picture, label="Or pick an example", examples_per_page=12)
                with gr.Column(scale=3, min_width=400), gr.Tabs():
                    self._detect_tab(picture)
                    self._ground_tab(picture)
                    self._classify_tab(picture)
                    self._caption_tab(picture)
                    said = self._search_tab(picture)
            page.load(self.said_of_search, None, said, queue=False, api_visibility="private", show_progress="hidden")
        return page.queue(max_size=limits.waiting, default_concurrency_limit=AT_ONCE, api_open=False)

    def _detect_tab(self, picture: gr.Image) -> None:
        with gr.Tab("Detect", id="detect"):
            self._note("detection")
            info = "Any names, with commas between them. Name everything that has to be told apart."
            labels = self._labels_field("detection", info)
            self._objects_of(self.detect, "Detect", picture, labels)

    def _ground_tab(self, picture: gr.Image) -> None:
        with gr.Tab("Ground", id="ground"):
            self._note("grounding")
            phrases = gr.Textbox(
                label="Phrases to look for",
                info="With commas between them. A phrase may mean several objects, or none.",
                placeholder="the red seven, a blue two",
            )
            self._objects_of(self.ground, "Find", picture, phrases)

    def _objects_of(self, question: Callable[..., Any], verb: str, picture: gr.Image, texts: gr.Textbox) -> None:
        threshold = gr.Slider(
            0, 1, THRESHOLD, step=0.01, label="Threshold", info="Objects with a lower score are left out."
        )
        button = gr.Button(verb, variant="primary")
        said = gr.Markdown(elem_classes="said")
        drawn = gr.Image(
            label="Objects",
            interactive=False,
            format="png",
            buttons=["download", "fullscreen"],
            height=460,
            elem_id=f"{question.__name__}-picture",
        )
        table = gr.Dataframe(
            headers=COLUMNS,
            label="In pixels of the picture",
            interactive=False,
            type="array",
            column_widths=["30%", "14%", "14%", "14%", "14%", "14%"],
            wrap=True,
            elem_id=f"{question.__name__}-table",
        )
        self._ask(question, [button.click, texts.submit], [picture, texts, threshold], [drawn, table, said])

    def _classify_tab(self, picture: gr.Image) -> None:
        with gr.Tab("Classify", id="classify"):
            self._note("classification")
            info = "For the whole picture, more exactly for the square at its centre."
            labels = self._labels_field("classification", info)
            button = gr.Button("Classify", variant="primary")
            bars = gr.Label(label="Probabilities", num_top_classes=5)
            self._ask(self.classify, [button.click, labels.submit], [picture, labels], [bars])

    def _caption_tab(self, picture: gr.Image) -> None:
        with gr.Tab("Caption", id="caption"):
            self._note("captioning")
            button = gr.Button("Caption", variant="primary")
            text = gr.Textbox(label="Caption", interactive=False, lines=2, buttons=["copy"])
            likelihood = gr.Textbox(label="Its likelihood", interactive=False)
            self._ask(self.caption, [button.click], [picture], [text, likelihood])

    def _search_tab(self, picture: gr.Image) -> gr.Markdown:
        with gr.Tab("Search", id="search"):
            self._note("retrieval")
            said = gr.Markdown(self.said_of_search(), elem_classes="said")
            able = self.index is not None
            text = gr.Textbox(
                label="Text",
                info=self._order_of_search(),
                placeholder="a red seven to the left of a blue two",
                interactive=able,
                elem_id="search-text",
            )
            with gr.Row():
                by_text = gr.Button("Search by text", variant="primary", interactive=able)
                by_picture = gr.Button("Search by the picture", interactive=able)
            found = gr.Gallery(
                label="Best first",
                show_label=False,
                columns=3,
                object_fit="contain",
                height="auto",
                elem_id="search-gallery",
            )
            self._ask(self.search_by_text, [by_text.click, text.submit], [text], [found, said])
            self._ask(self.search_by_picture, [by_picture.click], [picture], [found, said])
        return said

    def _order_of_search(self) -> str:
        text = "Pictures are shown best first, each with the cosine of its features and those asked for."
        if count := self.answers.compared_again:
            text += (
                f" A search by text sorts the {count} with the largest cosines once more: how likely the text is as a "
                "picture's caption counts, too."
            )
        return text

    def _labels_field(self, kind: str, info: str) -> gr.Textbox:
        """The field for labels. While it is empty, it shows the names of the training, which are meant then."""
        names = self.answers.labels(kind)
        shown = f"empty: {', '.join(names[:NAMES_SHOWN])}{', ...' * (len(names) > NAMES_SHOWN)}" if names else ""
        return gr.Textbox(label="Labels to choose from", info=info, placeholder=shown)

    def _note(self, kind: str) -> None:
        if kind not in self.answers.trained:
            gr.Markdown(UNTRAINED)

    def _ask(self, question: Callable[..., Any], events: list[Any], inputs: list[Any], outputs: list[Any]) -> None:
        """The first event is open to programs, under the question's name."""
        for place, event in enumerate(events):
            event(
                in_sentences(question),
                inputs,
                outputs,
                api_name=question.__name__,
                api_visibility="public" if place == 0 else "private",
                concurrency_limit=AT_ONCE,
                concurrency_id="model",
                trigger_mode="once",
                show_progress_on=outputs[0],  # an error needs no sign on each of them
            )


def _upload(most: int) -> gr.Image:
    """The field for a picture. Its value is the path of the upload, which the answers read themselves."""
    field = gr.Image(label="Picture", type="filepath", sources=["upload", "clipboard"], height=360, elem_id="picture")

    # Gradio would decode the file first, whatever its size, and fetch addresses of the web for the visitor.
    def path_of(value: Any) -> str | None:
        return None if value is None else value.path

    async def kept(path: Any) -> str | None:
        if path is not None and "://" in str(path)[:16]:
            raise gr.Error("Upload the picture itself: addresses are not fetched.", print_exception=False)
        return await fetched(path)

    fetched = field.async_move_resource_to_block_cache
    field.preprocess, field.async_move_resource_to_block_cache = path_of, kept  # type: ignore[method-assign, assignment]
    return field


def _shown(found: Found) -> tuple[Any, list[list[Any]], str]:
    return found.picture, found.rows, found.said


def _gallery(matches: Sequence[Shown]) -> list[tuple[Any, str]]:
    return [(match.thumbnail, f"{match.similarity:.2f} · {match.name}") for match in matches]
