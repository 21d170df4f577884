"""A wrong setting or a bad file of own data gives one sentence, which names it."""

import json
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog

from uniperceiver_v2.data import load_dataset, register_custom_datasets
from uniperceiver_v2.data.datasets.custom import FORMATS
from uniperceiver_v2.errors import UserError

from .files import IDS, OBJECTS, coco, write_coco, write_voc, write_yolo

pytestmark = pytest.mark.usefixtures("catalogs")


def message_of(node: dict, name: str = "own") -> str:
    with pytest.raises(UserError) as caught:
        register_custom_datasets({name: node})
        load_dataset(name)
    text = str(caught.value)
    assert "\n" not in text and text.count("expected: ") <= 1
    return text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"FORMAT": "cocoo"}, "DATASETS.CUSTOM.own.FORMAT: unknown format 'cocoo'; did you mean 'coco'?"),
        (
            {"JSO": "x"},
            "unknown configuration key 'DATASETS.CUSTOM.own.JSO' of the format 'coco'; did you mean 'JSON'?",
        ),
        ({"IMAGES": ""}, "DATASETS.CUSTOM.own.IMAGES is missing; the format 'coco' is a JSON with"),
        ({"IMAGES": 3}, "DATASETS.CUSTOM.own.IMAGES is 3, not a text"),
        ({"PART": "val"}, "DATASETS.CUSTOM.own.PART is 'train', 'test' or '' for all, not 'val'"),
        ({"TEST_SHARE": 1.5}, "DATASETS.CUSTOM.own.TEST_SHARE must be above 0 and below 1, not 1.5"),
        ({"TEST_SHARE": "many"}, "DATASETS.CUSTOM.own.TEST_SHARE is 'many', not a number"),
    ],
)
def test_a_wrong_node_is_told(images, change, expected):
    assert message_of({**write_coco(images, IDS["from zero"]), **change}).startswith(expected)


def test_a_name_that_exists_is_refused_and_an_own_one_replaced(images):
    node = write_coco(images, IDS["from zero"])
    assert "there is a dataset 'digits_train' already" in message_of(node, "digits_train")
    register_custom_datasets({"own": node})
    load_dataset("own")
    register_custom_datasets({"own": write_yolo(images)})
    assert MetadataCatalog.get("own").own_format == "yolo"
    assert len(load_dataset("own")) == 3


def edited(change) -> str:
    content = coco((1, 2, 3), (1, 2, 3))
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "objects.json cannot be read as a whole JSON file"),
        ("[]", 'objects.json has no list "images"'),
        (edited(lambda c: c.pop("categories")), 'has no list "categories"'),
        (edited(lambda c: c.update(annotations={"1": {}})), 'has no list "annotations"'),
        (edited(lambda c: c["categories"][0].update(id=2)), "two categories have the id 2"),
        (edited(lambda c: c["categories"][0].update(name="buoy")), "categories 1 and 2 are both called 'buoy'"),
        (edited(lambda c: c["categories"][0].update(id=None)), 'a category needs an "id"'),
        (edited(lambda c: c["categories"][0].pop("name")), "category 1 has the name None, not a text"),
        (edited(lambda c: c["images"][1].update(id=1)), "two images have the id 1"),
        (edited(lambda c: c["images"][1].pop("file_name")), 'image 2 has no "file_name"'),
        (
            edited(lambda c: c["annotations"][0].update(category_id="1")),
            "annotation 100 of image 1 has the \"category_id\" '1'",
        ),
        (
            edited(lambda c: c["annotations"][0].update(bbox=[1, 2, 3])),
            'its "bbox" is [1, 2, 3], not four finite numbers',
        ),
        (edited(lambda c: c["annotations"][0].update(segmentation=[[1e9] * 6])), "its polygon has the coordinate"),
        (
            edited(lambda c: c["annotations"].insert(0, 4)),
            'an annotation needs "image_id", "category_id" and "bbox", not 4',
        ),
    ],
)
def test_bad_coco_gives_one_sentence(images, text, expected):
    node = write_coco(images, IDS["from zero"])
    Path(node["JSON"]).write_text(text)
    assert expected in message_of(node) and "objects.json" in message_of(node)


def test_lvis_without_frequencies_is_told(images):
    node = {**write_coco(images, IDS["from zero"]), "FORMAT": "lvis"}
    assert 'category 0 needs a "frequency", which is "r", "c" or "f"' in message_of(node)


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("data.yaml", "names: [", "data.yaml cannot be read as a YAML file"),
        ("data.yaml", "- 1", "data.yaml cannot be read as a YAML file: it has no KEY: VALUE pairs"),
        ("data.yaml", "val: images", 'needs "names"'),
        ("data.yaml", "names: [a, a]\nval: images", "categories 0 and 1 are both called 'a'"),
        ("data.yaml", "names: [a]\nvall: images", "has no split 'val'; did you mean 'vall'?"),
        ("data.yaml", "names: [a]\nval: nowhere", "is missing: looked for"),
        ("labels/1.txt", "7 0.5 0.5 0.1", "1.txt: line 1, '7 0.5 0.5 0.1', is no object"),
        ("labels/1.txt", "7 0.5 0.5 0.1 nan", "with lines <class> <x> <y> <width> <height>"),
        ("labels/1.txt", "boat 0.5 0.5 0.1 0.1", "with lines <class> <x> <y> <width> <height>"),
        ("labels/1.txt", "8 0.5 0.5 0.1 0.1", "has the class 8, which is none of the 3 names"),
        ("labels/1.txt", "8 0.5 0.5 0.1 0.1", "(for 'val' of "),
        ("labels/1.txt", "7 500 300 20 40", "lies farther outside its image"),
    ],
)
def test_bad_yolo_gives_one_sentence(images, file, text, expected):
    node = write_yolo(images)
    (images.parent / file).write_text(text)
    assert expected in message_of(node)


