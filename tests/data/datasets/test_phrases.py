"""Images with phrases in each of the formats, as miniatures of the real files; and what is refused, by name."""

import collections
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from uniperceiver_v2.data import load_dataset, register_phrases
from uniperceiver_v2.data.datasets.builtin import register_grounding_sets
from uniperceiver_v2.data.datasets.phrases import load_phrases
from uniperceiver_v2.data.datasets.refer import load_plain_pickle
from uniperceiver_v2.errors import UserError

IMAGES = [{"id": i, "file_name": f"{i}.jpg", "height": 40, "width": 60} for i in (3, 9)]
OUTLINE = [[2, 2, 12, 2, 12, 12]]


def write(path: Path, content) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def message_of(name: str) -> str:
    with pytest.raises(UserError) as caught:
        load_phrases(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def summary(record: dict) -> list[tuple[str, list]]:
    """(phrase, its boxes) of a record."""
    boxes = [list(a["bbox"]) for a in record["annotations"]]
    assert all(a["bbox_mode"] == BoxMode.XYWH_ABS for a in record["annotations"])
    return [(entry["phrase"], [boxes[i] for i in entry["objects"]]) for entry in record["phrases"]]


# Our own format.


def own_entries() -> list[dict]:
    left, right = [2, 2, 10, 10], [30, 5, 8.5, 20]
    return [
        {"id": 5, "image_id": 9, "phrase": "all  boats\n", "bboxes": [left, right]},
        {"id": 4, "image_id": 9, "phrase": "the left boat", "bboxes": [left]},
        {"id": 6, "image_id": 9, "phrase": "a whale", "bboxes": []},
        {"id": 7, "image_id": 3, "phrase": " ", "bboxes": [left]},
    ]


@pytest.fixture
def own(tmp_path, catalogs):
    def register(entries: list[dict]) -> str:
        path = write(tmp_path / "own.json", {"images": IMAGES, "annotations": entries})
        register_phrases("own", path, "photos")
        return path

    return register


def test_boxes_in_our_own_format(own, logged):
    own(own_entries())
    (record,) = load_phrases("own")
    assert (record["file_name"], record["image_id"], record["height"], record["width"]) == ("photos/9.jpg", 9, 40, 60)
    left, right = [2, 2, 10, 10], [30, 5, 8.5, 20]
    assert summary(record) == [("the left boat", [left]), ("all boats", [left, right]), ("a whale", [])]
    assert len(record["annotations"]) == 2  # a box that two phrases mean is one object
    assert MetadataCatalog.get("own").evaluator_type == "grounding"
    assert any("1 phrases are empty" in message for message in logged())
    assert any("1 of 2 images have no phrase" in message for message in logged())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phrase": 7}, ["annotation 5", "7, not a string"]),
        ({"image_id": 8}, ["annotation 5", "image 8"]),
        ({"bboxes": [[1, 2, 3]]}, ["annotation 5", "[1, 2, 3]"]),
        ({"bboxes": [[1, 2, 0, 4]]}, ["annotation 5", "[1, 2, 0, 4]", "area"]),
        ({"bboxes": [[1, 2, "3", 4]]}, ["annotation 5", "'3'"]),
        ({"bboxes": [[1, 2, 1e9, 4]]}, ["1000000000"]),
        ({"bboxes": None}, ["TypeError"]),
    ],
)
def test_an_entry_that_cannot_be_used_is_named(own, change, words):
    entries = own_entries()
    entries[0].update(change)
    path = own(entries)
    message = message_of("own")
    assert all(word in message for word in (path, *words)), message


def test_instances_of_another_file(tmp_path, catalogs):
    """Its annotations are the objects, those that no phrase means among them, with their masks."""
    annotations = [
        {
            "id": 70 + i,
            "image_id": 9,
            "category_id": 4,
            "bbox": [2 + i, 2, 10, 10],
            "iscrowd": 0,
            "segmentation": OUTLINE,
        }
        for i in range(3)
    ]
    coco = {"images": IMAGES, "annotations": annotations, "categories": [{"id": 4, "name": "boat"}]}
    instances = write(tmp_path / "instances.json", coco)
    entries = [{"id": 1, "image_id": 9, "phrase": "the last boats", "annotation_ids": [72, 71]}]
    register_phrases("own", write(tmp_path / "p.json", {"annotations": entries}), "photos", instances_json=instances)
    (record,) = load_phrases("own")
    assert len(record["annotations"]) == 3 and record["annotations"][2]["segmentation"] == OUTLINE
    assert summary(record) == [("the last boats", [[4, 2, 10, 10], [3, 2, 10, 10]])]
    entries[0]["annotation_ids"] = [99]
    write(tmp_path / "p.json", {"annotations": entries})
    message = message_of("own")
    assert "annotation 1 means annotation 99" in message and instances in message


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"annotations": []}, '"phrases"'),
        ({"phrases": []}, '"annotations"'),
        ({"phrases": ["red"], "annotations": []}, "'red'"),
        ({"phrases": [{"phrase": None, "objects": []}], "annotations": []}, "None"),
        ({"phrases": [{"phrase": "red", "objects": [0]}], "annotations": []}, "'red' are [0], not places among 0"),
        ({"phrases": [{"phrase": "red", "objects": [False]}], "annotations": []}, "[False]"),
        ({"phrases": [{"phrase": "red"}], "annotations": []}, "None"),
    ],
)
def test_records_of_any_origin_are_checked(catalogs, record, words):
    DatasetCatalog.register("own", lambda: [{"file_name": "boat.png", **record}])
    with pytest.raises(UserError, match="own") as caught:
        load_phrases("own")
    assert words in str(caught.value) and "boat.png" in str(caught.value)


