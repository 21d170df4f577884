"""VQA's accuracy against the official formula, written out plainly, and its rules for answers by their examples."""

import json
import random

import pytest
import torch

from uniperceiver_v2.evaluation import QuestionAnsweringEvaluator
from uniperceiver_v2.evaluation.vqa_answers import normalised, soft_accuracy

ANSWERS = ("yes", "no", "2", "red", "blue")


def plain_accuracy(answer: str, given: list[str]) -> float:
    """For each person, the others who gave the answer, a third for each and at most 1; the mean over people."""
    of_each = []
    for person in range(len(given)):
        others = given[:person] + given[person + 1 :]
        matching = [other for other in others if other == answer]
        of_each.append(min(1, len(matching) / 3))
    return sum(of_each) / len(of_each)


@pytest.mark.parametrize("people", [1, 3, 10])
def test_the_soft_accuracy_is_the_plain_formula(people):
    rng = random.Random(people)
    found = set()
    for _ in range(200):
        given = [rng.choice(ANSWERS[: rng.randrange(1, 6)]) for _ in range(people)]
        for answer in ANSWERS:
            assert soft_accuracy(answer, given) == pytest.approx(plain_accuracy(answer, given), abs=1e-12)
            found.add(round(soft_accuracy(answer, given), 3))
    assert people < 10 or {0.0, 0.3, 0.6, 0.9, 1.0} <= found


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("The red one.", "red 1"),
        ("none", "0"),
        ("ten", "10"),
        ("a dog, and cat", "dog and cat"),
        ("black/white", "black white"),
        ("1,000", "1000"),
        ("2.5", "2.5"),
        ("t-shirt", "t shirt"),
        ("dont know", "don't know"),
        ("he isnt", "he isn't"),
        ("shouldntve", "shouldntve"),  # two apostrophes are not put back
        ("shouldn'tve", "shouldn't've"),
        ("lets go", "lets go"),
        (" tabs\tand\nlines ", "tabs and lines"),
    ],
)
def test_answers_are_normalised(answer, expected):
    assert normalised(answer) == expected


def test_answers_are_normalised_only_where_people_differ():
    assert soft_accuracy("3", ["three"] * 10) == 0
    assert soft_accuracy("3", ["three"] * 9 + ["3"]) == 1
    assert soft_accuracy("The Cat", ["the cat"] * 5 + ["cat"] * 5) == 1


def sample(image_id: int, questions: list[tuple[str, str, list[str]]], scores: list[list[float]]):
    asked = [
        {
            "question_id": 10 * image_id + place,
            "question": f"{kind} x?",
            "question_type": kind,
            "answer_type": answer_type,
            "answers": answers,
        }
        for place, (kind, answer_type, answers) in enumerate(questions)
    ]
    item = {"image_id": image_id, "file_name": f"{image_id}.png", "candidates": ANSWERS, "asked": asked}
    return item, {"scores": torch.tensor(scores)}


def test_results_and_files_of_an_evaluation(tmp_path):
    batch = [
        sample(
            2,
            [("is", "yes/no", ["yes"] * 10), ("how many", "number", ["2"] * 2 + ["3"] * 8)],
            [[0.7, 0.3, 0, 0, 0], [0, 0, 1.0, 0, 0]],
        ),
        sample(1, [("is", "yes/no", ["no"] * 6 + ["yes"] * 4)], [[0.9, 0.1, 0, 0, 0]]),
        sample(3, [("is", "yes/no", ["no"] * 10)], [[0.6, 0.4, 0, 0, 0]]),
    ]
    evaluator = QuestionAnsweringEvaluator("any", str(tmp_path))
    evaluator.reset()
    for item, output in batch:
        evaluator.process([item], [output])
    (results,) = evaluator.evaluate().values()
    two_of_ten = plain_accuracy("2", ["2"] * 2 + ["3"] * 8)
    assert 0 < two_of_ten < 1
    assert results["VQA"] == pytest.approx(100 * (1 + two_of_ten + 1 + 0) / 4)
    assert results["yes/no"] == pytest.approx(100 * (1 + 1 + 0) / 3)
    assert results["number"] == pytest.approx(100 * two_of_ten)
    assert results["other"] != results["other"]  # NaN: no question asks for it
    assert results["constant"] == pytest.approx(100 * (2 + 1) / 4)  # always "no", always "3"
    official = json.loads((tmp_path / "vqa_results.json").read_text())
    assert official == [
        {"question_id": 10, "answer": "yes"},
        {"question_id": 20, "answer": "yes"},
        {"question_id": 21, "answer": "2"},
        {"question_id": 30, "answer": "yes"},
    ]
    readable = json.loads((tmp_path / "predictions.json").read_text())
    assert [x["image_id"] for x in readable] == [1, 2, 3]
    assert readable[1]["questions"][1]["accuracy"] == pytest.approx(two_of_ten)
