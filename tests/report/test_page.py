"""The page: complete for a whole run, and honest about what a run lacks."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from uniperceiver_v2.errors import UserError
from uniperceiver_v2.report import SECTIONS, Part, plots, write_report
from uniperceiver_v2.report.__main__ import main
from uniperceiver_v2.report.blocks import Note, Table

DATASETS = [f"made_up_{name}" for name in ("boxes", "classes", "words", "pairs", "corpus", "phrases")]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see of a page: its text without tags, its addresses, its gaps."""

    def __init__(self, path):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.gaps: list[str] = []
        self.marked: list[str] = []
        self.boxes: list[str] = []
        self._in: str = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [attributes[key] for key in ("href", "src") if key in attributes]
        self.ids += [attributes["id"]] if "id" in attributes else []
        self._in = attributes.get("class", "")
        if tag == "rect" and self._in != "under":
            self.boxes.append(self._in)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self._in = ""

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            return
        self.words.append(data)
        if self._in == "gap":
            self.gaps.append(data)
        if self._in == "wrong" and self.open[-1] == "span":
            self.marked.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def quick(monkeypatch):
    """Leaves the drawing of plots out, which takes most of the time."""
    monkeypatch.setattr(plots, "_grid", lambda *_: "data:image/svg+xml;base64,PHN2Zy8+")


@pytest.fixture
def page_of(tmp_path):
    def write(*folders):
        write_report([str(folder) for folder in folders], str(tmp_path / "page.html"))
        return Page(tmp_path / "page.html")

    return write


def test_a_whole_run_has_every_section_and_no_gap(page_of, run_folder):
    page = page_of(run_folder)
    assert page.gaps == []
    for dataset in DATASETS:
        assert f": {dataset}" in page.text
    for figure in ("61.5", "80.0", "75.0", "31.2", "88.5", "42.0", "7.25", "66.7"):
        assert figure in page.text
    for sentence in (
        "SOLVER.BASE_LR 0.25 0.001",
        "Expected calibration error",
        "Task boxes",
        "Results during training",
        "the text number 5 of <b>the</b> corpus",
        "“the dog”",
        "“a bird”",
        "caption 3",
        "the framed picture is not among the first 3",
        "its own caption 4 not among the first 4",
    ):
        assert sentence in page.text, sentence
    assert "cat 2 70.0 100.0" not in page.text  # of two cats one is taken for a dog
    assert re.search(r"cat 2 70\.0 \S+ 50\.0 50\.0", page.text)
    assert {"right", "wrong", "missed"} <= set(page.boxes)
    # It needs nothing else.
    anchors = [address[1:] for address in page.addresses if address.startswith("#")]
    assert anchors and sorted(set(anchors)) == sorted(set(page.ids)) and len(set(anchors)) == len(anchors)
    others = [address for address in page.addresses if not address.startswith("#")]
    assert len(others) > 20
    assert all(address.startswith("data:image/") for address in others)
    drawings = [base64.b64decode(a.split(",", 1)[1]).decode() for a in others if a.startswith("data:image/svg")]
    assert drawings and not any(re.search(r'(?:href|src)="(?!#|data:)', drawing) for drawing in drawings)
    assert "<script" not in page.source and "url(http" not in page.source
    assert "default-src 'none'" in page.source


def test_texts_of_others_stay_texts(quick, page_of, run_folder):
    page = page_of(run_folder)
    assert "two <cats> & a dog" in page.text
    assert "<cats>" not in page.source
    assert "<b>" not in page.source


def test_false_words_are_marked_by_the_references(quick, page_of, run_folder):
    page = page_of(run_folder)
    assert set(page.marked) >= {"red"}  # "cats" and "dog" are in a reference, as "cat" and "dogs"
    assert not {"cats", "cat", "dog", "a", "two"} & set(page.marked)