def test_yolo_as_programs_write_it(images):
    """Paths above the YAML's folder that mean the folder, and keypoints after the boxes."""
    node = write_yolo(images)
    text = Path(node["YAML"]).read_text()
    Path(node["YAML"]).write_text(text.replace("val: images", "val: ../images") + "kpt_shape: [2, 2]\n")
    for path in (images.parent / "labels").glob("*.txt"):
        path.write_text("".join(f"{line} 0.1 0.2 0.3 0.4\n" for line in path.read_text().splitlines()))
    register_custom_datasets({"own": node})
    boxes = [a["bbox"] for r in load_dataset("own") for a in r["annotations"]]
    assert [[round(value) for value in box] for box in boxes] == [list(box) for _, _, *box in OBJECTS]


def test_yolo_without_any_text_is_told(images):
    node = write_yolo(images)
    for text in (images.parent / "labels").glob("*.txt"):
        text.unlink()
    assert "none of the 3 images of 'val' has a text, such as" in message_of(node)


def write_coco_without_sizes(images: Path) -> dict:
    node = write_coco(images, ((1, 2, 3), ("0.png", "1.png", "2.png")))
    content = json.loads(Path(node["JSON"]).read_text())
    for image in content["images"]:
        del image["height"], image["width"]
    Path(node["JSON"]).write_text(json.dumps(content))
    return node


@pytest.mark.parametrize("write", [write_yolo, write_coco_without_sizes])
def test_an_image_that_cannot_be_read_is_left_out_and_named(images, logged, write):
    node = write(images)
    (images / "1.png").write_bytes(b"no image")
    register_custom_datasets({"own": node})
    assert [r["image_id"] for r in load_dataset("own")] == ["0.png", "2.png"]
    assert any("1.png" in message and "left out" in message for message in logged())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<annotation>", "0.xml cannot be read as an XML file"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", "declares entities"),
        ("<annotation><object/></annotation>", "0.xml: an <object> has no <name>"),
        ("<annotation><object><name>boat</name></object></annotation>", "the object 'boat' has no <bndbox> of numbers"),
    ],
)
def test_bad_voc_gives_one_sentence(images, text, expected):
    node = write_voc(images)
    Path(node["ANNOTATIONS"], "0.xml").write_text(text)
    assert expected in message_of({**node, "NAMES": []})


def test_voc_names_what_is_missing(images, tmp_path):
    node = write_voc(images)
    assert "objects called 'buoy'; did you mean 'buoys'?" in message_of({**node, "NAMES": ["bird", "boat", "buoys"]})
    (tmp_path / "list.txt").write_text("0\n9\n")
    assert "has no 9.xml" in message_of({**node, "LIST": str(tmp_path / "list.txt")})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,class\n0.png,a\n", "its first line has no column 'image', only 'file', 'class'"),
        ("image,class\n0.png\n", "line 2 has no 'class'"),
        ("image,class\n0.png,\n", "row 1 has no class"),
        ("", "its first line has no column 'image', only none"),
        ('image,class\n0.png,"a\n', "cannot be read as a CSV file"),
    ],
)
def test_a_bad_table_gives_one_sentence(images, tmp_path, text, expected):
    (tmp_path / "a.csv").write_text(text)
    message = message_of({"FORMAT": "class_csv", "FILE": str(tmp_path / "a.csv"), "IMAGES": str(images)})
    assert expected in message and "a.csv" in message


def test_a_missing_file_is_told_with_the_form_of_every_format(tmp_path):
    for name, its in FORMATS.items():
        node = {"FORMAT": name, **{key: str(tmp_path / "nowhere") for key in its.paths}}
        message = message_of(node)
        assert str(tmp_path / "nowhere") in message and f"expected: {its.form}" in message, name


def test_captions_of_another_form_are_told_with_the_form(images, tmp_path):
    (tmp_path / "captions.json").write_text(
        json.dumps({"images": [{"id": 1, "file_name": "0.png"}], "annotations": [{"image_id": 1, "text": "a boat"}]})
    )
    node = {"FORMAT": "coco_captions", "JSON": str(tmp_path / "captions.json"), "IMAGES": str(images)}
    message = message_of(node)
    assert "captions.json" in message and f"expected: {FORMATS['coco_captions'].form}" in message
