"""VQA v2's files as miniatures in their exact format, what they become, and what is refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from uniperceiver_v2.data.datasets.builtin import register_digit_scenes, register_vqa
from uniperceiver_v2.data.datasets.held_out import photos_of
from uniperceiver_v2.data.datasets.questions import load_questions
from uniperceiver_v2.data.order import numpy_draws_from
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.kinds import KINDS, kind_of_dataset
from uniperceiver_v2.tasks.question_answering import frequent_answers

KIND = KINDS["question_answering"]


def annotation(question_id, image_id, kind, answer_type, answers):
    given = [{"answer": x, "answer_confidence": "yes", "answer_id": i} for i, x in enumerate(answers, 1)]
    what = {"question_type": kind, "answer_type": answer_type, "multiple_choice_answer": answers[0]}
    return {"question_id": question_id, "image_id": image_id, **what, "answers": given}


ANNOTATIONS = [
    annotation(9001, 9, "how many", "number", ["2"] * 7 + ["two", "3", "lots"]),
    annotation(4002, 4, "is the", "yes/no", ["yes"] * 10),
    annotation(4001, 4, "what color is the", "other", ["Red."] * 5 + ["dark red"] * 5),
    annotation(9002, 9, "is this", "yes/no", ["yes"] * 8 + ["no"] * 2),
]


@pytest.fixture
def vqa(tmp_path, monkeypatch, catalogs):
    """The files of a miniature of ``vqa_v2_train``; a function that writes and registers them."""
    for name in ("vqa_v2_train", "vqa_v2_val"):
        monkeypatch.delitem(MetadataCatalog.data, name, raising=False)
    monkeypatch.setattr(DatasetCatalog, "data", {})

    def register(annotations=ANNOTATIONS, questions=ANNOTATIONS):
        shared = {"info": {"version": "2.0"}, "license": {}, "data_subtype": "train2014", "data_type": "mscoco"}
        asked = [
            {"image_id": q["image_id"], "question": f"{q['question_type']}  x?", "question_id": q["question_id"]}
            for q in questions
        ]
        files = {
            "v2_OpenEnded_mscoco_train2014_questions.json": {**shared, "task_type": "Open-Ended", "questions": asked},
            "v2_mscoco_train2014_annotations.json": {**shared, "annotations": annotations},
        }
        (tmp_path / "vqa").mkdir(exist_ok=True)
        for name, content in files.items():
            (tmp_path / "vqa" / name).write_text(json.dumps(content))
        images = tmp_path / "coco/train2014"
        images.mkdir(parents=True, exist_ok=True)
        for image_id in (4, 9):
            pixels = np.full((40, 60, 3), 10 * image_id, np.uint8)
            Image.fromarray(pixels).save(images / f"COCO_train2014_{image_id:012d}.jpg")
        register_vqa(str(tmp_path))
        frequent_answers.cache_clear()

    return register


def test_records_are_images_with_their_questions(vqa, tmp_path):
    vqa()
    first, second = load_questions("vqa_v2_train")
    assert kind_of_dataset("vqa_v2_train") is KIND
    assert (first["image_id"], second["image_id"]) == (4, 9)
    assert first["file_name"] == str(tmp_path / "coco/train2014/COCO_train2014_000000000004.jpg")
    assert photos_of(first) == {"coco:4"}  # so that test images are held out
    assert [q["question_id"] for q in first["questions"]] == [4001, 4002]
    assert first["questions"][0] == {
        "question_id": 4001,
        "question": "what color is the x?",
        "question_type": "what color is the",
        "answer_type": "other",
        "answers": ["Red."] * 5 + ["dark red"] * 5,
    }


def test_wrong_files_are_named(vqa):
    vqa(annotations=ANNOTATIONS[1:])
    with pytest.raises(UserError, match=r"questions.json: question 9001 has no annotation in .*annotations.json"):
        load_questions("vqa_v2_train")
    with pytest.raises(UserError, match=r"val2014.*prepare it with: python datasets/prepare/vqa.py"):
        load_questions("vqa_v2_val")


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "cut short"), ('{"questions": [{}]}', "question_id"), ('{"questions": []}', "no questions")],
)
def test_of_two_files_the_damaged_one_is_named(vqa, tmp_path, content, words):
    vqa()
    questions = tmp_path / "vqa/v2_OpenEnded_mscoco_train2014_questions.json"
    questions.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        load_questions("vqa_v2_train")
    assert str(questions) in str(caught.value) and "annotations.json" not in str(caught.value)


def test_a_question_without_answers_is_named(vqa):
    vqa(annotations=[{**ANNOTATIONS[0], "answers": []}], questions=ANNOTATIONS[:1])
    with pytest.raises(UserError, match="'vqa_v2_train': nobody has answered question 9001"):
        load_questions("vqa_v2_train")


def test_an_answer_that_is_no_text_is_named(vqa):
    vqa(annotations=[annotation(9001, 9, "how many", "number", ["2", 3])], questions=ANNOTATIONS[:1])
    with pytest.raises(UserError, match="an answer to question 9001 is 3, not a string"):
        load_questions("vqa_v2_train")


def configured(cfg, **settings):
    task = KIND.task_of("questions")
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (40,), 40
    return replace(task, settings=replace(task.settings, datasets=["vqa_v2_train"], **settings))


def test_candidates_are_the_most_frequent_answers(vqa):
    vqa()
    # "yes" of two questions; of the question for a colour, the first of two answers as frequent.
    assert frequent_answers(("vqa_v2_train",), 10) == ("yes", "2", "red")
    assert frequent_answers(("vqa_v2_train",), 2) == ("yes", "2")


def test_what_training_and_evaluation_get(vqa, tiny_config):
    vqa()
    records, mapper = KIND.training_data(tiny_config, configured(tiny_config, answers=2, questions_per_image=2))
    assert [[q["question_id"] for q in r["questions"]] for r in records] == [[4002], [9001, 9002]]
    with numpy_draws_from(np.random.default_rng(0)):
        sample = mapper(records[1])
    assert sample["task"] == "questions" and sample["candidates"] == ("yes", "2")
    assert sample["image"].shape == (3, 40, 60)
    by_question = dict(zip(sample["questions"], sample["answer_scores"].tolist(), strict=True))
    # "two" is a "2" too: eight of ten, and eight of ten for "yes".
    assert by_question == {"how many x?": [0, pytest.approx(1)], "is this x?": [pytest.approx(1), 0]}
    assert all(ids[0] == 0 and ids.dtype == torch.int64 for ids in sample["question_token_ids"])
    records, mapper = KIND.test_data(tiny_config, "vqa_v2_train", configured(tiny_config, answers=2))
    sample = mapper(records[0])
    assert sample["asked"] == records[0]["questions"] and len(sample["question_token_ids"]) == 2
    assert "answer_scores" not in sample and sample["candidates"] == ("yes", "2")


def test_one_of_an_images_questions_is_drawn(vqa, tiny_config):
    vqa()
    records, mapper = KIND.training_data(tiny_config, configured(tiny_config, questions_per_image=1))
    drawn = set()
    for seed in range(20):
        with numpy_draws_from(np.random.default_rng(seed)):
            (question,) = mapper(records[1])["questions"]
        drawn.add(question)
    assert drawn == {"how many x?", "is this x?"}


def test_a_test_without_answers_to_choose_from_is_refused(vqa, tiny_config):
    vqa()
    with pytest.raises(UserError, match=r"TASKS.question_answering.DATASETS is empty"):
        KIND.test_data(tiny_config, "vqa_v2_train", KIND.task_of("question_answering"))


def test_digit_scenes_questions(small_tree, catalogs):
    """In the same format, and true of the scenes."""
    register_digit_scenes(str(small_tree), prefix="asked_")
    records = load_questions("asked_digit_scenes_questions_train")
    assert len(records) == 24
    instances = json.loads((small_tree / "annotations/instances_train.json").read_text())
    names = {c["id"]: c["name"] for c in instances["categories"]}
    checked = 0
    for record in records:
        things = [a for a in instances["annotations"] if a["image_id"] == record["image_id"]]
        found = [(names[a["category_id"]], a["color"], a["bbox"][0] + a["bbox"][2] / 2) for a in things]
        for question in record["questions"]:
            (answer,) = set(question["answers"])
            words = question["question"].rstrip("?").split()
            if question["question"] == "how many digits are there?":
                expected = str(len(found))
            elif question["question_type"] == "what color is the":
                (expected,) = [colour for name, colour, _ in found if name == words[-1]]
            elif question["question_type"] == "is there":
                expected = "yes" if any((name, colour) == (words[-1], words[-2]) for name, colour, _ in found) else "no"
            elif words[-1] in ("leftmost", "rightmost"):
                ordered = sorted(found, key=lambda thing: thing[2])
                expected = str([*names.values()].index(ordered[0 if words[-1] == "leftmost" else -1][0]))
            else:
                continue
            assert answer == expected, question
            checked += 1
    assert checked > 30