def test_no_phrases_at_all(catalogs):
    DatasetCatalog.register("own", lambda: [{"file_name": "boat.png", "phrases": [], "annotations": []}])
    assert "none of its 1 images has a phrase" in message_of("own")


def test_digit_scenes(tiny):
    records = load_phrases("tiny_digit_scenes_phrases_train")
    plain = {r["image_id"]: r for r in load_dataset("tiny_digit_scenes_train")}
    assert len(records) == 40
    for record in records:
        same = plain[record["image_id"]]
        assert record["file_name"] == same["file_name"]
        assert [a["bbox"] for a in record["annotations"]] == [a["bbox"] for a in same["annotations"]]
        assert any(entry["objects"] for entry in record["phrases"])
        assert any(not entry["objects"] for entry in record["phrases"])


# refer's files.


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The folder of all datasets; what is registered reads it when it is used."""
    known = ("refcoco", "visual_genome", "flickr30k_entities")
    for catalog in (DatasetCatalog, MetadataCatalog):
        others = {name: value for name, value in catalog.data.items() if not name.startswith(known)}
        monkeypatch.setattr(catalog, "data", others)
    register_grounding_sets(str(tmp_path))
    return tmp_path


def references() -> list[dict]:
    def sentence(number: int, raw: str) -> dict:
        sent = raw.lower().strip(".")
        return {"tokens": sent.split(), "raw": raw, "sent_id": number, "sent": sent}

    return [
        {
            "sent_ids": [0, 1],
            "file_name": "COCO_train2014_000000000009_16.jpg",
            "ann_id": 71,
            "ref_id": 0,
            "image_id": 9,
            "split": "testA",
            "sentences": [sentence(0, "The boat on the right"), sentence(1, "right boat.")],
            "category_id": 4,
        },
        {
            "sent_ids": [2],
            "file_name": "COCO_train2014_000000000003_17.jpg",
            "ann_id": 75,
            "ref_id": 1,
            "image_id": 3,
            "split": "train",
            "sentences": [sentence(2, "boat")],
            "category_id": 4,
        },
    ]


def write_refer(root: Path, content, protocol: int = 2) -> Path:
    folder = root / "refer/refcoco"
    annotations = [
        {
            **{"id": key, "image_id": image, "category_id": 4, "iscrowd": 0, "area": 100.0},
            "bbox": [x, 2.0, 10.0, 10.0],
            "segmentation": OUTLINE,
        }
        for key, image, x in ((70, 9, 2.0), (71, 9, 40.0), (75, 3, 8.0))
    ]
    images = [{**image, "file_name": f"COCO_train2014_{image['id']:012d}.jpg"} for image in IMAGES]
    write(
        folder / "instances.json",
        {
            "info": {},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 4, "name": "boat"}],
        },
    )
    path = folder / "refs(unc).p"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [0, 2])
def test_refcoco(root, protocol):
    write_refer(root, references(), protocol)
    (record,) = load_phrases("refcoco_unc_testA")
    assert record["file_name"] == str(root / "coco/train2014/COCO_train2014_000000000009.jpg")
    right = [40.0, 2.0, 10.0, 10.0]
    assert summary(record) == [("the boat on the right", [right]), ("right boat", [right])]
    assert len(record["annotations"]) == 2 and record["annotations"][0]["segmentation"] == OUTLINE
    (other,) = load_phrases("refcoco_unc_train")
    assert summary(other) == [("boat", [[8.0, 2.0, 10.0, 10.0]])]
    assert "no references of split 'val'; there are: testA, train" in message_of("refcoco_unc_val")


def test_a_pickle_of_python_2(root):
    """Strings of bytes, as Python 2 wrote them: opcode U, with a caption in UTF-8."""
    sent = "a caf\u00e9".encode()
    content = b"".join(
        [
            b"\x80\x02]q\x00}q\x01(",
            *(b"U" + bytes([len(key)]) + key + value for key, value in (
                (b"ref_id", b"K\x00"),
                (b"ann_id", b"KG"),
                (b"image_id", b"K\x09"),
                (b"split", b"U\x05train"),
                (b"sentences", b"]}(U\x04sentU" + bytes([len(sent)]) + sent + b"U\x07sent_idK\x00ua"),
            )),
            b"ua.",
        ]
    )  # fmt: skip
    write_refer(root, content)
    (record,) = load_phrases("refcoco_unc_train")
    assert summary(record) == [("a café", [[40.0, 2.0, 10.0, 10.0]])]


class _Command:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("what", ["call", "array", "set", "counter"])
def test_a_pickle_that_names_code_is_refused_and_does_not_run(root, protocol, what):
    touched = root / "touched"
    thing = {"call": _Command(touched), "array": np.zeros(2), "set": {2 + 1j}, "counter": collections.Counter("a")}[
        what
    ]
    path = write_refer(root, [{**references()[0], "more": thing}], protocol)
    message = message_of("refcoco_unc_testA")
    assert str(path) in message and "which might run code" in message
    assert not touched.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x02]q\x00(", b"garbage", b"\x82\x01.", b"cos\nsystem\n(S'true'\ntR."])
def test_a_damaged_pickle_is_refused(root, content):
    path = write_refer(root, content)
    assert str(path) in message_of("refcoco_unc_train")


def test_plain_data_is_read(tmp_path):
    data = {"a": [1, 2.5, None, True, ("x", b"y")], 10**30: {}}
    (tmp_path / "p").write_bytes(pickle.dumps(data, protocol=2))
    with pytest.raises(UserError):  # bytes of protocol 2 are made by a call
        load_plain_pickle(str(tmp_path / "p"))
    (tmp_path / "p").write_bytes(pickle.dumps(data, protocol=4))
    assert load_plain_pickle(str(tmp_path / "p")) == data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ann_id": 7}, "ref_id 0 means annotation 7"),
        ({"image_id": 8}, "ref_id 0 is of image 8"),
        ({"sentences": [{"raw": "x"}]}, 'ref_id 0: "sentences"'),
        ({"sentences": []}, "no reference of split 'testA' has a sentence"),
        ({"sentences": [{"sent": 3, "sent_id": 5}]}, "ref_id 0: its sentence 5 is 3"),
    ],
)
def test_a_reference_that_cannot_be_used_is_named(root, change, words):
    path = write_refer(root, [{**references()[0], **change}])
    message = message_of("refcoco_unc_testA")
    assert words in message and str(path) in message


def test_lists_without_end_are_refused(root):
    """The reader's own error is one sentence, and looking for a better one does not end in another error."""
    write_refer(root, references())
    path = write(root / "refer/refcoco/instances.json", "[" * 100_000)
    with pytest.raises(UserError) as caught:
        load_dataset("refcoco_unc_testA")
    assert path in str(caught.value)


