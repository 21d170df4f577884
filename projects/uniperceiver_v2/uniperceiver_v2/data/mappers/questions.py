"""Images with questions: the mappers of question answering."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from transformers import PreTrainedTokenizerBase

from ..datasets.texts import encode
from ..samples import QuestionSample
from .captions import CaptionedImageMapper


class QuestionMapper(CaptionedImageMapper):
    """Adds "candidates", "questions" and "question_token_ids"; in training "answer_scores", in evaluation "asked",
    the questions' entries.

    Images have the sizes of captioning, without mirrors: questions ask for left and right.

    Args:
        cfg, task, tokenizer: see the base class.
        answers: the C candidates.
        is_train: whether to draw questions and to give scores; the records' questions then have "scores", {place among
            the candidates: score}.
        count: of questions to draw at random in training, where the image has as many.
        sizes: ``square`` and ``crop_scale`` of the base class.
    """

    def __init__(
        self,
        cfg: CfgNode,
        task: str,
        tokenizer: PreTrainedTokenizerBase,
        answers: Sequence[str],
        *,
        is_train: bool,
        count: int = 0,
        **sizes: Any,
    ):
        self.is_train = is_train
        super().__init__(cfg, task, tokenizer, **sizes)
        self._classes = {"candidates": tuple(answers)}
        self._count = count

    def add_targets(self, sample: QuestionSample, record: dict, transforms: T.TransformList) -> None:
        asked = record["questions"]
        if self.is_train:
            asked = [asked[index] for index in np.random.permutation(len(asked))[: self._count]]
            scores = torch.zeros(len(asked), len(sample["candidates"]))
            for row, question in zip(scores, asked):
                row[list(question["scores"])] = torch.tensor(list(question["scores"].values()))
            sample["answer_scores"] = scores
        else:
            sample["asked"] = asked
        sample["questions"] = [question["question"] for question in asked]
        sample["question_token_ids"] = [encode(self._tokenizer, text) for text in sample["questions"]]