def test_false_words_are_marked_by_the_facts_where_they_are_known(quick, page_of, run_folder):
    texts = ["a red seven", "a red seven in the middle", "a blue one", "red"]
    truths = [
        [["digits", True], ["colours", False], ["counts", True]],
        [["digits", True], ["colours", True], ["places", False]],
        [["digits", True], ["colours", True], ["counts", True]],
        [["colours", True]],
    ]
    folder = run_folder / "inference/made_up_words"
    captions = json.loads((folder / "predictions.json").read_text())
    for record, text in zip(captions, texts):
        record["caption"] = text
    (folder / "predictions.json").write_text(json.dumps(captions))
    verdicts = [
        {
            "image_id": i,
            "caption": text,
            "parsed": True,
            "true": all(true for _, true in mentions),
            "mentions": mentions,
        }
        for i, (text, mentions) in enumerate(zip(texts, truths), 1)
    ]
    (folder / "truth.json").write_text(json.dumps(verdicts))
    page = page_of(run_folder)
    assert set(page.marked) - {"dog 70", "cat 80"} >= {"red", "in the middle"}
    assert not {"seven", "blue", "one"} & set(page.marked)
    assert "over 4 whole captions" in page.text


def test_equal_runs_have_equal_pages(quick, page_of, run_folder):
    assert page_of(run_folder).source == page_of(run_folder).source


def test_equal_plots_have_equal_bytes():
    first, second = (plots.lines_plot({"a": ([1, 2], [3, 4])}, "x", "y") for _ in range(2))
    assert first == second
    assert "</svg>" in base64.b64decode(first.split(",", 1)[1]).decode()


FILES = {
    "inference/made_up_boxes/coco_instances_results.json": "the run has no detections of made_up_boxes",
    "inference/made_up_classes/predictions.json": "no file inference/made_up_classes/predictions.json",
    "inference/made_up_words/predictions.json": "no file inference/made_up_words/predictions.json",
    "inference/made_up_pairs/predictions.json": "no file inference/made_up_pairs/predictions.json",
    "inference/made_up_corpus/predictions.json": "no file inference/made_up_corpus/predictions.json",
    "inference/made_up_phrases/predictions.json": "no file inference/made_up_phrases/predictions.json",
    "metrics.json": "the run has no metrics.json",
    "results.json": "There are no results",
}


def test_every_missing_file_is_said(quick, page_of, run_folder):
    for name in FILES:
        (run_folder / name).unlink()
    gaps = " ".join(page_of(run_folder).gaps)
    assert [gap for gap in FILES.values() if gap not in gaps] == []


def test_a_run_without_settings_shows_what_it_has(quick, page_of, run_folder):
    (run_folder / "config.yaml").write_text("a: [")
    page = page_of(run_folder)
    assert page.gaps == ["Not shown: the run has no config.yaml that can be read."]
    assert "the text number 5" in page.text and "“the dog”" in page.text