def test_what_is_no_list_of_references(root):
    write_refer(root, {"refs": []})
    assert "holds a dict" in message_of("refcoco_unc_train")
    write_refer(root, [{"ref_id": 1}])
    assert "reference number 0" in message_of("refcoco_unc_train")


def test_every_split_has_a_name_and_says_what_it_misses(root):
    names = {name for name in DatasetCatalog.list() if name.startswith("refcoco")}
    splits = {"refcoco_unc": 4, "refcoco+_unc": 4, "refcoco_google": 3, "refcocog_umd": 3, "refcocog_google": 2}
    assert len(names) == sum(splits.values())
    for prefix, count in splits.items():
        assert sum(name.startswith(prefix + "_") for name in names) == count
    message = message_of("refcoco+_unc_testB")
    assert str(root / "refer/refcoco+/refs(unc).p") in message and "datasets/README.md" in message


# Visual Genome.


def write_genome(root: Path, **change) -> str:
    region = {"region_id": 40, "image_id": 2, "phrase": "a man by the tree", "x": 5, "y": 6, "width": 20, "height": 10}
    other = {**region, "region_id": 41, "phrase": "leaves", "x": 50, "y": -2, "width": 20, "height": 12}
    beside = {**region, "region_id": 42, "phrase": "nothing left", "x": 60}
    image = {"image_id": 2, "url": "https://host/people/VG_100K_2/2.jpg", "width": 60, "height": 40}
    folder = root / "visual_genome"
    write(folder / "image_data.json", [{**image, "coco_id": None, "flickr_id": 12}, {**image, "image_id": 1}])
    regions = [{"id": 2, "regions": [{**region, **change}, other, beside]}, {"id": 1, "regions": []}]
    return write(folder / "region_descriptions.json", regions)


