"""Images with questions and answers, in the files of VQA v2 (Goyal et al., CVPR 2017).

A record is {"file_name", "image_id", "questions"}. Each question is {"question_id", "question", "question_type",
"answer_type", "answers"}, with the answers that people gave, ten in VQA v2.
"""

import os
from typing import Any

from ...errors import UserError
from ...reading import id_order, remedy_of, while_reading
from .formats import read_json, string
from .records import Records, load_dataset, register_dataset
from .texts import tidy


def register_questions(
    name: str, questions_json: str, annotations_json: str, image_root: str, *, image_name: str, **metadata: Any
) -> None:
    """Register images with questions and answers.

    Args:
        name: for ``DatasetCatalog``.
        questions_json, annotations_json, image_root, image_name: see :func:`load_vqa_json`.
        metadata: more of it.
    """
    register_dataset(
        name,
        lambda: load_vqa_json(questions_json, annotations_json, image_root, image_name),
        json_file=annotations_json,
        image_root=image_root,
        evaluator_type="vqa",
        **metadata,
    )


def load_vqa_json(questions_json: str, annotations_json: str, image_root: str, image_name: str) -> Records:
    """Records of the images that have questions, in order of image id.

    Args:
        questions_json: such as ``v2_OpenEnded_mscoco_train2014_questions.json``, {"questions": [{"question_id",
            "image_id", "question"}]}.
        annotations_json: such as ``v2_mscoco_train2014_annotations.json``, {"annotations": [{"question_id",
            "question_type", "answer_type", "answers": [{"answer"}]}]}.
        image_root: the folder of the images.
        image_name: the name of an image's file by its id, such as "COCO_train2014_{:012d}.jpg".

    Raises:
        UserError: a question has no annotation, or a question or an answer is no string.
    """
    with while_reading(annotations_json):
        annotations = {
            entry["question_id"]: _annotation(entry, annotations_json)
            for entry in read_json(annotations_json)["annotations"]
        }
    records: dict[Any, dict] = {}
    with while_reading(questions_json):
        for entry in sorted(read_json(questions_json)["questions"], key=lambda entry: id_order(entry["question_id"])):
            number, image_id = entry["question_id"], entry["image_id"]
            if number not in annotations:
                raise UserError(f"{questions_json}: question {number} has no annotation in {annotations_json}")
            text = tidy(string(entry["question"], f"{questions_json}: question {number}"))
            file_name = os.path.join(image_root, image_name.format(image_id))
            record = records.setdefault(image_id, {"file_name": file_name, "image_id": image_id, "questions": []})
            record["questions"].append({"question_id": number, "question": text, **annotations[number]})
        if not records:
            raise UserError(f"{questions_json} has no questions")
        return [records[image_id] for image_id in sorted(records, key=id_order)]


def _annotation(entry: dict, annotations_json: str) -> dict:
    """What a question's annotation adds to it."""
    what = f"{annotations_json}: an answer to question {entry['question_id']}"
    answers = [string(answer["answer"], what) for answer in entry["answers"]]
    return {"question_type": entry["question_type"], "answer_type": entry["answer_type"], "answers": answers}


def load_questions(name: str) -> Records:
    """The records of a dataset of images with questions.

    Raises:
        UserError: as :func:`load_dataset`; besides, a record has no questions, or a question has no answers.
    """
    records = load_dataset(name)
    for record in records:
        if not record.get("questions"):
            raise UserError(f"dataset '{name}': image {record.get('file_name')} has no list of \"questions\"")
        for question in record["questions"]:
            if not question["answers"]:
                raise UserError(
                    f"dataset '{name}': nobody has answered question {question['question_id']}{remedy_of(name)}"
                )
    return records
