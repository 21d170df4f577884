import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from detectron2.structures import Boxes, Instances

from uniperceiver_v2 import add_uniperceiver_v2_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.evaluation import (
    CaptionEvaluator,
    ClassificationEvaluator,
    LanguageModellingEvaluator,
    RetrievalEvaluator,
    build_evaluator,
    format_results_table,
    write_json,
)


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    return cfg


@pytest.fixture
def register():
    """register(name, **metadata). The registration is removed after the test."""
    names = []

    def add(name, **metadata):
        names.append(name)
        MetadataCatalog.get(name).set(**metadata)

    yield add
    for name in names:
        MetadataCatalog.remove(name)
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)


def square(x: float) -> list[list[float]]:
    return [[x, 10, x + 20, 10, x + 20, 30, x, 30]]


@pytest.fixture
def files(tmp_path):
    """One image with a red and a green square, in COCO's and in LVIS's format."""
    image = {"id": 1, "file_name": "1.png", "height": 60, "width": 90}
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(("red", "green"))]
    annotations = [
        {
            **{"id": i + 1, "image_id": 1, "category_id": i + 1, "bbox": [30 * i, 10, 20, 20], "area": 400},
            "segmentation": square(30.0 * i),
        }
        for i in range(2)
    ]
    lvis_image = {**image, "neg_category_ids": [], "not_exhaustive_category_ids": [], "coco_url": "x/1.png"}
    lvis_categories = [
        {**c, "frequency": "f", "image_count": 1, "instance_count": 1, "synonyms": [c["name"]]} for c in categories
    ]
    coco = {"images": [image], "categories": categories, "annotations": [{**a, "iscrowd": 0} for a in annotations]}
    coco |= {"info": {}, "licenses": []}
    lvis = {"images": [lvis_image], "categories": lvis_categories, "annotations": annotations}
    for name, content in (("coco", coco), ("lvis", lvis)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(("kind", "cls"), [("coco", COCOEvaluator), ("lvis", LVISEvaluator)])
def test_instances_are_evaluated_by_detectron2(cfg, register, files, kind, cls):
    metadata = {"evaluator_type": kind, "json_file": str(files / f"{kind}.json"), "thing_classes": ["red", "green"]}
    if kind == "coco":
        metadata["thing_dataset_id_to_contiguous_id"] = {1: 0, 2: 1}
    register("squares", **metadata)
    evaluator = build_evaluator(cfg, "squares", str(files / "out"))
    assert isinstance(evaluator, cls)
    evaluator.reset()
    found = Instances((60, 90))
    found.pred_boxes = Boxes(torch.tensor([[0.0, 10, 20, 30], [30.0, 10, 50, 30]]))
    found.scores, found.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
    evaluator.process([{"image_id": 1, "height": 60, "width": 90}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert any((files / "out").iterdir())


@pytest.mark.parametrize(
    ("kind", "cls"),
    [
        ("imagenet", ClassificationEvaluator),
        ("coco_caption", CaptionEvaluator),
        ("retrieval", RetrievalEvaluator),
        ("corpus", LanguageModellingEvaluator),
    ],
)
def test_the_rest_is_evaluated_by_us(cfg, register, tmp_path, kind, cls):
    register("letters", evaluator_type=kind)
    assert type(build_evaluator(cfg, "letters", str(tmp_path))) is cls


def test_another_kind_is_refused(cfg, register, tmp_path):
    register("odd", evaluator_type="cocos")
    with pytest.raises(UserError, match="did you mean 'coco'"):
        build_evaluator(cfg, "odd", str(tmp_path))
    with pytest.raises(UserError, match="None"):
        build_evaluator(cfg, "never_registered", str(tmp_path))
    MetadataCatalog.remove("never_registered")


def test_the_table_of_all_tasks():
    results = {
        "digits": {"classification": {"top1": 95.6, "top5": 100.0}},
        "scenes": {
            "bbox": {"AP": 40.04, "AP50": 60.0, "AP75": 45.25, "APs": 1.0, "AP-seven": 2.0},
            "segm": {"AP": 35.0, "AP50": float("nan"), "AP75": None},
        },
        "scenes_lvis": {"bbox": {"AP": 39.0, "APr": -100.0, "APc": 38.0, "APf": 41.0}},
        "captions": {
            "caption": {"Bleu_1": 61.0, "Bleu_4": 20.0, "METEOR": float("nan"), "CIDEr": 101.25},
            "caption (nearest training image)": {"Bleu_1": 41.0, "Bleu_4": 0.0, "METEOR": None, "CIDEr": 51.0},
        },
        "pairs": {"text_retrieval": {"R@1": 71.8, "R@5": 90.0, "R@10": 95.0}},
        "corpus": {"language_modelling": {"accuracy": 60.0, "perplexity": 3.456}},
        "odd": {"something": {"else": 1.0}},
    }
    assert format_results_table(results).splitlines() == [
        "| dataset     | task                             |       AP |       AP50 |   AP75 |   APr |  APc |  APf |",
        "|-------------|----------------------------------|---------:|-----------:|-------:|------:|-----:|-----:|",
        "| scenes      | boxes                            |     40.0 |       60.0 |   45.2 |       |      |      |",
        "| scenes      | masks                            |     35.0 |        n/a |    n/a |       |      |      |",
        "| scenes_lvis | boxes                            |     39.0 |            |        |   n/a | 38.0 | 41.0 |",
        "|             |                                  |     top1 |       top5 |        |       |      |      |",
        "| digits      | classification                   |     95.6 |      100.0 |        |       |      |      |",
        "|             |                                  |   Bleu_1 |     Bleu_4 | METEOR | CIDEr |      |      |",
        "| captions    | caption                          |     61.0 |       20.0 |    n/a | 101.2 |      |      |",
        "| captions    | caption (nearest training image) |     41.0 |        0.0 |    n/a |  51.0 |      |      |",
        "|             |                                  |      R@1 |        R@5 |   R@10 |       |      |      |",
        "| pairs       | text retrieval                   |     71.8 |       90.0 |   95.0 |       |      |      |",
        "|             |                                  | accuracy | perplexity |        |       |      |      |",
        "| corpus      | language modelling               |     60.0 |       3.46 |        |       |      |      |",
    ]


def test_a_table_of_one_task_has_its_columns_only():
    table = format_results_table({"digits": {"classification": {"top1": 1.0, "top5": 2.0}}})
    assert table.splitlines() == [
        "| dataset | task           | top1 | top5 |",
        "|---------|----------------|-----:|-----:|",
        "| digits  | classification |  1.0 |  2.0 |",
    ]


def test_a_table_of_nothing_is_empty():
    assert format_results_table({}) == format_results_table({"digits": {}}) == ""


def test_json_has_null_for_what_is_no_number(tmp_path):
    content = {"a": float("nan"), "b": [1.5, float("-inf"), "é"], "c": {"d": (1, None)}}
    write_json(str(tmp_path / "new/file.json"), content)
    text = (tmp_path / "new/file.json").read_text(encoding="utf-8")
    assert text == '{"a": null, "b": [1.5, null, "é"], "c": {"d": [1, null]}}'


def test_json_of_a_name_that_is_no_text_can_be_read(tmp_path):
    write_json(str(tmp_path / "a.json"), {"file_name": "caf\udce9.png"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"file_name": "caf\udce9.png"}


def test_json_that_cannot_be_written_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(str(path), {"a": 1})
    with pytest.raises(TypeError):
        write_json(str(path), {"a": object()})
    assert path.read_text() == '{"a": 1}' and list(tmp_path.iterdir()) == [path]
