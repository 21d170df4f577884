"""Lists of pairs without test photographs, and corpora as shards."""

import bz2
import csv
import gzip
import json
import sqlite3
from pathlib import Path

import pytest

from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.errors import UserError

from ...data import miniatures
from .conftest import tar_of

FLICKR = "http://farm4.staticflickr.com/3153/{}_cbb439a6c2_z.jpg"
OTHER = "https://host.org/photos/391895.jpg"


@pytest.fixture
def registered(root, monkeypatch) -> Path:
    """COCO and Flickr30k, with images 2 and 4 and photographs 8 and 9 as tests."""
    miniatures.register_only(root, monkeypatch)
    miniatures.write_coco(root, [1, 2])
    miniatures.write_coco(root, [4], "val2017")
    miniatures.write_karpathy_coco(root, {"train": [1], "val": [2], "test": [4]})
    miniatures.write_flickr30k(root, {"val": [9], "test": [8]})
    return root


def rows_of(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


ADDRESSES = {
    "a test of COCO": FLICKR.format(miniatures.photo_of(4)),
    'in "train" of COCO': FLICKR.format(miniatures.photo_of(1)),
    "a test of Flickr30k": "https://static.flickr.com/2723/8_b0f291553e.jpg",
    "of the web": OTHER,
    "  white \t\t space ": "https://host.org/2.png",
}
KEPT = [
    {"url": FLICKR.format(miniatures.photo_of(1)), "caption": 'in "train" of COCO'},
    {"url": OTHER, "caption": "of the web"},
]


def write_cc3m(folder: Path) -> None:
    lines = [f"{caption}\t{url}\n" for caption, url in list(ADDRESSES.items())[:-1]]
    (folder / "Train_GCC-training.tsv").write_text("".join(lines))


def write_cc12m(folder: Path) -> None:
    lines = [f"{url}\t{caption}\n" for caption, url in list(ADDRESSES.items())[:-1]]
    (folder / "cc12m.tsv").write_text("".join(lines))


def write_sbu(folder: Path) -> None:
    content = {"image_urls": [*ADDRESSES.values()], "captions": [*ADDRESSES]}
    members = {"dataset/sbu-captions-all.json": json.dumps(content).encode()}
    (folder / "sbu-captions-all.tar.gz").write_bytes(gzip.compress(tar_of(members)))


@pytest.mark.parametrize(("name", "write"), [("cc3m", write_cc3m), ("cc12m", write_cc12m), ("sbu", write_sbu)])
def test_lists_without_the_photographs_of_test_sets(prepare, registered, downloads, name, write):
    write(downloads)
    status, told = prepare("web_pairs", name)
    assert status == 0
    table = registered / name / "pairs.tsv"
    extra = [{"url": "https://host.org/2.png", "caption": "white space"}] if name == "sbu" else []
    assert rows_of(table) == KEPT + extra
    assert f"{len(KEPT) + len(extra)} pairs; 2 are left out, as they show photographs of test sets" in told
    assert f"img2dataset --url_list {table}" in told and f"--output_folder {registered / name} " in told
    assert "warning: these test sets are not there" in told and "refcoco_unc_val" in told
    with pytest.raises(UserError, match=rf"prepare it with: python datasets/prepare/web_pairs\.py {name}"):
        load_dataset(f"{name}_train")  # there are no shards yet


def test_yfcc(prepare, registered, downloads):
    status, told = prepare("web_pairs", "yfcc")
    assert status == 1 and "expected yfcc100m_subset_data.tsv.bz2 (" in told and "yfcc100m_dataset.sql (65 GB)" in told
    rows = b"12\t8\tabc\n13\t77\tdef\n14\t78\tfff\n15\t9\tghi\n"
    (downloads / "yfcc100m_subset_data.tsv.bz2").write_bytes(bz2.compress(rows))
    with sqlite3.connect(downloads / "yfcc100m_dataset.sql") as database:
        database.execute(
            "CREATE TABLE yfcc100m_dataset (photoid integer PRIMARY KEY, uid text, title text, description text, "
            "downloadurl text, marker integer)"
        )
        for row in (
            (8, "u", "A+test", "", FLICKR.format(8), 0),
            (
                77,
                "u",
                "Two+%26+three.",
                "<b>A red</b>\n boat&amp;#39;s sail".replace("\n", "%0A"),
                FLICKR.format(77),
                0,
            ),
            (78, "u", "", "", FLICKR.format(78), 0),
            (99, "u", "not+of+the+subset", "", FLICKR.format(99), 0),
        ):
            database.execute("INSERT INTO yfcc100m_dataset VALUES (?, ?, ?, ?, ?, ?)", row)
    status, told = prepare("web_pairs", "yfcc")
    assert status == 0 and "1 pairs; 1 are left out" in told
    (row,) = rows_of(registered / "yfcc/pairs.tsv")
    assert row["url"] == FLICKR.format(77) and row["caption"].startswith("Two & three. A red boat")


def test_lines_end_with_a_line_feed_alone(prepare, registered, downloads):
    """A caption of the web may have a carriage return, and a list may end its lines with both."""
    (downloads / "Train_GCC-training.tsv").write_bytes(f"a red\rboat\t{OTHER}\na sail\t{OTHER}\r\n".encode())
    assert prepare("web_pairs", "cc3m")[0] == 0
    rows = rows_of(registered / "cc3m/pairs.tsv")
    assert rows == [{"url": OTHER, "caption": "a red boat"}, {"url": OTHER, "caption": "a sail"}]


def test_what_a_list_needs_is_named(prepare, registered, downloads):
    status, told = prepare("web_pairs", "cc12m")
    assert status == 1 and "expected cc12m.tsv (2.5 GB)" in told and "web_pairs.py cc12m" in told
    (downloads / "cc12m.tsv").write_text(f"{OTHER}\tfine\n{OTHER}\n")
    status, told = prepare("web_pairs", "cc12m")
    assert status == 1 and "cc12m.tsv: line 2 has 1 columns, not 2" in told
    assert not (registered / "cc12m/pairs.tsv").exists()
    karpathys = registered / "coco/annotations/dataset_coco.json"
    whole = karpathys.read_text()
    karpathys.write_text(whole[:50])
    status, told = prepare("web_pairs", "cc12m")
    assert status == 1 and "dataset_coco.json" in told and "cut short" in told
    karpathys.write_text(whole)
    for path in (registered / "coco/annotations").glob("instances_*"):
        path.unlink()
    status, told = prepare("web_pairs", "cc12m")
    assert status == 1 and "2 images of test sets have no address at Flickr" in told and "coco.py" in told


def test_books_become_passages_of_whole_lines(prepare, registered, tmp_path):
    book = ["It was a red boat .", "", "It had a sail .", "one two three four five six seven eight nine ten", "end ."]
    (tmp_path / "a.txt").write_text("\n".join(book))
    (tmp_path / "b.txt").write_text("Another book .\n")
    with pytest.raises(UserError, match=r"prepare it with: python datasets/prepare/corpus\.py bookcorpus TEXTS"):
        load_dataset("bookcorpus_train")
    options = ("--words", 8, "--passages", 2)
    status, told = prepare("corpus", "bookcorpus", tmp_path / "a.txt", tmp_path / "b.txt", *options)
    assert status == 0 and "5 passages in 3 shards" in told
    assert [p.name for p in sorted((registered / "bookcorpus").glob("*"))] == ["00000.txt", "00001.txt", "00002.txt"]
    records = load_dataset("bookcorpus_train")
    assert [records[n]["text"] for n in range(len(records))] == [
        "It was a red boat .",
        "It had a sail .",
        "one two three four five six seven eight",
        "nine ten end .",
        "Another book .",
    ]
    status, told = prepare("corpus", "bookcorpus", tmp_path / "b.txt")
    assert status == 0 and "has shards already" in told


def test_wikipedia_as_wikiextractor_writes_it(prepare, registered, tmp_path):
    articles = [
        {
            "id": "12",
            "url": "https://en.wikipedia.org/wiki?curid=12",
            "title": "Boat",
            "text": "Boat\n\nA boat floats.",
        },
        {"id": "13", "url": "https://en.wikipedia.org/wiki?curid=13", "title": "Sea", "text": "The sea is wide."},
    ]
    folder = tmp_path / "extracted/AA"
    folder.mkdir(parents=True)
    (folder / "wiki_00").write_text("".join(json.dumps(article) + "\n" for article in articles))
    (folder / "wiki_01").write_text(json.dumps({**articles[1], "text": ""}) + "\n")
    assert prepare("corpus", "wikipedia", tmp_path / "extracted")[0] == 0
    records = load_dataset("wikipedia_train")
    assert [records[n]["text"] for n in range(len(records))] == ["Boat A boat floats.", "The sea is wide."]


@pytest.mark.parametrize(
    ("content", "words"),
    [('{"title": "x"}\n', 'line 1 is no JSON with a "text"'), ("\n \n", "there is no text in"), (None, "is not there")],
)
def test_a_corpus_that_cannot_be_made_leaves_no_shards(prepare, registered, tmp_path, content, words):
    source = tmp_path / "source"
    if content is not None:
        source.write_text(content)
    status, told = prepare("corpus", "wikipedia", source)
    assert status == 1 and words in told and str(source) in told
    assert not list((registered / "wikipedia").glob("*.txt"))
