"""The study of open labels: its groups of digits, phrases, captions and images, and its two arms."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances

from uniperceiver_v2.evaluation.digit_scenes.facts import SceneFacts


@pytest.fixture
def labels(imported, monkeypatch, tmp_path):
    """The program as a module, with its own folder for runs and document."""
    module = imported("open_labels")
    monkeypatch.setattr(module.STUDY, "output", tmp_path / "runs")
    monkeypatch.setattr(module.STUDY, "document", tmp_path / "specialists.md")
    first, last = imported("study_tables").marks_of("open_labels")
    module.STUDY.document.write_text(f"before\n{first}{last}after\n")
    return module


@pytest.fixture
def facts(tmp_path):
    """Two scenes: a red seven and a blue one; a blue seven."""
    things = [(1, 8, "red", [0, 0, 10, 20]), (1, 2, "blue", [40, 40, 10, 20]), (2, 8, "blue", [5, 5, 20, 30])]
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    content = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": category, "color": colour, "bbox": box}
            for i, (image, category, colour, box) in enumerate(things)
        ],
    }
    (tmp_path / "facts.json").write_text(json.dumps(content))
    return SceneFacts(str(tmp_path / "facts.json")), names


def write(folder, name, content):
    (folder / name).write_text(json.dumps(content))
    return folder


def test_digits_count_as_found_by_class_overlap_and_score(labels, facts, tmp_path):
    results = [
        {"image_id": 1, "category_id": 8, "score": 0.9, "bbox": [0, 0, 10, 18]},  # right
        {"image_id": 1, "category_id": 8, "score": 0.9, "bbox": [40, 40, 10, 20]},  # another class
        {"image_id": 2, "category_id": 8, "score": 0.2, "bbox": [5, 5, 20, 30]},  # too uncertain
    ]
    folder = write(tmp_path, "coco_instances_results.json", results)
    assert labels.found_digits(folder, *facts) == {"left out": 100.0, "others": 0.0}
    results[0]["bbox"] = [0, 0, 10, 9]
    folder = write(tmp_path, "coco_instances_results.json", results)
    assert labels.found_digits(folder, *facts)["left out"] == 0.0


def instances(labels, boxes, names, scores):
    classes = torch.tensor([labels.LABELS.index(name) for name in names])
    return Instances((80, 80), pred_boxes=Boxes(boxes), pred_classes=classes, scores=torch.tensor(scores))


def test_digits_are_named_by_their_best_detection(labels, facts):
    seven, one = [0, 0, 10, 20], [40, 40, 50, 60]
    found = {
        1: instances(labels, [seven, seven, one], ["red seven", "red one", "blue one"], [0.2, 0.1, 0.9]),
        2: instances(labels, [[5, 5, 25, 12]], ["blue seven"], [0.9]),  # overlaps too little
    }
    assert labels.named_digits(found, facts[0]) == {"left out": 100.0, "others": 50.0}
    found[1].scores = torch.tensor([0.1, 0.2, 0.9])
    assert labels.named_digits(found, facts[0])["left out"] == 0.0


def test_a_model_is_asked_for_all_colours_and_digits(labels):
    def detect(files, asked, threshold):
        assert asked == labels.LABELS and len(set(asked)) == 70 and threshold == 0.0
        return [SimpleNamespace(instances=file) for file in files]

    found = labels.detect_labels(SimpleNamespace(detect=detect), {4: "a.png", 2: "b.png"})
    assert found == {4: "a.png", 2: "b.png"}


def test_phrases_are_grouped_by_what_of_them_was_left_out(labels, tmp_path):
    def phrase(text, found):
        return {"phrase": text, "boxes": [[0, 0, 10, 10]], "found": found, "scores": [0.5] * len(found)}

    right, wrong = [[0, 0, 10, 9]], [[20, 20, 30, 30], [0, 0, 10, 10]]
    phrases = [
        phrase("all red sevens", right),
        phrase("a small red seven in the top left", wrong),
        phrase("the largest red seven", wrong),
        phrase("the leftmost digit", right),
        phrase("a red one to the left of the two", []),
        phrase("red digits", right),
        {"phrase": "a red seven", "boxes": [], "found": right, "scores": [0.1]},  # true of nothing
    ]
    folder = write(tmp_path, "predictions.json", [{"phrases": phrases}])
    assert labels.found_phrases(folder) == {
        "left out": 50.0,
        "left out and extreme": 0.0,
        "extreme": 100.0,
        "relation": 0.0,
        "others": 100.0,
    }


def test_captions_and_images_are_grouped_by_what_they_show_and_name(labels, facts, tmp_path):
    captions = [
        {"image_id": 1, "caption": "a red seven and a blue one", "true": True},
        {"image_id": 2, "caption": "two red sevens", "true": False},
        {"image_id": 2, "caption": "a blue seven", "true": True},
    ]
    found = labels.true_captions(write(tmp_path, "truth.json", captions), facts[0])
    assert found == {"left out": 100.0, "naming it": 50.0, "names it": 100.0, "others": 50.0}
    queries = [
        {"caption": "a red seven", "image_id": 1, "best_images": [1, 2]},
        {"caption": "a blue seven", "image_id": 2, "best_images": [1, 2]},
    ]
    images = labels.found_images(write(tmp_path, "predictions.json", {"captions": queries}))
    assert images == {"left out": 100.0, "others": 0.0}


def test_words_that_only_look_alike_are_not_left_out(labels):
    assert labels.names_left_out("a picture of two red sevens") and labels.names_left_out("the blue three")
    assert not labels.names_left_out("red digits: seven, three") and not labels.names_left_out("a red seventeen")


@pytest.fixture
def trees(labels, small_data, small_tree, prepare_digit_scenes, monkeypatch):
    """Both trees, small ones."""

    def prepared(command, check):
        options = command[command.index("--output") :]
        assert options[options.index("--leave-out") + 1 :][: len(labels.DIGITS)] == list(labels.DIGITS)
        prepare_digit_scenes(small_tree / "left_out" / "digit_scenes", train_scenes=24, test_scenes=6)

    monkeypatch.setattr(labels, "subprocess", SimpleNamespace(run=prepared))
    labels.prepare_and_register()


def test_arms_differ_in_their_training_data_alone(labels, trees, changed_settings):
    arms = [labels.STUDY.configuration(name, 0, 700) for name in ("everything", "left out")]
    assert changed_settings(*arms) == {f"TASKS.{task}.DATASETS" for task in labels.TESTS}
    train = "left_out_digit_scenes_phrases_train"
    assert "left_out" in MetadataCatalog.get(train).json_file and train in arms[1].TASKS.scene_phrases.DATASETS


def test_an_arm_trains_and_stands_in_the_table(labels, trees, small_config):
    labels.STUDY.train("left out", 0, 3)
    labels.STUDY.main(["--jobs", "0", "--iterations", "3", "--output", str(labels.STUDY.output)])
    rows = [line for line in labels.STUDY.document.read_text().splitlines() if line.startswith("|")]
    assert rows[2].startswith("| everything | development |  | -") and rows[3].startswith(
        "| left out | development | 1 |"
    )
    assert rows[3].count(" - ") < 6, "six scenes have some of the groups"


def test_the_closed_vocabulary_learns_combinations_and_stands_in_the_table(labels, trees, small_config):
    labels.STUDY.train(labels.CLOSED, 0, 3)
    folder = labels.STUDY.folder_of(labels.CLOSED, 0, 3)
    content = json.loads((folder / "combinations.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    source = json.loads(Path(MetadataCatalog.get("left_out_digit_scenes_train").json_file).read_text())
    digits = {category["id"]: category["name"] for category in source["categories"]}
    things = [one for one in source["annotations"] if not one["iscrowd"]]
    expected = [f"{one['color']} {digits[one['category_id']]}" for one in things]
    assert [names[one["category_id"]] for one in content["annotations"]] == expected
    labels.STUDY.main(["--jobs", "0", "--iterations", "3", "--output", str(labels.STUDY.output)])
    (row,) = [line for line in labels.STUDY.document.read_text().splitlines() if labels.CLOSED in line]
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[1:4] == ["closed vocabulary", "development", "1"] and cells.count("-") == 11
    assert all(0 <= float(cell) <= 100 for cell in cells[6:8])
