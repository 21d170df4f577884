"""Datasets of a configuration: each format comes back in the user's own ids, and bad files give one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from pycocotools import mask as mask_api

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader, build_test_loader, load_dataset, register_custom_datasets
from uniperceiver_v2.data.datasets.custom import FORMATS
from uniperceiver_v2.data.datasets.records import load_detection_training
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.evaluation import build_evaluator

pytestmark = pytest.mark.usefixtures("catalogs")

HEIGHT, WIDTH = 40, 60
# (image, category, x, y, width, height): every image has objects of two categories.
OBJECTS = [
    (0, 0, 4, 6, 20, 10),
    (0, 1, 30, 8, 24, 28),
    (1, 1, 2, 2, 12, 30),
    (1, 2, 20, 4, 16, 16),
    (2, 0, 8, 8, 40, 24),
]
NAMES = ("boat", "buoy", "bird")
# Ids of categories and of images as users have them.
IDS = {
    "with gaps": ((7, 90, 3), (5, 1, 300)),
    "from zero": ((0, 1, 2), (0, 1, 2)),
    "large": ((10**12, 10**12 + 5, 10**12 + 2), (2**40, 2**41, 2**42)),
    "texts": (("K-1", "K-2", "ä b"), ("a.jpg", "b", "ç")),
    "mixed": ((4, "x", "y"), (1, "2", "3")),
}


@pytest.fixture
def images(tmp_path) -> Path:
    folder = tmp_path / "my data" / "images"
    folder.mkdir(parents=True)
    for place in range(3):
        pixels = np.random.default_rng(place).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{place}.png")
    return folder


def coco(category_ids, image_ids, lvis: bool = False) -> dict:
    images = [
        {"id": i, "file_name": f"{place}.png", "height": HEIGHT, "width": WIDTH} for place, i in enumerate(image_ids)
    ]
    annotations = [
        {
            "id": 100 + place,
            "image_id": image_ids[image],
            "category_id": category_ids[category],
            "bbox": [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            "area": w * h,
            "iscrowd": 0,
        }
        for place, (image, category, x, y, w, h) in enumerate(OBJECTS)
    ]
    categories = [{"id": i, "name": name} for i, name in zip(category_ids, NAMES)]
    if lvis:
        for category in categories:
            category.update(synonyms=[category["name"]], frequency="f")
        for image in images:
            image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(images: Path, ids, lvis: bool = False) -> dict:
    path = images.parent / "objects.json"
    path.write_text(json.dumps(coco(*ids, lvis=lvis)), encoding="utf-8")
    return {"FORMAT": "lvis" if lvis else "coco", "JSON": str(path), "IMAGES": str(images)}


def write_yolo(images: Path, numbers=(7, 20, 3), polygons: bool = False) -> dict:
    labels = images.parent / "labels"
    labels.mkdir()
    for place in range(3):
        lines = []
        for image, category, x, y, w, h in OBJECTS:
            if image != place:
                continue
            box = ((x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT)
            if polygons:
                left, top, right, bottom = x / WIDTH, y / HEIGHT, (x + w) / WIDTH, (y + h) / HEIGHT
                box = (left, top, right, top, right, bottom, left, bottom)
            lines.append(" ".join([str(numbers[category]), *(f"{value:.6f}" for value in box)]))
        (labels / f"{place}.txt").write_text("\n".join(lines) + "\n")
    path = images.parent / "data.yaml"
    names = "".join(f"  {number}: {name}\n" for number, name in zip(numbers, NAMES))
    path.write_text(f"train: images\nval: images\nnames:\n{names}")
    return {"FORMAT": "yolo", "YAML": str(path), "SPLIT": "val"}


def write_voc(images: Path) -> dict:
    folder = images.parent / "Annotations"
    folder.mkdir()
    for place in range(3):
        objects = "".join(
            f"<object><name>{NAMES[category]}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for image, category, x, y, w, h in OBJECTS
            if image == place
        )
        (folder / f"{place}.xml").write_text(f"<annotation><filename>{place}.png</filename>{objects}</annotation>")
    return {"FORMAT": "voc", "ANNOTATIONS": str(folder), "IMAGES": str(images)}


def perfect(record: dict) -> Instances:
    """A prediction that equals the annotations."""
    annotations = record["annotations"]
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    masks = torch.zeros(len(boxes), record["height"], record["width"], dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes):
        mask[round(y0) : round(y1), round(x0) : round(x1)] = True
    return Instances(
        (record["height"], record["width"]),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.full((len(boxes),), 0.9),
        pred_classes=torch.tensor([a["category_id"] for a in annotations]),
        pred_masks=masks,
    )


def evaluated(name: str, folder: Path) -> tuple[dict, list[dict]]:
    """Figures of perfect predictions, and the results in the file."""
    records = load_dataset(name)
    evaluator = build_evaluator(None, name, str(folder))
    evaluator.reset()
    for record in records:
        evaluator.process([record], [{"instances": perfect(record)}])
    results = evaluator.evaluate()
    (file,) = folder.glob("*_instances_results.json")
    return results, json.loads(file.read_text(encoding="utf-8"))


def as_objects(results: list[dict]) -> set[tuple]:
    return {(r["image_id"], r["category_id"], *(round(value) for value in r["bbox"])) for r in results}


def expected(category_ids, image_ids) -> set[tuple]:
    return {(image_ids[image], category_ids[category], *box) for image, category, *box in OBJECTS}


@pytest.mark.parametrize("lvis", [False, True], ids=["coco", "lvis"])
@pytest.mark.parametrize("ids", IDS.values(), ids=list(IDS))
def test_json_comes_back_in_the_users_ids(images, tmp_path, ids, lvis):
    register_custom_datasets({"own": write_coco(images, ids, lvis)})
    results, found = evaluated("own", tmp_path / "out")
    assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == pytest.approx(100)
    assert as_objects(found) == expected(*ids)
    predictions = torch.load(tmp_path / "out/instances_predictions.pth", weights_only=True)
    assert {p["image_id"] for p in predictions} == set(ids[1])
    metadata = MetadataCatalog.get("own")
    assert {i: metadata.thing_classes[k] for i, k in metadata.thing_dataset_id_to_contiguous_id.items()} == dict(
        zip(ids[0], NAMES)
    )


@pytest.mark.parametrize("polygons", [False, True])
def test_yolo_comes_back_in_the_users_ids(images, tmp_path, polygons):
    register_custom_datasets({"own": write_yolo(images, polygons=polygons)})
    results, found = evaluated("own", tmp_path / "out")
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert ("segm" in results) == polygons
    assert as_objects(found) == expected((7, 20, 3), ("0.png", "1.png", "2.png"))


def test_voc_comes_back_in_the_users_ids(images, tmp_path):
    register_custom_datasets({"own": write_voc(images)})
    results, found = evaluated("own", tmp_path / "out")
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert as_objects(found) == expected(NAMES, ("0", "1", "2"))


def test_a_list_and_names_choose_of_voc_and_difficult_objects_are_crowds(images, tmp_path):
    node = write_voc(images)
    path = Path(node["ANNOTATIONS"]) / "0.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    (tmp_path / "train.txt").write_text("0\n2  1\n")
    names = ["bird", "boat", "buoy"]
    register_custom_datasets({"own": {**node, "LIST": str(tmp_path / "train.txt"), "NAMES": names}})
    records = load_dataset("own")
    assert [record["image_id"] for record in records] == ["0", "2"]
    assert [a["iscrowd"] for a in records[0]["annotations"]] == [1, 0]
    assert MetadataCatalog.get("own").thing_classes == names


def test_what_other_programs_leave_out_of_coco_is_found(images, tmp_path):
    content = coco((1, 2, 3), (1, 2, 3))
    for image in content["images"]:
        del image["height"], image["width"]
    for annotation in content["annotations"]:
        for key in ("id", "bbox", "area", "iscrowd"):
            del annotation[key]
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    mask[6:16, 4:24] = 1
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, mask.T.ravel(), 2]))).tolist()
    content["annotations"][0] |= {
        "bbox": [4, 6, 20, 10],
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": runs},  # not compressed
    }
    path = tmp_path / "small.json"
    path.write_text(json.dumps(content))
    register_custom_datasets({"own": {"FORMAT": "coco", "JSON": str(path), "IMAGES": str(images)}})
    record = load_dataset("own")[0]
    assert (record["height"], record["width"]) == (HEIGHT, WIDTH)
    assert np.array_equal(mask_api.decode(record["annotations"][0]["segmentation"]), mask)
    results, found = evaluated("own", tmp_path / "out")
    assert results["bbox"]["AP"] == pytest.approx(100) and results["segm"]["AP"] == pytest.approx(100)
    assert as_objects(found) == expected((1, 2, 3), (1, 2, 3))


# -- classes, captions, phrases, texts


def test_class_folders_and_tables(images, tmp_path):
    root = tmp_path / "classes"
    for place, name in enumerate(("10", "9", "ä")):
        (root / name).mkdir(parents=True)
        (images / f"{place}.png").rename(root / name / "x y.png")
    table = tmp_path / "classes.csv"
    table.write_text("kind;file\n9;9/x y.png\n10;10/x y.png\n10;ä/x y.png\n", encoding="utf-8-sig")
    node = {"FORMAT": "class_csv", "FILE": str(table), "IMAGES": str(root), "COLUMNS": ["file", "kind"]}
    register_custom_datasets({"folders": {"FORMAT": "class_folders", "IMAGES": str(root)}, "table": node})
    assert [(Path(r["file_name"]).parent.name, r["label"]) for r in load_dataset("folders")] == [
        ("10", 0),
        ("9", 1),
        ("ä", 2),
    ]
    assert MetadataCatalog.get("folders").thing_classes == ["10", "9", "ä"]
    assert [r["label"] for r in load_dataset("table")] == [0, 1, 1]
    assert MetadataCatalog.get("table").thing_classes == ["9", "10"]
    assert all(Path(r["file_name"]).is_file() for r in load_dataset("table"))
    evaluator = build_evaluator(None, "table", str(tmp_path / "out"))
    evaluator.reset()
    for record in load_dataset("table"):
        evaluator.process([record], [{"scores": torch.eye(2)[record["label"]]}])
    assert evaluator.evaluate()["classification"]["top1"] == 100
    predictions = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [(p["label"], p["classes"][0]) for p in predictions] == [("9", "9"), ("10", "10"), ("10", "10")]


def test_captions_and_phrases_keep_the_users_ids(images, tmp_path):
    content = {key: value for key, value in coco((1, 2, 3), ("a", "b", "c")).items() if key == "images"}
    captions = [{"id": n, "image_id": i, "caption": f"boat {n}"} for n, i in enumerate("aabc")]
    (tmp_path / "captions.json").write_text(json.dumps({**content, "annotations": captions}))
    phrases = [{"id": n, "image_id": i, "phrase": f"boat {n}", "bboxes": [[1, 2, 8, 9]]} for n, i in enumerate("abc")]
    (tmp_path / "phrases.json").write_text(json.dumps({**content, "annotations": phrases}))
    (tmp_path / "captions.csv").write_text('image,caption\n1.png,"a boat, a buoy"\n0.png,birds\n1.png,two boats\n')
    own = {"IMAGES": str(images)}
    register_custom_datasets(
        {
            "captions": {"FORMAT": "coco_captions", "JSON": str(tmp_path / "captions.json"), **own},
            "phrases": {"FORMAT": "phrases", "JSON": str(tmp_path / "phrases.json"), **own},
            "table": {
                "FORMAT": "caption_csv",
                "FILE": str(tmp_path / "captions.csv"),
                "EVALUATED_AS": "retrieval",
                **own,
            },
        }
    )
    assert next((r["image_id"], r["captions"]) for r in load_dataset("captions")) == ("a", ["boat 0", "boat 1"])
    assert [r["image_id"] for r in load_dataset("phrases")] == ["a", "b", "c"]
    assert [(r["image_id"], r["captions"]) for r in load_dataset("table")] == [
        ("1.png", ["a boat, a buoy", "two boats"]),
        ("0.png", ["birds"]),
    ]
    types = {name: MetadataCatalog.get(name).evaluator_type for name in ("captions", "phrases", "table")}
    assert types == {"captions": "coco_caption", "phrases": "grounding", "table": "retrieval"}
    evaluator = build_evaluator(None, "phrases", str(tmp_path / "out"))
    evaluator.reset()
    for record in load_dataset("phrases"):
        found = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(torch.tensor([[1.0, 2, 9, 11]])))
        found.scores, found.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
        truth = torch.tensor([[[1.0, 2, 9, 11]]])
        sample = {**record, "phrases": [record["phrases"][0]["phrase"]], "phrase_boxes": truth}
        evaluator.process([sample], [{"instances": found}])
    assert evaluator.evaluate()["grounding"]["Acc@0.5"] == 100
    assert [p["image_id"] for p in json.loads((tmp_path / "out/predictions.json").read_text())] == ["a", "b", "c"]


def test_texts(tmp_path):
    (tmp_path / "a.txt").write_text("one boat\n\n two boats \n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("id\ttext\n4\tone boat\n5\t\n6\ttwo, three\n", encoding="utf-8")
    register_custom_datasets(
        {
            "lines": {"FORMAT": "text_lines", "FILE": str(tmp_path / "a.txt")},
            "table": {"FORMAT": "text_csv", "FILE": str(tmp_path / "a.csv")},
        }
    )
    assert [r["text"] for r in load_dataset("lines")] == ["one boat", "two boats"]
    assert [(r["text_id"], r["text"]) for r in load_dataset("table")] == [(0, "one boat"), (2, "two, three")]


# -- parts


def test_parts_divide_a_dataset_and_keep_every_category_for_training(images):
    node = write_coco(images, IDS["texts"])
    parts = {part: {**node, "PART": part, "TEST_SHARE": 0.4} for part in ("train", "test")}
    register_custom_datasets(parts)
    train, test = ({r["image_id"] for r in load_dataset(part)} for part in ("train", "test"))
    assert train | test == {"a.jpg", "b", "ç"} and not train & test and test
    assert len(load_detection_training(["train"], filter_empty=True, with_masks=True)) == len(train)
    assert MetadataCatalog.get("train").thing_classes == MetadataCatalog.get("test").thing_classes


def test_parts_depend_on_names_alone(tmp_path):
    lines = [f"text {n}" for n in range(50)]
    tested = []
    for order in (lines, lines[::-1]):
        (tmp_path / "a.txt").write_text("\n".join(order))
        node = {"FORMAT": "text_lines", "FILE": str(tmp_path / "a.txt"), "PART": "test", "TEST_SHARE": 0.2}
        register_custom_datasets({"own": node})
        tested.append({r["text"] for r in load_dataset("own")})
    assert tested[0] == tested[1] and len(tested[0]) == 10


# -- mistakes


def message_of(node: dict, name: str = "own") -> str:
    with pytest.raises(UserError) as caught:
        register_custom_datasets({name: node})
        load_dataset(name)
    text = str(caught.value)
    assert "\n" not in text
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
        ("data.yaml", "- 1", "data.yaml is not a YAML file with KEY: VALUE pairs"),
        ("data.yaml", "val: images", 'needs "names"'),
        ("data.yaml", "names: [a, a]\nval: images", "categories 0 and 1 are both called 'a'"),
        ("data.yaml", "names: [a]\nvall: images", "has no split 'val'; did you mean 'vall'?"),
        ("data.yaml", "names: [a]\nval: nowhere", "is missing: looked for"),
        ("labels/1.txt", "7 0.5 0.5 0.1", "1.txt: line 1, '7 0.5 0.5 0.1', is not <class> <x> <y>"),
        ("labels/1.txt", "7 0.5 0.5 0.1 nan", "is not <class> <x> <y> <width> <height>"),
        ("labels/1.txt", "boat 0.5 0.5 0.1 0.1", "is not <class> <x> <y> <width> <height>"),
        ("labels/1.txt", "8 0.5 0.5 0.1 0.1", "has the class 8, which is none of the 3 names"),
        ("labels/1.txt", "7 500 300 20 40", "lies farther outside its image"),
    ],
)
def test_bad_yolo_gives_one_sentence(images, file, text, expected):
    node = write_yolo(images)
    (images.parent / file).write_text(text)
    assert expected in message_of(node)


def test_yolo_without_any_text_is_told(images):
    node = write_yolo(images)
    for text in (images.parent / "labels").glob("*.txt"):
        text.unlink()
    assert "none of the 3 images of 'val' has a text, such as" in message_of(node)


def test_an_image_that_cannot_be_read_is_left_out_and_named(images, logged):
    node = write_yolo(images)
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
        json.dumps({"images": [{"id": 1, "file_name": "0.png"}], "annotations": []})
    )
    node = {"FORMAT": "coco_captions", "JSON": str(tmp_path / "captions.json"), "IMAGES": str(images)}
    message = message_of(node)
    assert "captions.json" in message and f"expected: {FORMATS['coco_captions'].form}" in message


# -- by configuration


def test_a_configuration_alone_trains_and_tests(images, tmp_path):
    node = json.dumps(write_yolo(images))
    (tmp_path / "run.yaml").write_text(
        f"""
