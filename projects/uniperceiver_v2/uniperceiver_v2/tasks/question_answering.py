"""Visual question answering: an image together with a question is compared with the answers.

Shapes: B images, Q questions of all images, C answers, d the decoder's width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..data.datasets.questions import load_questions
from ..data.datasets.records import Records
from ..data.datasets.texts import build_tokenizer
from ..data.mappers.questions import QuestionMapper
from ..data.samples import QuestionSample
from ..errors import UserError
from ..evaluation import QuestionAnsweringEvaluator
from ..evaluation.vqa_answers import normalised, soft_accuracy
from ..kinds import ConfiguredTask, TaskKind, setting
from ..modeling.decoder import IMAGE_TEXT_TO_TEXT, Attributes, Segment
from ..modeling.image_encoder import ImageEncoding
from ..modeling.model import UniPerceiver
from ..ranks import mean_divisor, sum_over_ranks
from ..transfer import send
from .task import CaptionedImageSettings, Task, log_accuracy, prompted

QUESTION = Attributes("text", "input", IMAGE_TEXT_TO_TEXT)  # read whole, where a caption is causal


@dataclass(frozen=True, kw_only=True)
class QuestionAnsweringSettings(CaptionedImageSettings):
    """Settings of question answering."""

    answers: int = setting(3129, "the most frequent answers of `DATASETS`, which are the candidates", above=0)
    questions_per_image: int = setting(
        3, "questions about an image in a training step, for which it is encoded once", above=0
    )
    prompt: str = setting("{}", "text that each answer is put into")


class QuestionAnsweringTask(Task):
    """The input x is ``<SPE>``, the image and the question, and is read at ``<SPE>``. The candidates are answers.

    In training, an answer's share of the target is its share of VQA's accuracies of all candidates.

    Inputs: :class:`~uniperceiver_v2.data.samples.QuestionSample`. Predictions: "scores" [Q,C], the probabilities of the
    candidates for each question.
    """

    def losses(self, model: UniPerceiver, inputs: Sequence[QuestionSample]) -> dict[str, Tensor]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        scores = send(torch.cat([x["answer_scores"] for x in inputs]), model.device)
        questions = [x["question_token_ids"] for x in inputs]
        logits = self.likelihoods(model, encoding, questions, inputs[0]["candidates"])
        of_questions = -(scores / scores.sum(-1, keepdim=True) * logits.log_softmax(-1)).sum(-1)
        right = scores.gather(1, logits.argmax(-1, keepdim=True)).sum()
        right, count = sum_over_ranks(right, len(scores))
        log_accuracy("answer_accuracy", right, count)
        return {"loss_answer": of_questions.sum() / mean_divisor(count)}

    def loss_count(self, inputs: Sequence[QuestionSample]) -> int:
        return sum(len(x["questions"]) for x in inputs)

    def predict(self, model: UniPerceiver, inputs: Sequence[QuestionSample]) -> list[dict]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        questions = [x["question_token_ids"] for x in inputs]
        probabilities = self.likelihoods(model, encoding, questions, inputs[0]["candidates"]).softmax(-1)
        return [{"scores": rows} for rows in probabilities.split([len(of_image) for of_image in questions])]

    def likelihoods(
        self,
        model: UniPerceiver,
        encoding: ImageEncoding,
        questions: Sequence[Sequence[Tensor]],
        answers: Sequence[str],
    ) -> Tensor:
        """log P [Q,C] up to a constant, of answers to questions about encoded images.

        Args:
            model: the model.
            encoding: of B images.
            questions: of each image, as ids [T].
            answers: the C candidates.
        """
        owners = [place for place, of_image in enumerate(questions) for _ in of_image]
        token_ids, valid = model.text_encoder.pad([ids for of_image in questions for ids in of_image])
        rows = send(torch.tensor(owners), model.device)
        image = [segment.select(rows) for segment in model.image_segments(encoding, IMAGE_TEXT_TO_TEXT)]
        question = Segment(model.text_encoder(token_ids, valid), valid, QUESTION)
        candidates = model.encode_candidates(prompted(self.settings.prompt, tuple(answers)), IMAGE_TEXT_TO_TEXT)
        return model.likelihood.of_directions(model.decoder.read_spe([*image, question]), candidates)


@lru_cache(maxsize=4)
def frequent_answers(datasets: tuple[str, ...], count: int) -> tuple[str, ...]:
    """The most frequent answers of datasets, normalised. A question counts for the answer that most people gave."""
    most_given = Counter(
        Counter(map(normalised, question["answers"])).most_common(1)[0][0]
        for name in datasets
        for record in load_questions(name)
        for question in record["questions"]
    )
    return tuple(sorted(filter(None, most_given), key=lambda answer: (-most_given[answer], answer))[:count])


def _training_data(cfg: CfgNode, task: ConfiguredTask) -> tuple[Records, QuestionMapper]:
    settings: QuestionAnsweringSettings = task.settings
    answers = frequent_answers(tuple(settings.datasets), settings.answers)
    place = {answer: index for index, answer in enumerate(answers)}
    records = []
    for record in (record for name in settings.datasets for record in load_questions(name)):
        questions = []
        for question in record["questions"]:
            given = [normalised(answer) for answer in question["answers"]]
            scores = {place[answer]: soft_accuracy(answer, given) for answer in set(given) if answer in place}
            known = {index: score for index, score in scores.items() if score > 0}
            if known:  # a question whose answers are no candidates teaches nothing
                questions.append({**question, "scores": known})
        if questions:
            records.append({**record, "questions": questions})
    mapper = QuestionMapper(
        cfg,
        task.name,
        build_tokenizer(cfg),
        answers,
        is_train=True,
        count=settings.questions_per_image,
        **settings.training_sizes,
    )
    return records, mapper


def _test_data(cfg: CfgNode, dataset_name: str, task: ConfiguredTask) -> tuple[Records, QuestionMapper]:
    settings: QuestionAnsweringSettings = task.settings
    if not settings.datasets:
        raise UserError(
            f"TASKS.{task.name}.DATASETS is empty, so there are no answers to choose from for '{dataset_name}'; name "
            "the dataset whose answers are the candidates, in a task whose EVALUATES names the test"
        )
    answers = frequent_answers(tuple(settings.datasets), settings.answers)
    mapper = QuestionMapper(cfg, task.name, build_tokenizer(cfg), answers, is_train=False, **settings.test_sizes)
    return load_questions(dataset_name), mapper


QUESTION_ANSWERING = TaskKind(
    name="question_answering",
    settings=QuestionAnsweringSettings,
    task=QuestionAnsweringTask,
    training_data=_training_data,
    test_data=_test_data,
    evaluators={"vqa": QuestionAnsweringEvaluator},
    columns=dict.fromkeys(("VQA", "yes/no", "number", "other", "constant"), 1),
)
