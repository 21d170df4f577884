"""Every format is read and comes back in the user's own ids."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_api

from uniperceiver_v2.data import load_dataset, register_custom_datasets
from uniperceiver_v2.evaluation import build_evaluator

from .files import HEIGHT, IDS, NAMES, OBJECTS, WIDTH, coco, write_coco, write_voc, write_yolo

pytestmark = pytest.mark.usefixtures("catalogs")


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


@pytest.mark.parametrize("outlined", [True, False])
def test_sizes_of_objects_are_as_the_file_says(images, tmp_path, outlined):
    """COCO tells small objects from large ones by "area". Without it, pixels of the mask or the box are counted."""
    content = coco((1, 2, 3), (1, 2, 3))
    for annotation in content["annotations"]:
        annotation["area"] = 10**5
        if not outlined:
            del annotation["segmentation"]
    del content["annotations"][0]["area"]
    path = tmp_path / "sizes.json"
    path.write_text(json.dumps(content))
    register_custom_datasets({"own": {"FORMAT": "coco", "JSON": str(path), "IMAGES": str(images)}})
    evaluated("own", tmp_path / "out")
    numbered = json.loads((tmp_path / "out/numbered_ground_truth.json").read_text())
    assert [a["area"] for a in numbered["annotations"]] == [20 * 10, *[10**5] * 4]


# -- classes, captions, phrases, texts


def evaluate(name: str, folder: Path, samples: list[dict], outputs: list[dict]) -> tuple[dict, list | dict]:
    """Figures, and the predictions in the file."""
    evaluator = build_evaluator(None, name, str(folder))
    evaluator.reset()
    for sample, output in zip(samples, outputs, strict=True):
        evaluator.process([sample], [output])
    results = evaluator.evaluate()
    return results, json.loads((folder / "predictions.json").read_text(encoding="utf-8"))


@pytest.fixture
def classes(images, tmp_path) -> Path:
    """A folder for each class; pictures of different classes have the same name."""
    root = tmp_path / "classes"
    for place, name in enumerate(("10", "9", "ä")):
        (root / name).mkdir(parents=True)
        (images / f"{place}.png").rename(root / name / "x y.png")
    return root


@pytest.mark.parametrize("names", [["10", "9", "ä"], ["ä", "10", "9"]])
def test_class_folders_come_back_by_their_names(classes, tmp_path, names):
    given = {} if names == sorted(names) else {"NAMES": names}
    register_custom_datasets({"own": {"FORMAT": "class_folders", "IMAGES": str(classes), **given}})
    records = load_dataset("own")
    assert [Path(r["file_name"]).parent.name for r in records] == MetadataCatalog.get("own").thing_classes == names
    results, found = evaluate("own", tmp_path / "out", records, [{"scores": x} for x in torch.eye(3)])
    assert results["classification"]["top1"] == 100
    assert [(p["label"], p["classes"][0]) for p in found] == [(name, name) for name in names]


def test_class_tables_come_back_by_their_names(classes, tmp_path):
    table = tmp_path / "classes.csv"
    table.write_text("kind;file\n9;9/x y.png\n10;10/x y.png\n10;ä/x y.png\n", encoding="utf-8-sig")
    node = {"FORMAT": "class_csv", "FILE": str(table), "IMAGES": str(classes), "COLUMNS": ["file", "kind"]}
    register_custom_datasets({"own": node})
    records = load_dataset("own")
    assert MetadataCatalog.get("own").thing_classes == ["9", "10"]  # numbers by size
    assert all(Path(r["file_name"]).is_file() for r in records)
    outputs = [{"scores": torch.eye(2)[r["label"]]} for r in records]
    results, found = evaluate("own", tmp_path / "out", records, outputs)
    assert results["classification"]["top1"] == 100
    assert [(p["label"], p["classes"][0]) for p in found] == [("9", "9"), ("10", "10"), ("10", "10")]


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize("ids", [ids for _, ids in IDS.values()], ids=list(IDS))
def test_captions_come_back_in_the_users_ids(images, tmp_path, ids, complete, few_paraphrases):
    entries = coco((1, 2, 3), ids)["images"]
    annotations = [{"id": n, "image_id": ids[i], "caption": f"boat {n}"} for n, i in enumerate((0, 2, 1, 0))]
    if not complete:
        entries = [{key: entry[key] for key in ("id", "file_name")} for entry in entries]
        annotations = [{key: a[key] for key in ("image_id", "caption")} for a in annotations]
    (tmp_path / "c.json").write_text(json.dumps({"images": entries, "annotations": annotations}), encoding="utf-8")
    node = {"FORMAT": "coco_captions", "JSON": str(tmp_path / "c.json"), "IMAGES": str(images)}
    register_custom_datasets({"own": node, "pairs": {**node, "EVALUATED_AS": "retrieval"}})
    records = load_dataset("own")
    captions = {ids[0]: ["boat 0", "boat 3"], ids[1]: ["boat 2"], ids[2]: ["boat 1"]}
    assert {r["image_id"]: r["captions"] for r in records} == captions
    outputs = [{"caption": r["captions"][0], "log_likelihood": -1.0} for r in records]
    evaluate("own", tmp_path / "out", records, outputs)
    written = json.loads((tmp_path / "out/coco_captions_results.json").read_text(encoding="utf-8"))
    assert {r["image_id"]: r["caption"] for r in written} == {i: texts[0] for i, texts in captions.items()}
    outputs = [
        {"image_feature": row, "text_features": row.expand(len(r["captions"]), -1)}
        for row, r in zip(torch.eye(3), records, strict=True)
    ]
    results, found = evaluate("pairs", tmp_path / "pairs", records, outputs)
    assert results["text_retrieval"]["R@1"] == 100
    assert {row["image_id"] for row in found["images"]} == set(ids)


def test_caption_tables_come_back_by_their_paths(images, tmp_path, few_paraphrases):
    (tmp_path / "c.csv").write_text('image,caption\n1.png,"a boat, a buoy"\n0.png,birds\n1.png,two boats\n')
    register_custom_datasets({"own": {"FORMAT": "caption_csv", "FILE": str(tmp_path / "c.csv"), "IMAGES": str(images)}})
    records = load_dataset("own")
    assert [(r["image_id"], r["captions"]) for r in records] == [
        ("1.png", ["a boat, a buoy", "two boats"]),
        ("0.png", ["birds"]),
    ]
    outputs = [{"caption": "a boat", "log_likelihood": -1.0}] * 2
    _, found = evaluate("own", tmp_path / "out", records, outputs)
    assert {p["image_id"]: p["references"] for p in found} == {r["image_id"]: r["captions"] for r in records}


@pytest.mark.parametrize("ids", [ids for _, ids in IDS.values()], ids=list(IDS))
def test_phrases_come_back_in_the_users_ids(images, tmp_path, ids):
    entries = coco((1, 2, 3), ids)["images"]
    phrases = [{"id": n, "image_id": i, "phrase": f"boat {n}", "bboxes": [[1, 2, 8, 9]]} for n, i in enumerate(ids)]
    (tmp_path / "p.json").write_text(json.dumps({"images": entries, "annotations": phrases}), encoding="utf-8")
    node = {"FORMAT": "phrases", "JSON": str(tmp_path / "p.json"), "IMAGES": str(images)}
    register_custom_datasets({"own": node})
    box = torch.tensor([[1.0, 2, 9, 11]])
    samples, outputs = [], []
    for record in load_dataset("own"):
        found = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(box), scores=torch.ones(1))
        found.pred_classes = torch.zeros(1, dtype=torch.int64)
        samples.append({**record, "phrases": [p["phrase"] for p in record["phrases"]], "phrase_boxes": box[None]})
        outputs.append({"instances": found})
    results, found = evaluate("own", tmp_path / "out", samples, outputs)
    assert results["grounding"]["Acc@0.5"] == 100
    assert {p["image_id"]: p["phrases"][0]["phrase"] for p in found} == {i: f"boat {n}" for n, i in enumerate(ids)}


def test_texts_come_back_by_their_places(tmp_path):
    (tmp_path / "a.txt").write_text("one boat\n\n two boats \n", encoding="utf-8")
    (tmp_path / "a.csv").write_text("id\ttext\n4\tone boat\n5\t\n6\ttwo, three\n", encoding="utf-8")
    register_custom_datasets(
        {
            "lines": {"FORMAT": "text_lines", "FILE": str(tmp_path / "a.txt")},
            "table": {"FORMAT": "text_csv", "FILE": str(tmp_path / "a.csv")},
        }
    )
    for name, texts in (("lines", ["one boat", "two boats"]), ("table", ["one boat", "two, three"])):
        records = load_dataset(name)
        assert [r["text"] for r in records] == texts
        outputs = [{"log_likelihoods": torch.zeros(n), "correct": torch.ones(n, dtype=torch.bool)} for n in (1, 2)]
        _, found = evaluate(name, tmp_path / name, records, outputs)
        assert [(p["text_id"], p["tokens"]) for p in found] == [(r["text_id"], n) for r, n in zip(records, (1, 2))]