MODEL: {{META_ARCHITECTURE: UniPerceiverV2, MASK_ON: False, DEVICE: cpu}}
INPUT: {{MIN_SIZE_TRAIN: [40], MIN_SIZE_TEST: 40}}
DATALOADER: {{NUM_WORKERS: 0}}
DATASETS:
  CUSTOM: {{my_boats: {node}}}
  TEST: [my_boats]
TASKS:
  NAMES: [boats]
  boats: {{KIND: detection, DATASETS: [my_boats], IMS_PER_BATCH: 2}}
"""
    )
    cfg = load_config(str(tmp_path / "run.yaml"), ["SOLVER.MAX_ITER", "5", "SOLVER.WARMUP_ITERS", "0"])
    batch = next(iter(build_task_train_loader(cfg, "boats")))
    assert batch[0]["candidates"] == ("bird", "boat", "buoy")
    assert not batch[0]["instances"].has("gt_masks") and len(batch[0]["instances"]) > 0
    assert sum(map(len, build_test_loader(cfg, "my_boats"))) == 3
    with pytest.raises(UserError, match="unknown dataset 'my_boat'; did you mean 'my_boats'"):
        load_config(str(tmp_path / "run.yaml"), ["DATASETS.TEST", "('my_boat',)"])
    again = load_config(str(tmp_path / "run.yaml"), ["DATASETS.CUSTOM.my_boats.SPLIT", "nowhere"], training=False)
    assert again.DATASETS.CUSTOM.my_boats.SPLIT == "nowhere"
    with pytest.raises(UserError, match="has no split 'nowhere'"):
        load_dataset("my_boats")