def test_visual_genome(root, logged):
    path = write_genome(root)
    (record,) = load_phrases("visual_genome_regions_train")
    assert record["file_name"] == str(root / "visual_genome/VG_100K_2/2.jpg")
    assert summary(record) == [("a man by the tree", [[5, 6, 20, 10]]), ("leaves", [[50, 0, 10, 10]])]
    assert any(path in message and "1 regions have no area" in message for message in logged())


@pytest.mark.parametrize(("change", "words"), [({"phrase": None}, "None, not a string"), ({"width": "9"}, "TypeError")])
def test_a_region_that_cannot_be_used_is_named(root, change, words):
    path = write_genome(root, **change)
    message = message_of("visual_genome_regions_train")
    assert words in message and path in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "cut short"),
        ([{"image_id": 2}], "KeyError: 'height'"),
        ([{"image_id": 2, "url": "a/b", "width": 60, "height": "40"}], "image 2 has height '40' and width 60"),
        ([], "region_id 40 is of image 2, which is not among the images of"),
    ],
)
def test_damaged_data_of_the_images_is_named(root, content, words):
    write_genome(root)
    path = write(root / "visual_genome/image_data.json", content)
    message = message_of("visual_genome_regions_train")
    assert words in message and path in message


def test_a_damaged_split_is_named(root):
    write_genome(root)
    path = write(root / "visual_genome/densecap_splits.json", {"test": [7]})
    with pytest.raises(UserError, match="none of those in") as caught:
        load_dataset("visual_genome_region_captions_test")
    assert path in str(caught.value)


# Flickr30k Entities.

XML = """<annotation>
  <filename>1000092795.jpg</filename>
  <size><width>60</width><height>40</height><depth>3</depth></size>
  <object><name>1</name><name>2</name><bndbox><xmin>1</xmin><ymin>3</ymin><xmax>21</xmax><ymax>33</ymax></bndbox></object>
  <object><name>1</name><bndbox><xmin>30</xmin><ymin>5</ymin><xmax>60</xmax><ymax>40</ymax></bndbox></object>
  <object><name>3</name><bndbox><xmin>7</xmin><ymin>7</ymin><xmax>7</xmax><ymax>9</ymax></bndbox></object>
  <object><name>5</name><scene>1</scene><nobndbox>0</nobndbox></object>
  <object><name>6</name><scene>0</scene><nobndbox>1</nobndbox></object>
</annotation>"""
SENTENCES = """[/EN#1/people Two young guys] with [/EN#2/bodyparts/people hair] see [/EN#0/notvisual each other] .
[/EN#1/people Friends] enjoy [/EN#6/other time] in [/EN#5/scene the yard] with [/EN#3/other a bee] .
"""


def write_flickr(root: Path, xml: str = XML, sentences: str = SENTENCES) -> Path:
    folder = root / "flickr30k/entities"
    write(folder / "test.txt", "1000092795\n")
    write(folder / "Annotations/1000092795.xml", xml)
    write(folder / "Sentences/1000092795.txt", sentences)
    return folder


def test_flickr30k_entities(root, logged):
    write_flickr(root)
    (record,) = load_phrases("flickr30k_entities_test")
    assert record["file_name"] == str(root / "flickr30k/flickr30k-images/1000092795.jpg")
    assert (record["width"], record["height"], record["image_id"]) == (60, 40, 1000092795)
    first, second = [0, 2, 20, 30], [29, 4, 30, 35]
    assert summary(record) == [
        ("Two young guys", [first, second]),
        ("hair", [first]),
        ("Friends", [first, second]),
    ]
    assert any("1 boxes have no area" in message for message in logged())


@pytest.mark.parametrize(
    ("change", "file", "words"),
    [
        ({"xml": XML[:-20]}, "Annotations/1000092795.xml", "unclosed token"),
        ({"xml": XML.replace("<xmin>1</xmin>", "<xmin>one</xmin>")}, "Annotations/1000092795.xml", "one"),
        ({"xml": XML.replace("<width>60</width>", "")}, "Annotations/1000092795.xml", "int()"),
        ({"xml": "<!DOCTYPE x [<!ENTITY a 'b'>]>" + XML}, "Annotations/1000092795.xml", "declares entities"),
        ({"sentences": SENTENCES + "[/EN#7 a dog]\n"}, "Sentences/1000092795.txt", "line 3"),
        ({"sentences": SENTENCES + "[/EN#7/animals a dog\n"}, "Sentences/1000092795.txt", "line 3"),
    ],
)
def test_a_file_that_is_not_in_its_format_is_named(root, change, file, words):
    folder = write_flickr(root, **change)
    message = message_of("flickr30k_entities_test")
    assert str(folder / file) in message and words in message


def test_a_missing_file_is_named(root):
    folder = write_flickr(root)
    (folder / "Sentences/1000092795.txt").unlink()
    assert str(folder / "Sentences/1000092795.txt") in message_of("flickr30k_entities_test")
    assert str(folder / "val.txt") in message_of("flickr30k_entities_val")
