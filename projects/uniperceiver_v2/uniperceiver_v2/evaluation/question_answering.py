"""VQA's accuracy of answers."""

from collections import defaultdict
from collections.abc import Iterable

from .gathering import GatheringEvaluator
from .vqa_answers import soft_accuracy

_TYPES = ("yes/no", "number", "other")  # VQA's "answer_type"


class QuestionAnsweringEvaluator(GatheringEvaluator):
    """VQA's accuracy in percent, over the questions of all ranks; see :func:`~.vqa_answers.soft_accuracy`.

    - ``VQA``: of all questions. ``yes/no``, ``number``, ``other``: of the questions of each type of answer.
    - ``constant``: the accuracy if every type of question ("how many", "what color is the", ...) got one answer, the
      one that is best for it in this very dataset. A model that does not look at images does not get more.

    Args:
        dataset_name: a registered dataset of images with questions.
        output_folder: for ``results.json``, for ``vqa_results.json`` in VQA's results format, and for
            ``predictions.json``, which lists the questions of each image with the answers. None writes no files.
    """

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: samples with "image_id", "file_name", "candidates" [C] and "asked", the questions' entries.
            outputs: predictions with "scores" [Q,C].
        """
        for sample, output in zip(inputs, outputs, strict=True):
            best = output["scores"].float().max(dim=1)
            chosen = zip(sample["asked"], best.indices.tolist(), best.values.tolist(), strict=True)
            questions = [
                {**question, "answer": sample["candidates"][place], "score": score} for question, place, score in chosen
            ]
            self._records.append(
                {"image_id": sample["image_id"], "file_name": sample["file_name"], "questions": questions}
            )

    def _metrics(self, records: list[dict]) -> dict[str, dict[str, float]]:
        questions = [question for record in records for question in record["questions"]]
        for question in questions:
            question["accuracy"] = soft_accuracy(question["answer"], question["answers"])
        self._write("predictions.json", records)
        results = [{"question_id": question["question_id"], "answer": question["answer"]} for question in questions]
        self._write("vqa_results.json", results)
        found = {"VQA": _percent(question["accuracy"] for question in questions)}
        for answer_type in _TYPES:
            found[answer_type] = _percent(q["accuracy"] for q in questions if q["answer_type"] == answer_type)
        return {"question_answering": {**found, "constant": _constant(questions)}}


def _constant(questions: list[dict]) -> float:
    of_type = defaultdict(list)
    for question in questions:
        of_type[question["question_type"]].append(question["answers"])
    total = 0.0
    for answers in of_type.values():
        options = {answer for given in answers for answer in given}
        total += max(sum(soft_accuracy(option, given) for given in answers) for option in options)
    return 100 * total / len(questions)


def _percent(values: Iterable[float]) -> float:
    values = list(values)
    return 100 * sum(values) / len(values) if values else float("nan")
