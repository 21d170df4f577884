import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from lvis import LVIS
from pycocotools import mask as mask_api
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

NUM_TRAIN_SAMPLES = 1297
CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SPLITS = ("train", "test")


def read(tree: Path, name: str) -> dict:
    return json.loads((tree / "annotations" / f"{name}.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(prepare, tree, tmp_path):
    prepare(tmp_path / "again", train_scenes=60, test_scenes=20)
    prepare(tmp_path / "other", train_scenes=60, test_scenes=20, seed=1)
    expected, again, other = (contents(f) for f in (tree, tmp_path / "again", tmp_path / "other"))
    assert again == expected
    assert other.keys() == expected.keys()
    changed = {name for name in expected if other[name] != expected[name]}
    same = ("digits/", "annotations/image_data_", "annotations/clips_")
    unchanged = {name for name in expected if name.startswith(same)}
    assert changed == expected.keys() - unchanged


def test_several_processes_draw_the_same_scenes(prepare, tree, tmp_path, monkeypatch):
    """In chunks of 50. The first 60 scenes are those of the tree."""
    module, pools = sys.modules[prepare.__module__], []
    start = module.ProcessPoolExecutor
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr(module, "FEWEST_FOR_PROCESSES", 101)
    monkeypatch.setattr(module, "ProcessPoolExecutor", lambda *args, **kw: pools.append(args) or start(*args, **kw))
    prepare(tmp_path / "more", train_scenes=101, test_scenes=1)
    assert pools == [(2,)]
    for path in (tree / "images" / "train").iterdir():
        assert path.read_bytes() == (tmp_path / "more/images/train" / path.name).read_bytes()


def test_fewer_scenes_are_the_first_of_more(prepare, tree, tmp_path):
    prepare(tmp_path / "fewer", train_scenes=12, test_scenes=5)
    for path in (tmp_path / "fewer" / "images").rglob("*.png"):
        assert path.read_bytes() == (tree / path.relative_to(tmp_path / "fewer")).read_bytes()


def test_handwriting_of_the_two_splits_is_never_mixed_by_its_ids(tree):
    for split, name in itertools.product(SPLITS, ("instances", "lvis")):
        ids = [i for a in read(tree, f"{name}_{split}")["annotations"] for i in a["sample_ids"]]
        assert ids
        assert all((i < NUM_TRAIN_SAMPLES) == (split == "train") for i in ids)
    for split in SPLITS:
        ids = [int(path.stem) for path in (tree / "digits" / split).rglob("*.png")]
        expected = range(NUM_TRAIN_SAMPLES) if split == "train" else range(NUM_TRAIN_SAMPLES, 1797)
        assert sorted(ids) == list(expected)


def test_ids_and_labels_are_those_of_the_pixels(tree):
    """Every drawn digit is most similar to the sample in its annotation, and has this sample's class."""
    handwriting = load_digits()
    for path in list((tree / "digits").rglob("*.png"))[::17]:
        image = cv2.imread(str(path))
        assert image.shape == (32, 32, 3)
        sample = int(path.stem)
        assert path.parent.name == CLASS_NAMES[handwriting.target[sample]]
        small = cv2.resize(image[:, :, 0], (8, 8), interpolation=cv2.INTER_AREA).astype(float)
        distances = ((handwriting.images * 255 / 16 - small) ** 2).sum(axis=(1, 2))
        assert distances.argmin() == sample

    coco = read(tree, "instances_train")
    for annotation in coco["annotations"]:
        labels = {int(handwriting.target[i]) for i in annotation["sample_ids"]}
        assert labels == {annotation["category_id"] - 1}


def test_drawn_ink_correlates_with_its_own_sample_only(tree):
    """Checked from the scenes' pixels: a large, unhidden digit is similar to the sample in its annotation."""
    handwriting = load_digits().images
    coco = read(tree, "instances_train")
    boxes = {}
    for a in coco["annotations"]:
        boxes.setdefault(a["image_id"], []).append(a["bbox"])
    ranks = []
    for a in coco["annotations"]:
        alone = sum(_overlap(a["bbox"], box) for box in boxes[a["image_id"]]) == 1
        if a["iscrowd"] or not alone or a["bbox"][3] < 30:
            continue
        mask = mask_api.decode(mask_api.merge(mask_api.frPyObjects(a["segmentation"], 96, 96)))
        drawn = _normalised(mask)
        samples = range(0, 1797, 12)
        own = (drawn * _normalised(handwriting[a["sample_ids"][0]] > 7)).sum()
        others = [(drawn * _normalised(handwriting[i] > 7)).sum() for i in samples]
        ranks.append(np.mean(np.array(others) > own))
    assert len(ranks) > 10
    assert np.median(ranks) < 0.05


def _overlap(a, b) -> bool:
    return all(a[i] < b[i] + b[i + 2] and b[i] < a[i] + a[i + 2] for i in (0, 1))


def _normalised(ink) -> np.ndarray:
    """The ink's box scaled to 16 x 16, with mean 0 and norm 1."""
    rows, columns = np.nonzero(ink)
    cut = np.asarray(ink)[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(np.float32)
    scaled = cv2.resize(cut, (16, 16), interpolation=cv2.INTER_AREA)
    scaled -= scaled.mean()
    return scaled / (np.linalg.norm(scaled) + 1e-6)


@pytest.mark.parametrize("split", SPLITS)
def test_coco_annotations_hold_together(tree, split):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tree / "annotations" / f"instances_{split}.json"))
    assert [c["name"] for c in coco.loadCats(sorted(coco.cats))] == CLASS_NAMES
    assert sorted(coco.cats) == list(range(1, 11))
    files = sorted(p.name for p in (tree / "images" / split).iterdir())
    assert sorted(image["file_name"] for image in coco.imgs.values()) == files
    for image in coco.imgs.values():
        assert cv2.imread(str(tree / "images" / split / image["file_name"])).shape == (96, 96, 3)
        annotations = coco.imgToAnns[image["id"]]
        assert 1 <= sum(not a["iscrowd"] for a in annotations) <= 6
    for a in coco.anns.values():
        rle = coco.annToRLE(a)
        assert list(mask_api.toBbox(rle)) == a["bbox"]
        assert mask_api.area(rle) == a["area"]
        x, y, w, h = a["bbox"]
        assert 0 <= x < x + w <= 96 and 0 <= y < y + h <= 96
        if a["iscrowd"]:
            assert isinstance(a["segmentation"]["counts"], list) and len(a["sample_ids"]) > 3
        else:
            assert len(a["sample_ids"]) == 1
            assert all(len(p) >= 6 and len(p) % 2 == 0 for p in a["segmentation"])


def test_boxes_overlap_by_less_than_a_third_and_masks_hardly(tree):
    coco = read(tree, "instances_train")
    by_image: dict[int, list] = {}
    for a in coco["annotations"]:
        if not a["iscrowd"]:
            by_image.setdefault(a["image_id"], []).append(a)
    pairs = 0
    for annotations in by_image.values():
        for a, b in itertools.combinations(annotations, 2):
            inter = mask_api.iou([a["bbox"]], [b["bbox"]], [1])[0, 0] * a["bbox"][2] * a["bbox"][3]
            pairs += inter > 0
            # The visible boxes can be smaller than the ones that were drawn with at most 30%.
            assert inter <= 0.6 * min(a["bbox"][2] * a["bbox"][3], b["bbox"][2] * b["bbox"][3])
    assert pairs > 20  # overlap does occur


def test_lvis_annotations_say_the_same_without_crowds(prepare, tmp_path):
    tmp_path /= "tree"
    prepare(tmp_path, train_scenes=400, test_scenes=60)
    coco = {split: read(tmp_path, f"instances_{split}") for split in SPLITS}
    in_training = Counter()
    for image_id, group in itertools.groupby(coco["train"]["annotations"], key=lambda a: a["image_id"]):
        in_training.update({a["category_id"] for a in group if not a["iscrowd"]} if image_id else ())
    for split in SPLITS:
        lvis = LVIS(str(tmp_path / f"annotations/lvis_{split}.json"))
        assert Counter(c["frequency"] for c in lvis.cats.values()) == {"r": 2, "c": 3, "f": 5}
        for category in lvis.cats.values():
            assert {"synset", "def", "synonyms", "instance_count"} <= category.keys()
            assert category["image_count"] == in_training[category["id"]]
        expected = [
            (a["image_id"], a["category_id"], a["bbox"]) for a in coco[split]["annotations"] if not a["iscrowd"]
        ]
        assert [(a["image_id"], a["category_id"], a["bbox"]) for a in lvis.anns.values()] == expected
        crowds = {(a["image_id"], a["category_id"]) for a in coco[split]["annotations"] if a["iscrowd"]}
        assert crowds
        for image in lvis.imgs.values():
            assert (tmp_path / "images" / Path(*image["coco_url"].split("/")[-2:])).is_file()
            shown = {a["category_id"] for a in lvis.img_ann_map[image["id"]]}
            uncounted = {category for i, category in crowds if i == image["id"]}
            assert set(image["not_exhaustive_category_ids"]) == uncounted
            assert set(image["neg_category_ids"]) == set(range(1, 11)) - shown - uncounted


@pytest.mark.parametrize("scenes", [10, 11])
def test_even_a_tiny_tree_has_every_class(prepare, tmp_path, scenes):
    prepare(tmp_path / "tree", train_scenes=scenes, test_scenes=10)
    for split in SPLITS:
        shown = {
            a["category_id"] for a in read(tmp_path / "tree", f"instances_{split}")["annotations"] if not a["iscrowd"]
        }
        assert shown == set(range(1, 11))


def test_a_whole_tree_is_left_alone_and_a_damaged_one_written_anew(prepare, tmp_path):
    arguments = {"output": tmp_path / "tree", "train_scenes": 3, "test_scenes": 2}
    assert prepare(**arguments)
    before = contents(tmp_path / "tree")
    image = tmp_path / "tree/images/train/000000000002.png"
    stamp = image.stat().st_mtime_ns
    assert not prepare(**arguments)
    assert image.stat().st_mtime_ns == stamp

    (tmp_path / "tree/annotations/instances_test.json").write_text("{}")
    image.unlink()
    assert prepare(**arguments)
    assert contents(tmp_path / "tree") == before
    assert prepare(**arguments | {"train_scenes": 4})
    assert os.listdir(tmp_path) == ["tree"]


def test_what_a_killed_run_left_is_cleared_and_hides_nothing(prepare, tmp_path):
    abandoned = tmp_path / ".tree.999999999"  # larger than any process id of Linux
    abandoned.mkdir()
    (abandoned / "half.json").write_text("{")
    assert prepare(tmp_path / "tree", train_scenes=2, test_scenes=1)
    assert os.listdir(tmp_path) == ["tree"]


def test_a_failure_midway_leaves_the_old_tree_as_it_was(prepare, tmp_path, monkeypatch):
    prepare(tmp_path / "tree", train_scenes=2, test_scenes=1)
    before = contents(tmp_path / "tree")

    def full_disk(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("prepare_digit_scenes._write_single_digits", full_disk)
    with pytest.raises(OSError, match="no space"):
        prepare(tmp_path / "tree", train_scenes=3, test_scenes=1)
    assert contents(tmp_path / "tree") == before
    assert os.listdir(tmp_path) == ["tree"]


def test_the_program(tmp_path):
    """As a user runs it: the folder is below DETECTRON2_DATASETS, and a folder with other files is not touched."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        program = Path(__file__).parents[2] / "datasets/prepare_digit_scenes.py"
        environment = {**os.environ, "DETECTRON2_DATASETS": str(tmp_path)}
        return subprocess.run(
            [sys.executable, str(program), *arguments], capture_output=True, text=True, env=environment
        )

    done = run("--train-scenes", "3", "--test-scenes", "2")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "digit_scenes/images/train").iterdir())) == 3
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("dear")
    done = run("--output", str(foreign))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and str(foreign) in done.stderr
    assert contents(foreign) == {"thesis.txt": b"dear"}


def test_development_holds_training_handwriting_out_and_never_shows_test_handwriting(prepare, tree, tmp_path):
    output = tmp_path / "digit_scenes"
    assert prepare(output, train_scenes=60, test_scenes=20, development=True)
    held_out = range(NUM_TRAIN_SAMPLES - 200, NUM_TRAIN_SAMPLES)
    for split, allowed in (("train", range(held_out.start)), ("test", held_out)):
        scene_ids = {i for a in read(output, f"instances_{split}")["annotations"] for i in a["sample_ids"]}
        assert scene_ids and scene_ids <= set(allowed)
        assert {int(p.stem) for p in (output / "digits" / split).rglob("*.png")} == set(allowed)
        # Not the same layouts with other handwriting, either.
        images = {p.read_bytes() for p in (output / "images" / split).iterdir()}
        assert not images & {p.read_bytes() for s in SPLITS for p in (tree / "images" / s).iterdir()}
    assert not prepare(output, train_scenes=60, test_scenes=20, development=True)