@pytest.mark.parametrize("content", ["", "[[1, 2], {}]", '{"a": 1}', "[]", "null", "\udcff", "[" * 100_000])
def test_files_of_another_form_are_said(page_of, run_folder, content):
    for name in FILES:
        (run_folder / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    page = page_of(run_folder)
    assert len(page.gaps) >= 8
    assert "SOLVER.BASE_LR 0.25 0.001" in page.text


def test_whole_lines_of_a_cut_file_count(quick, page_of, run_folder):
    with open(run_folder / "metrics.json", "a") as file:
        file.write('{"iteration": 79, "lr"')
    page = page_of(run_folder)
    assert page.gaps == []
    assert "iterations 60 of 100 tested" in page.text


def test_a_run_that_lacks_a_task_says_so(quick, page_of, run_folder):
    shutil.rmtree(run_folder / "inference/made_up_phrases")
    for name in ("config.yaml", "results.json"):
        text = (run_folder / name).read_text()
        (run_folder / name).write_text(text.replace("made_up_phrases", "made_up_classes"))
    page = page_of(run_folder)
    assert page.gaps == ["This run trained these kinds of task and has no evaluation of them: grounding."]
    assert "not-evaluated" in page.ids


def test_a_dataset_that_is_not_here_leaves_gaps_and_the_rest(quick, page_of, run_folder, images):
    for dataset in DATASETS:
        DatasetCatalog.remove(dataset)
    shutil.move(images[1], images[1] + ".moved")
    page = page_of(run_folder)
    assert "annotations cannot be read" in " ".join(page.gaps)
    assert f"{images[1]} cannot be read" in " ".join(page.gaps)
    assert "61.5" in page.text and "“the dog”" in page.text and "caption 3" in page.text


def test_images_that_have_moved_are_found_by_the_dataset(quick, page_of, run_folder):
    for path in run_folder.rglob("predictions.json"):
        path.write_text(re.sub(r'"file_name": "[^"]*/', '"file_name": "elsewhere/', path.read_text()))
    page = page_of(run_folder)
    assert page.gaps == []


def test_several_runs_are_compared(quick, page_of, run_folder, make_run):
    other = make_run("second", seed=5)
    (other / "results.json").write_text(
        (other / "results.json").read_text().replace("61.5", "64.0").replace("7.25", "6.0")
    )
    page = page_of(run_folder, other)
    assert page.text.index("Comparison") < page.text.index("Settings that differ")
    assert "SEED 0 5" in page.text
    assert "made_up_boxes boxes AP 61.5 64.0 +2.5" in page.text
    assert "corpus language modelling perplexity 7.25 6.00 −1.25" in page.text
    assert "classification top1 75.0 75.0" not in page.text and "9 that are the same in all runs" in page.text
    assert "OUTPUT_DIR" not in page.text[: page.text.index("Figures")]
    assert "AP of categories, made_up_boxes" in page.text
    assert page.gaps == []


def test_equal_results_are_said_and_equal_names_are_told_apart(quick, page_of, make_run):
    folders = make_run("a/run"), make_run("b/run")
    page = page_of(*folders)
    assert "All 11 figures are the same." in page.text
    assert page.text.startswith(f"{folders[0]} · {folders[1]} Comparison")
    assert f"compared with {folders[1]}" in page.text


@pytest.mark.parametrize(("last", "said"), [(59, "60 of 100"), (99, "100"), (100, "100")])
def test_iterations_of_a_run(quick, page_of, run_folder, last, said):
    with open(run_folder / "metrics.json", "a") as file:
        file.write(json.dumps({"iteration": last, "lr": 0.1}) + "\n")
    assert f"iterations {said} tested on" in page_of(run_folder).text


def test_a_part_that_fails_leaves_the_rest(quick, page_of, run_folder, monkeypatch):
    def fail():
        raise RuntimeError("an error of mine")

    monkeypatch.setitem(SECTIONS, "grounding", lambda evaluation: [Part("My part", fail)])
    page = page_of(run_folder)
    assert len(page.gaps) == 1 and "RuntimeError: an error of mine" in page.gaps[0]
    assert "the text number 5" in page.text


def test_a_part_of_ones_own_kind(quick, page_of, run_folder, monkeypatch):
    table = Table(["count", "value"], [["<tall>", 1.25], ["none", None]], decimals=2)
    monkeypatch.setitem(SECTIONS, "grounding", lambda evaluation: [Part("My part", lambda: [table, Note("done")])])
    text = page_of(run_folder).text
    assert "My part count value <tall> 1.25 none n/a done" in text


def test_the_part_of_the_document(quick, page_of, run_folder, monkeypatch):
    text = (Path(__file__).parents[2] / "docs/report.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setattr("uniperceiver_v2.report.SECTIONS", parts := {})
    exec(code, {})
    monkeypatch.setitem(SECTIONS, "grounding", parts["counting"])
    results = run_folder / "results.json"
    results.write_text(results.read_text().replace('"grounding"', '"counting"'))
    assert "Errors of counting figure value Acc@0.5 66.7" in page_of(run_folder).text


def test_the_program(quick, run_folder, tmp_path, capsys):
    assert main([str(run_folder)]) == 0
    assert capsys.readouterr().out.strip() == str(run_folder / "report.html")
    assert Page(run_folder / "report.html").gaps == []
    assert main([str(run_folder), "--output", str(tmp_path / "elsewhere.html")]) == 0
    assert (tmp_path / "elsewhere.html").exists()


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_run_is_one_sentence(tmp_path, capsys, name):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: there is no run in ") and len(error.splitlines()) == 1
    with pytest.raises(UserError):
        write_report([], str(tmp_path / "page.html"))


def test_a_single_point_is_drawn():
    def drawing(y):
        return base64.b64decode(plots.curves_plot({"loss": [(range(len(y)), y)]}).split(",", 1)[1]).decode()

    assert f"fill: {plots.COLOURS[0]}" in drawing([2.0])  # of a dot; a line has a stroke alone
    assert f"fill: {plots.COLOURS[0]}" not in drawing([2.0, 3.0])
