"""What is printed equals what official scripts compute from the written files. Predictions are distorted truths."""

import math

import detectron2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from pycocotools import mask as mask_api

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.data.datasets.phrases import load_phrases
from uniperceiver_v2.evaluation import build_evaluator
from uniperceiver_v2.evaluation.caption_tokens import has_java
from uniperceiver_v2.files import REPOSITORY

from ..data import miniatures
from . import official

IDS = list(range(1, 13))


@pytest.fixture
def root(tmp_path, monkeypatch):
    miniatures.register_only(tmp_path, monkeypatch)
    return tmp_path


def evaluated(root, name, inputs, outputs):
    evaluator = build_evaluator(
        load_config(str(REPOSITORY / "configs/joint/uniperceiver_v2_r50.yaml"), training=False, datasets=False),
        name,
        str(root / "out"),
    )
    evaluator.reset()
    evaluator.process(inputs, outputs)
    return evaluator.evaluate(), root / "out"


def distorted(annotations: list[dict], categories: int, rng) -> dict:
    """Detections near the objects, some of them of a wrong category, and some that are near nothing."""
    width, height = miniatures.WIDTH, miniatures.HEIGHT
    boxes, labels, masks = [], [], []
    for annotation in annotations:
        x0, y0, x1, y1 = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        for _ in range(2):
            near = np.array([x0, y0, x1, y1]) + rng.integers(-3, 4, 4)
            box = [max(near[0], 0), max(near[1], 0), min(near[2], width), min(near[3], height)]
            corners = [[box[0], box[1], box[2], box[1], box[2], box[3], box[0], box[3]]]
            boxes.append(box)
            labels.append(annotation["category_id"] if rng.random() < 0.8 else rng.integers(categories))
            masks.append(mask_api.decode(mask_api.merge(mask_api.frPyObjects(corners, height, width))))
    return {
        "instances": Instances(
            (height, width),
            pred_boxes=Boxes(torch.tensor(np.array(boxes), dtype=torch.float32)),
            scores=torch.from_numpy(rng.random(len(boxes)).astype(np.float32)),
            pred_classes=torch.tensor(np.array(labels)),
            pred_masks=torch.from_numpy(np.array(masks)).bool(),
        )
    }


def compared(results, figures, json_file, written) -> list[tuple[dict, dict]]:
    """Our figures and the official ones of the written file, for boxes and for masks."""
    return [(results[kind], figures(str(json_file), written, kind)) for kind in ("bbox", "segm")]


def test_coco_by_pycocotools(root):
    json_file = miniatures.write_coco(root, IDS, "val2017")
    records, rng = load_dataset("coco_2017_val"), np.random.default_rng(0)
    outputs = [distorted(r["annotations"], 80, rng) for r in records]
    results, folder = evaluated(root, "coco_2017_val", records, outputs)
    for ours, expected in compared(results, official.coco_figures, json_file, folder / "coco_instances_results.json"):
        assert official.differences(ours, expected) == {}
        assert 5 < expected["AP"] < expected["AP50"] < 100


@pytest.mark.skipif("detectron2_core" not in detectron2.__file__, reason="upstream knows 1,203 names")
def test_lvis_by_lvis(root):
    json_file = miniatures.write_lvis(root, IDS, "val", counts=(12, 6, 3))
    records, rng = load_dataset("lvis_v1_val"), np.random.default_rng(0)
    outputs = [distorted(r["annotations"], 3, rng) for r in records]
    results, folder = evaluated(root, "lvis_v1_val", records, outputs)
    for ours, expected in compared(results, official.lvis_figures, json_file, folder / "lvis_instances_results.json"):
        assert official.differences(ours, expected) == {}
        assert 5 < expected["AP"] < expected["AP50"] < 100


