"""A small run, made up by hand: two datasets' worth of files for each kind of task, as the evaluators write them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

SIZE = 60  # pixels of an image, both ways
NAMES = ["cat", "dog"]
TASKS = {
    "boxes": "detection",
    "classes": "classification",
    "words": "captioning",
    "pairs": "retrieval",
    "corpus": "language_modelling",
    "phrases": "grounding",
}
DATASETS = {f"made_up_{task}": kind for task, kind in TASKS.items()}
EVALUATOR_TYPES = {
    "detection": "coco",
    "classification": "imagenet",
    "captioning": "coco_caption",
    "retrieval": "retrieval",
    "language_modelling": "corpus",
    "grounding": "grounding",
}
RESULTS = {
    "made_up_boxes": {"bbox": {"AP": 61.5, "AP50": 80.0, "AP-cat": 70.0, "AP-dog": 53.0}},
    "made_up_classes": {"classification": {"top1": 75.0, "top5": 100.0}},
    "made_up_words": {"caption": {"Bleu_4": 31.25, "CIDEr": 88.5, "SPICE": None}},
    "made_up_pairs": {"text_retrieval": {"R@1": 50.0}, "image_retrieval": {"R@1": 25.0}},
    "made_up_corpus": {"language_modelling": {"accuracy": 42.0, "perplexity": 7.25}},
    "made_up_phrases": {"grounding": {"Acc@0.5": 66.7}},
}


def annotation(category, box, **more):
    return {"category_id": category, "bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, **more}


def detected(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def write_json(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def images(tmp_path) -> dict[int, str]:
    """The files of the images 1 to 4."""
    paths = {}
    for number in range(1, 5):
        paths[number] = str(tmp_path / f"image {number}.png")
        pixels = np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(paths[number])
    return paths


@pytest.fixture
def registered(images, catalogs) -> None:
    """The datasets of the run."""
    annotations = {
        1: [annotation(0, (5, 5, 20, 20)), annotation(1, (30, 30, 20, 20))],
        2: [annotation(0, (10, 10, 30, 30))],
        3: [annotation(1, (0, 0, 40, 40)), annotation(1, (45, 45, 10, 10), iscrowd=1)],
        4: [],
    }
    scenes = [
        {"image_id": i, "file_name": images[i], "width": SIZE, "height": SIZE, "annotations": annotations[i]}
        for i in images
    ]
    texts = [{"text_id": i, "text": f"the text number {i} of <b>the</b> corpus"} for i in range(6)]
    for dataset, kind in DATASETS.items():
        records = texts if kind == "language_modelling" else scenes
        DatasetCatalog.register(dataset, lambda records=records: records)
        MetadataCatalog.get(dataset).set(evaluator_type=EVALUATOR_TYPES[kind])
    # The ids of categories in the files are not their places.
    MetadataCatalog.get("made_up_boxes").set(thing_classes=NAMES, thing_dataset_id_to_contiguous_id={17: 0, 4: 1})


def write_predictions(folder: Path, images: dict[int, str]) -> None:
    write_json(
        folder / "made_up_boxes/coco_instances_results.json",
        [
            detected(1, 17, (5, 5, 20, 20), 0.9),
            detected(1, 4, (31, 30, 20, 20), 0.8),
            detected(2, 4, (10, 10, 30, 30), 0.7),  # a dog where the cat is
            detected(3, 4, (45, 45, 10, 10), 0.6),  # on the crowd
            detected(4, 17, (0, 0, 10, 10), 0.4),  # on nothing
            detected(4, 17, (20, 20, 10, 10), 0.2),  # too low to be shown
        ],
    )
    classes = [("cat", "cat", 0.9), ("dog", "cat", 0.8), ("dog", "dog", 0.7), ("cat", "cat", 0.6)]
    write_json(
        folder / "made_up_classes/predictions.json",
        [
            {
                "image_id": i,
                "file_name": images[i],
                "label": label,
                "classes": [best, "dog" if best == "cat" else "cat"],
                "scores": [score, 1 - score],
            }
            for i, (label, best, score) in enumerate(classes, 1)
        ],
    )
    captions = ["a cat", "a red dog", "two <cats> & a dog", ""]
    write_json(
        folder / "made_up_words/predictions.json",
        [
            {
                "image_id": i,
                "file_name": images[i],
                "caption": text,
                "log_likelihood": -float(i),
                "references": ["a cat on a mat", "two dogs"],
            }
            for i, text in enumerate(captions, 1)
        ],
    )
    own = {2 * i + k: i + 1 for i in range(4) for k in range(2)}  # two captions of each image
    write_json(
        folder / "made_up_pairs/predictions.json",
        {
            "images": [
                {
                    "image_id": i,
                    "file_name": images[i],
                    "best_captions": [(2 * i - 2 + k) % 8 for k in range(4)] if i != 3 else [0, 1, 6, 7],
                    "scores": [0.9, 0.5, 0.4, 0.1],
                }
                for i in images
            ],
            "captions": [
                {
                    "id": c,
                    "image_id": i,
                    "caption": f"caption {c}",
                    "best_images": [(i + c) % 4 + 1, (i + c + 1) % 4 + 1, (i + c + 2) % 4 + 1],
                    "scores": [0.8, 0.3, 0.2],
                }
                for c, i in own.items()
            ],
        },
    )
    write_json(
        folder / "made_up_corpus/predictions.json",
        [{"text_id": i, "tokens": 4, "correct": i % 4, "log_likelihood": -3.0 - i} for i in range(6)],
    )
    phrases = [
        {"phrase": "the cat", "boxes": [[5, 5, 25, 25]], "found": [[5, 5, 25, 24]], "scores": [0.8]},
        {"phrase": "the dog", "boxes": [[30, 30, 50, 50]], "found": [[5, 5, 25, 25]], "scores": [0.7]},
        {"phrase": "a bird", "boxes": [], "found": [[0, 0, 9, 9]], "scores": [0.1]},
    ]
    write_json(
        folder / "made_up_phrases/predictions.json",
        [{"image_id": 1, "file_name": images[1], "phrases": phrases}],
    )


def write_run(folder: Path, images: dict[int, str], seed: int = 0) -> Path:
    """All files of a run."""
    settings = {
        "SEED": seed,
        "DATASETS": {"TEST": list(DATASETS)},
        "SOLVER": {"BASE_LR": 0.25, "MAX_ITER": 100},
        "TASKS": {
            "NAMES": list(TASKS),
            **{name: {"KIND": kind, "IMS_PER_BATCH": 3} for name, kind in TASKS.items()},
        },
        "OUTPUT_DIR": str(folder),
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    rows = [
        {
            "iteration": 20 * step + 19,
            "lr": 0.1,
            "total_loss": 3.0 / (step + 1 + seed),
            **{f"{task}/loss_{kind}": 2.0 / (step + 1) for task, kind in TASKS.items()},
            **{f"{task}/total_loss": 2.0 / (step + 1) for task in TASKS},
            "made_up_boxes/bbox/AP": 20.0 * (step + 1),
        }
        for step in range(3)
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_json(folder / "results.json", RESULTS)
    write_predictions(folder / "inference", images)
    return folder


@pytest.fixture
def make_run(tmp_path, images, registered) -> Callable[..., Path]:
    """make_run(name, seed): the folder of a run."""
    return lambda name, seed=0: write_run(tmp_path / "runs" / name, images, seed)


@pytest.fixture
def run_folder(make_run) -> Path:
    return make_run("first")