@pytest.mark.slow
@pytest.mark.skipif(not has_java(), reason="pycocoevalcap's script needs Java")
def test_captions_by_pycocoevalcap(root):
    """Slow, as the script reads all of METEOR's paraphrases."""
    miniatures.write_karpathy_coco(root, {"train": [1], "restval": [2], "val": [3], "test": IDS[4:]})
    records = load_dataset("coco_2014_captions_karpathy_test")
    outputs = [
        {"caption": r["captions"][0] if place % 2 else "A green boat, with a man's dog!", "log_likelihood": -1.0}
        for place, r in enumerate(records)
    ]
    results, folder = evaluated(root, "coco_2014_captions_karpathy_test", records, outputs)
    written = folder / "coco_captions_results.json"
    expected = official.caption_figures({r["image_id"]: r["captions"] for r in records}, written)
    assert set(expected) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"}
    assert official.differences(results["caption"], expected) == {}
    assert 5 < expected["Bleu_4"] < expected["Bleu_1"] < 100 and expected["CIDEr"] > 5
    assert all(item.keys() == {"image_id", "caption"} for item in official.read(written))


@pytest.mark.parametrize("name", ["coco_2014_retrieval_karpathy_test", "flickr30k_retrieval_karpathy_test"])
def test_retrieval_by_counting(root, name):
    miniatures.write_karpathy_coco(root, {"train": [1], "restval": [2], "val": [3], "test": IDS[3:]})
    miniatures.write_flickr30k(root, {"train": [1], "val": [2], "test": IDS[2:]})
    inputs, outputs = [], []
    for record in load_dataset(name):
        image = torch.randn(8)
        texts = image + 1.5 * torch.randn(5, 8)
        inputs.append(record)
        outputs.append({"image_feature": image / image.norm(), "text_features": texts / texts.norm(dim=1)[:, None]})
    results, folder = evaluated(root, name, inputs, outputs)
    for way, figures in official.retrieval_figures(folder / "predictions.json").items():
        assert official.differences(results[way], figures) == {}
        assert 0 < figures["R@1"] < figures["R@10"]


def test_imagenet_by_counting(root):
    miniatures.write_imagenet(root, {f"n{i:08d}": f"thing {i}" for i in range(8)}, images=4)
    records = load_dataset("imagenet_val")
    outputs = [{"scores": torch.rand(8) + 0.5 * (torch.arange(8) == r["label"])} for r in records]
    results, folder = evaluated(root, "imagenet_val", records, outputs)
    expected = official.classification_figures(folder / "predictions.json")
    assert official.differences(results["classification"], expected) == {}
    assert 10 < expected["top1"] < expected["top5"] <= 100


@pytest.mark.parametrize(
    ("name", "folder", "by", "split"),
    [("refcoco_unc_testA", "refcoco", "unc", "testA"), ("refcoco+_unc_val", "refcoco+", "unc", "val"),
     ("refcocog_umd_test", "refcocog", "umd", "test")],
)  # fmt: skip
def test_refcoco_by_counting(root, name, folder, by, split):
    miniatures.write_refer(root, {"train": [100], split: IDS}, folder, by)
    rng, inputs, outputs = np.random.default_rng(1), [], []
    for record in load_phrases(name):
        truth = [
            torch.tensor([BoxMode.convert(record["annotations"][i]["bbox"], BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)])
            for entry in record["phrases"]
            for i in entry["objects"]
        ]
        boxes = [own + torch.from_numpy(rng.integers(-6, 7, (1, 4))) for own in truth]
        inputs.append({**record, "phrases": [p["phrase"] for p in record["phrases"]], "phrase_boxes": truth})
        found = Instances((48, 64), pred_boxes=Boxes(torch.cat(boxes).float()), scores=torch.rand(len(boxes)))
        found.pred_classes = torch.arange(len(boxes))
        outputs.append({"instances": found})
    results, folder = evaluated(root, name, inputs, outputs)
    expected = official.refcoco_figures(folder / "predictions.json")
    assert official.differences(results["grounding"], expected) == {}
    assert 0 < expected["Acc@0.5"] < 100 and not math.isnan(expected["Acc@0.5"])


def test_the_lists_of_table_6_are_complete():
    """One run evaluates all of them, each by a task that the configuration names without doubt."""
    paths = sorted((REPOSITORY / "configs/joint").glob("*_table6.yaml"))
    configs = [load_config(str(path), training=False) for path in paths]
    assert len(configs) == 3 and len({tuple(cfg.DATASETS.TEST) for cfg in configs}) == 1
    kinds = [MetadataCatalog.get(name).evaluator_type for name in configs[0].DATASETS.TEST]
    assert kinds == ["coco", "lvis", "imagenet", "coco_caption", "retrieval", "retrieval", *["grounding"] * 8]
