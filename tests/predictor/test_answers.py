"""Every answer is that of the evaluation of train_net.py for the same image, whatever its batch."""

import json
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from pycocotools import mask as mask_api

from uniperceiver_v2 import Predictor
from uniperceiver_v2.data.datasets.texts import encode
from uniperceiver_v2.data.mappers.captions import RetrievalMapper
from uniperceiver_v2.data.mappers.images import ClassificationMapper, DetectionMapper
from uniperceiver_v2.data.mappers.phrases import GroundingMapper
from uniperceiver_v2.data.mappers.questions import QuestionMapper
from uniperceiver_v2.data.mappers.texts import EachTokenOnceMapper, each_token_once
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.predictor import Box, Caption, Classification, Detections, Grounding

LABELS = ("zero", "a red seven", "two")  # the fixture's
CAPTIONS = ["a red seven", "two blue digits in the top left", "a scene"]
PHRASES = ("a red seven", "the blue two")


def records(files: list[str]) -> list[dict]:
    """Records of a dataset."""
    return [
        {"file_name": path, "image_id": number, "label": 0, "captions": CAPTIONS, "phrases": [], "annotations": []}
        for number, path in enumerate(files)
    ]


def evaluated(predictor, mapper, files: list[str], **more) -> list[dict]:
    """Predictions as the evaluation makes them, one image at a time."""
    return [predictor.model([{**mapper(record), **more}])[0] for record in records(files)]


def assert_same_instances(found: Instances, expected: Instances) -> None:
    assert found.image_size == expected.image_size
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=1e-2, rtol=0)
    # Pairs whose scores differ by rounding alone may change places: compared as sets of (class, box).
    assert sorted(found.pred_classes.tolist()) == sorted(expected.pred_classes.tolist())
    differing = (found.pred_masks != expected.pred_masks).float().mean()
    assert differing < 1e-3


def test_detections_are_those_of_evaluation(predictor, files):
    mapper = DetectionMapper(predictor.cfg, "detection", LABELS, is_train=False)
    expected = evaluated(predictor, mapper, files)
    found = predictor.detect(files, threshold=0)
    assert [type(x) for x in found] == [Detections] * 5
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == min(100, 12 * 3)
        assert_same_instances(ours.instances, theirs["instances"])


def test_classes_are_those_of_evaluation(predictor, files):
    mapper = ClassificationMapper("classification", LABELS, "RGB", 32)
    found = predictor.classify(files)
    for ours, theirs in zip(found, evaluated(predictor, mapper, files), strict=True):
        torch.testing.assert_close(ours.probabilities, theirs["scores"], atol=1e-4, rtol=0)
        assert ours.label == LABELS[int(theirs["scores"].argmax())]
        assert [name for name, _ in ours.top(2)] == [LABELS[i] for i in theirs["scores"].topk(2).indices]


def test_calibrated_scores_are_those_of_evaluation(predictor, files):
    plain = predictor.detect(files[0], threshold=0).scores, predictor.classify(files[0]).probabilities
    for kind, temperature in (("detection", 0.4), ("classification", 3.0)):
        task = predictor.task(kind)
        task.settings = replace(task.settings, temperature=temperature)
    detections, classes = predictor.detect(files[0], threshold=0), predictor.classify(files[0])
    (boxes,) = evaluated(predictor, DetectionMapper(predictor.cfg, "detection", LABELS, is_train=False), files[:1])
    (whole,) = evaluated(predictor, ClassificationMapper("classification", LABELS, "RGB", 32), files[:1])
    assert_same_instances(detections.instances, boxes["instances"])
    torch.testing.assert_close(classes.probabilities, whole["scores"], atol=1e-4, rtol=0)
    assert np.abs(detections.scores - plain[0]).max() > 0.01
    assert (classes.probabilities - plain[1]).abs().max() > 0.01


def test_segments_are_those_of_evaluation(predictor, files):
    things, stuff = ("zero", "two"), ("background",)
    kept = replace(predictor.task("segmentation").settings, score_threshold=0.0, overlap_threshold=0.0)
    predictor.task("segmentation").settings = kept
    mapper = DetectionMapper(predictor.cfg, "segmentation", (*things, *stuff), is_train=False)
    expected = evaluated(predictor, mapper, files, is_stuff=(False, False, True))
    for ours, theirs in zip(predictor.segment(files, things, stuff), expected, strict=True):
        assert (ours.ids != theirs["panoptic_seg"][0]).float().mean() < 1e-2
        assert (ours.semantic != theirs["semantic"]).float().mean() < 1e-2
        assert [name for name, _ in ours.segments] == [
            (*things, *stuff)[s["category_id"]] for s in theirs["panoptic_seg"][1]
        ]
        assert ours.ids.shape == ours.size and ours.mask(0).sum() == (ours.ids == 1).sum()
        assert min(ours.draw().size) >= min(ours.size)
    with pytest.raises(UserError, match="things and stuff"):
        predictor.segment(files[0])


def test_captions_of_regions_are_those_of_evaluation(predictor, files):
    kept = replace(predictor.task("region_captioning").settings, beam_size=2, max_length=5)
    predictor.task("region_captioning").settings = kept
    boxes = [[(2, 3, 20, 25), (10, 5, 28, 30)]] * len(files)
    found = predictor.describe(predictor.encode(files), boxes, beams=2)
    mapper = DetectionMapper(predictor.cfg, "region_captioning", (), is_train=False)
    for place, record in enumerate(records(files)):
        sample = mapper(record)
        size = torch.tensor([sample["width"], sample["height"]] * 2)
        expected = predictor.model([{**sample, "regions": torch.tensor(boxes[place]) / size}])[0]
        assert [caption.text for caption in found[place]] == expected["captions"]
        assert [c.log_likelihood for c in found[place]] == pytest.approx(expected["log_likelihoods"], abs=1e-4)
    assert predictor.describe(files[0], boxes[:1], beams=2)[0][1].text == found[0][1].text
    with pytest.raises(UserError, match="5 images need as many lists of boxes"):
        predictor.describe(files, boxes[:2])


def test_answers_are_those_of_evaluation(predictor, files):
    answers, questions = ("yes", "no", "3"), ["how many digits are there?", "is there a red seven?"]
    mapper = QuestionMapper(predictor.cfg, "question_answering", tokenizer(predictor), answers, is_train=False)
    asked = [{"question": question} for question in questions]
    expected = [predictor.model([mapper({**record, "questions": asked})])[0]["scores"] for record in records(files)]
    for place, question in enumerate(questions):
        found = predictor.answer(predictor.encode(files), question, answers)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.probabilities, theirs[place], atol=1e-4, rtol=0)
            assert ours.label == answers[int(theirs[place].argmax())]
    with pytest.raises(UserError, match="answers"):
        predictor.answer(files, questions[0], ["yes", "yes"])


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_are_those_of_evaluation(predictor, files, beams):
    settings = predictor.model.tasks["captioning"].settings
    predictor.model.tasks["captioning"].settings = settings.__class__(beam_size=beams, max_length=6)
    expected = evaluated(predictor, RetrievalMapper(predictor.cfg, "captioning", tokenizer(predictor)), files)
    found = predictor.caption(files, beams=beams)
    assert [caption.text for caption in found] == [theirs["caption"] for theirs in expected]
    assert [c.log_likelihood for c in found] == pytest.approx([x["log_likelihood"] for x in expected], abs=1e-4)
    assert str(found[0]) == found[0].text


@pytest.mark.parametrize("encoded", [False, True])
def test_captions_and_similarities_are_of_squares_where_their_tasks_have_them(predictor, files, encoded):
    model, cfg = predictor.model, predictor.cfg
    for kind, sizes in (("captioning", {"image_size": 40}), ("retrieval", {"image_size": 32, "test_size": 56})):
        settings = {"beam_size": 1, "max_length": 6} if kind == "captioning" else {}
        model.tasks[kind].settings = replace(model.tasks[kind].settings, **sizes, **settings)
    predictor = Predictor.from_model(model, cfg)
    images = predictor.encode(files) if encoded else files
    mapper = RetrievalMapper(cfg, "captioning", tokenizer(predictor), square=40)
    expected = evaluated(predictor, mapper, files)
    assert [caption.text for caption in predictor.caption(images, beams=1)] == [x["caption"] for x in expected]
    assert predictor.caption(images[1:2], beams=1)[0].text == expected[1]["caption"]
    mapper = RetrievalMapper(cfg, "retrieval", tokenizer(predictor), square=56)
    features = torch.stack([x["image_feature"] for x in evaluated(predictor, mapper, files)])
    torch.testing.assert_close(predictor.embed_images(images[3:]), features[3:], atol=1e-4, rtol=0)
    torch.testing.assert_close(predictor.embed_images(images), features, atol=1e-4, rtol=0)
    boxes = evaluated(predictor, DetectionMapper(cfg, "detection", LABELS, is_train=False), files)
    for ours, theirs in zip(predictor.detect(images, threshold=0), boxes, strict=True):
        assert_same_instances(ours.instances, theirs["instances"])


def tokenizer(predictor):
    return predictor.model.text_encoder.tokenizer


def test_groundings_are_those_of_evaluation(predictor, files):
    mapper = GroundingMapper(predictor.cfg, "grounding", is_train=False)
    expected = evaluated(predictor, mapper, files, phrases=PHRASES)
    found = predictor.ground(files, PHRASES, threshold=0)
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours, Grounding)
        assert_same_instances(ours.instances, theirs["instances"])
        of_second = ours.of(PHRASES[1])
        assert [box.score for box in of_second] == sorted((box.score for box in of_second), reverse=True)
        assert len(of_second) == predictor.model.tasks["grounding"].settings.proposals_per_phrase


def test_similarities_are_those_of_evaluation(predictor, files):
    expected = evaluated(predictor, RetrievalMapper(predictor.cfg, "retrieval", tokenizer(predictor)), files)
    images = torch.stack([x["image_feature"] for x in expected])
    similarities = images @ expected[0]["text_features"].T
    torch.testing.assert_close(predictor.embed_images(files), images, atol=1e-4, rtol=0)
    found = predictor.retrieve(files, CAPTIONS)
    torch.testing.assert_close(found.similarities, similarities, atol=1e-4, rtol=0)
    assert [match.place for match in found.images_of(CAPTIONS[1])] == similarities[:, 1].argsort(
        descending=True
    ).tolist()
    assert [match.name for match in found.texts_of(2, 2)] == [CAPTIONS[i] for i in similarities[2].topk(2).indices]
    assert found.images == tuple(files)


def test_hidden_words_are_those_of_evaluation(predictor):
    """Every token of a text is hidden in one of the samples of the evaluation."""
    text, words = "a red seven in the top left", tokenizer(predictor)
    mapper = EachTokenOnceMapper("language_modelling", words)
    for record in each_token_once([{"text_id": 0, "text": text}], words):
        sample = mapper(record)
        hidden = sample["labels"] >= 0
        asked = words.decode(sample["token_ids"][1:-1])
        expected = predictor.model([sample])[0]
        found = predictor.complete(asked, count=len(words))
        assert len(found.words) == hidden.sum()
        for guesses, label, likely in zip(found.words, sample["labels"][hidden], expected["log_likelihoods"]):
            # A word that begins a text and one within it are two tokens.
            probabilities = [p for word, p in guesses if word == words.decode([int(label)]).strip()]
            assert any(p == pytest.approx(likely.exp().item(), abs=1e-5) for p in probabilities)
            assert 0.5 < sum(p for _, p in guesses) <= 1.0001, "all but special tokens"
    assert len(predictor.complete(["a <mask>", "<mask> seven"])) == 2


def test_a_text_with_a_mask_is_read_as_the_tokenizer_reads_it(predictor):
    from uniperceiver_v2.predictor.texts import _with_masks

    encoder = predictor.model.text_encoder
    for text in ("a red <mask> in the top left", "<mask>", "<mask> seven", "two <mask>", "a <mask> <mask> seven"):
        assert _with_masks(encoder, text).tolist() == tokenizer(predictor)(text)["input_ids"]
    shown = _with_masks(encoder, "a <s> <mask>").tolist()
    assert shown[:-2] == encode(tokenizer(predictor), "a <s>").tolist()[:-1], "other special tokens are letters"


def test_an_answer_depends_on_no_other_image(predictor, files):
    together = predictor.detect(files, threshold=0)
    small = Predictor.from_model(predictor.model, predictor.cfg, batch_size=1).detect(files[::-1], threshold=0)[::-1]
    features = predictor.embed_images(files)
    for place, path in enumerate(files):
        alone = predictor.detect(path, threshold=0)
        for other in (together[place], small[place]):
            np.testing.assert_allclose(other.scores, alone.scores, atol=1e-4)
            np.testing.assert_allclose(other.boxes, alone.boxes, atol=1e-2)
        torch.testing.assert_close(predictor.embed_images(path)[0], features[place], atol=1e-4, rtol=0)


def test_one_encoding_answers_all_questions(predictor, files, monkeypatch):
    expected = {
        "detect": [x.scores for x in predictor.detect(files, threshold=0)],
        "classify": [x.probabilities for x in predictor.classify(files, ["one", "two"])],
        "caption": [x.text for x in predictor.caption(files, beams=1)],
        "ground": [x.scores for x in predictor.ground(files, PHRASES, threshold=0)],
        "embed": predictor.embed_images(files),
    }
    encoded = predictor.encode(files)
    predictor.classify(encoded, ["one"])  # its own view of the images is encoded when it is first asked for
    monkeypatch.setattr(predictor.model.image_encoder, "forward", lambda *_: pytest.fail("encoded again"))
    for ours, theirs in zip(predictor.detect(encoded, threshold=0), expected["detect"], strict=True):
        np.testing.assert_allclose(ours.scores, theirs, atol=1e-6)
    for ours, theirs in zip(predictor.classify(encoded, ["one", "two"]), expected["classify"], strict=True):
        torch.testing.assert_close(ours.probabilities, theirs)
    assert [x.text for x in predictor.caption(encoded, beams=1)] == expected["caption"]
    for ours, theirs in zip(predictor.ground(encoded, PHRASES, threshold=0), expected["ground"], strict=True):
        np.testing.assert_allclose(ours.scores, theirs, atol=1e-6)
    torch.testing.assert_close(predictor.embed_images(encoded), expected["embed"])
    part = encoded[1:4]
    assert len(encoded) == 5 and part.names == files[1:4]
    for ours, theirs in zip(predictor.detect(part, threshold=0), expected["detect"][1:4], strict=True):
        np.testing.assert_allclose(ours.scores, theirs, atol=1e-6)
    single = predictor.caption(encoded[-1], beams=1)
    assert isinstance(single, Caption) and single.text == expected["caption"][-1]


def test_an_encoding_of_another_model_is_refused(predictor, files, tiny_config):
    other = Predictor.from_model(build_model(tiny_config), tiny_config)
    with pytest.raises(UserError, match="another model"):
        other.detect(predictor.encode(files), LABELS)


def test_channels_are_in_the_order_of_the_settings(predictor, files):
    predictor.cfg.INPUT.FORMAT = "BGR"
    turned = Predictor.from_model(predictor.model, predictor.cfg)
    mapper = DetectionMapper(predictor.cfg, "detection", LABELS, is_train=False)
    expected = evaluated(turned, mapper, files[:1])[0]["instances"]
    assert_same_instances(turned.detect(files[0], threshold=0).instances, expected)
    assert not np.allclose(predictor.detect(files[0], threshold=0).scores, expected.scores, atol=1e-4)


def test_autocast_is_a_setting(predictor, files):
    half = Predictor.from_model(predictor.model, predictor.cfg, autocast="bfloat16")
    precise, rough = predictor.embed_images(files[0]), half.embed_images(files[0])
    assert 0 < (precise - rough).abs().max() < 0.1
    with pytest.raises(UserError, match="autocast is"):
        Predictor.from_model(predictor.model, predictor.cfg, autocast="int8")


def test_a_named_task_answers_for_its_kind(predictor, files):
    tasks = predictor.model.tasks
    tasks["digits"] = type(tasks["digits"])(tasks["digits"].settings.__class__(prompt="a photo of a {}", image_size=48))
    named = Predictor.from_model(predictor.model, predictor.cfg, tasks=["digits"])
    mapper = ClassificationMapper("digits", LABELS, "RGB", 48)
    expected = evaluated(named, mapper, files[:1])[0]["scores"]
    torch.testing.assert_close(named.classify(files[0], LABELS).probabilities, expected, atol=1e-4, rtol=0)
    with pytest.raises(UserError, match="no task 'digts' in the settings; did you mean 'digits'"):
        Predictor.from_model(predictor.model, predictor.cfg, tasks=["digts"])


def test_results_are_frozen_and_have_every_form(predictor, files):
    found = predictor.detect(files[0], threshold=0)
    with pytest.raises(FrozenInstanceError):
        found.size = (1, 1)
    assert found.size == (48, 60) and found.name == files[0]
    first = next(iter(found))
    assert isinstance(first, Box) and first.label == LABELS[found.class_ids[0]] and first.score == found.scores[0]
    assert found.instances is found.instances and found.instances.pred_masks.shape == (len(found), 48, 60)
    assert str(predictor.detect(files[0], threshold=1.0)) == "nothing"

    rows = found.to_coco(7, category_ids=[30, 20, 10])
    assert json.loads(json.dumps(rows)) == rows and len(rows) == len(found)
    assert [row["category_id"] for row in rows] == [[30, 20, 10][i] for i in found.class_ids]
    assert {row["image_id"] for row in rows} == {7}
    x0, y0, x1, y1 = found.boxes[0]
    assert rows[0]["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0])
    masks = np.stack([mask_api.decode(row["segmentation"]) for row in rows]).astype(bool)
    assert np.array_equal(masks, found.instances.pred_masks.numpy())

    few = found.above(float(found.scores[2]))
    assert 3 <= len(few) < len(found) and np.array_equal(few.boxes, found.boxes[: len(few)])
    assert np.array_equal(few.instances.pred_masks, found.instances.pred_masks[: len(few)])
    assert predictor.caption(files[0], beams=1).to_coco(3)["image_id"] == 3


def test_results_have_the_ids_of_the_users_own_categories(predictor, files, tmp_path):
    ids = (30, "B-2", 10)
    predictor.model.tasks["detection"].category_ids = ids
    predictor.save_pretrained(tmp_path / "saved")
    for asked in (predictor, Predictor.from_pretrained(tmp_path / "saved")):
        found = asked.detect(files[0], threshold=0)
        assert [row["category_id"] for row in found.to_coco()] == [ids[i] for i in found.class_ids]
        assert {row["category_id"] for row in asked.detect(files[0], ["a boat"], threshold=0).to_coco()} == {0}
    asked.model.tasks["detection"].labels = ["other", "names", "altogether"]
    found = asked.detect(files[0], threshold=0)
    assert [row["category_id"] for row in found.to_coco()] == found.class_ids.tolist()


def test_a_model_of_boxes_alone_answers_without_masks(tiny_config, files, demo_module):
    tiny_config.MODEL.MASK_ON = False
    model = build_model(tiny_config)
    model.tasks["detection"].labels = LABELS
    predictor = Predictor.from_model(model, tiny_config)
    objects, grounded = predictor.detect(files[0], threshold=0), predictor.ground(files[0], "a boat", threshold=0)
    for found in (objects, grounded):
        assert len(found) > 0 and not found.instances.has("pred_masks")
        assert all("segmentation" not in row for row in found.to_coco())
        assert found.draw().size == (60 * 8, 48 * 8)
    answer = demo_module("answers").Answer(detect=objects, ground=grounded)
    assert all("segmentation" not in row for row in answer.to_json()["objects"])
    assert answer.card(np.zeros((48, 60, 3), dtype=np.uint8)).width > 2 * 384


def test_masks_of_large_images_are_made_in_parts(predictor, files, monkeypatch):
    from uniperceiver_v2.predictor import results

    whole = predictor.detect(files[0], threshold=0)
    instances, rows = whole.instances, whole.to_coco()
    monkeypatch.setattr(results, "MASK_PIXELS", 5 * 48 * 60)
    parts = predictor.detect(files[0], threshold=0)
    assert len(parts._parts()) == -(-len(whole) // 5)
    assert_same_instances(parts.instances, instances)
    assert [row["segmentation"] for row in parts.to_coco()] == [row["segmentation"] for row in rows]


@pytest.mark.parametrize("kind", ["detect", "classify", "caption", "ground"])
def test_answers_can_be_drawn(predictor, files, kind):
    arguments = {"ground": (["a red seven"],)}.get(kind, ())
    answer = getattr(predictor, kind)(files[0], *arguments)
    picture = answer.draw()
    assert isinstance(picture, Image.Image) and min(picture.size) >= 384
    if kind in ("detect", "ground"):
        plain = np.asarray(answer.above(2.0).draw())
        everything = getattr(predictor, kind)(files[0], *arguments, threshold=0).draw()
        assert not np.array_equal(plain, np.asarray(everything))


def test_a_large_picture_is_drawn_smaller(predictor, pixels):
    found = predictor.detect(pixels(1000, 4000), threshold=0)
    assert max(found.draw().size) == 1600
    assert found.instances.image_size == (1000, 4000)


def test_supervision_is_asked_for_in_one_sentence(predictor, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    for answer in (predictor.detect(files[0]), predictor.classify(files[0])):
        with pytest.raises(UserError, match="pip install supervision"):
            answer.to_supervision()


def test_supervision_gets_boxes_masks_and_names(predictor, files):
    supervision = pytest.importorskip("supervision")
    found = predictor.detect(files[0], threshold=0)
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections) and len(theirs) == len(found)
    assert np.array_equal(theirs.xyxy, found.boxes) and np.array_equal(theirs.confidence, found.scores)
    assert np.array_equal(theirs.mask, found.instances.pred_masks.numpy())
    assert theirs.data["class_name"].tolist() == [box.label for box in found]
    assert len(predictor.detect(files[0], threshold=1.0).to_supervision()) == 0
    classes = predictor.classify(files[0]).to_supervision()
    assert isinstance(classes, supervision.Classifications)


@pytest.mark.parametrize(
    ("labels", "message"),
    [([], "labels are empty"), (["a", "a"], "'a' is given twice"), (["a", ""], "not ''"), ([3], "not 3")]
    + [(["\ud800"], "of whole characters"), (["a" * 100_000], "of at most 65536 characters")],
)
def test_bad_labels_are_told(predictor, files, labels, message):
    with pytest.raises(UserError, match=message):
        predictor.detect(files, labels)


def test_one_label_may_be_a_text(predictor, files):
    assert predictor.detect(files[0], "a cat").labels == ("a cat",)
    assert isinstance(predictor.classify(files[0], "a cat"), Classification)


def test_labels_are_those_of_the_training_or_asked_for(predictor, files, tiny_config):
    tiny_config.TASKS.scenes.DATASETS = ["digit_scenes_train"]
    trained = Predictor.from_model(build_model(tiny_config), tiny_config)
    assert trained.labels()[:2] == ("zero", "one") and trained.detect(files[0]).labels == trained.labels()
    with pytest.raises(UserError, match="no labels are known"):
        trained.labels("classification")


def test_texts_that_cannot_be_completed_are_told(predictor):
    with pytest.raises(UserError, match="'a red seven' has no <mask>"):
        predictor.complete("a red seven")
    with pytest.raises(UserError, match="more than the text encoder's 64"):
        predictor.complete("<mask>" + " seven" * 80)
    with pytest.raises(UserError, match="beams are 1 or more"):
        predictor.caption([], beams=0)


def test_no_images_have_no_answers(predictor):
    assert predictor.detect([]) == [] and predictor.caption([]) == []
    assert predictor.embed_images([]).shape == (0, 32)


def test_upstreams_predictor_takes_labels_from_the_metadata(tiny_config, tmp_path, pixels):
    """DefaultPredictor gives neither a task nor candidates."""
    from detectron2.engine import DefaultPredictor

    tiny_config.TASKS.scenes.DATASETS = ["digit_scenes_train"]
    tiny_config.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    torch.save({"model": build_model(tiny_config).state_dict()}, tiny_config.MODEL.WEIGHTS)
    image = pixels()
    theirs = DefaultPredictor(tiny_config)(image[:, :, ::-1])["instances"]
    ours = Predictor(tiny_config, tiny_config.MODEL.WEIGHTS).detect(image, threshold=0)
    assert len(ours.labels) == 10
    assert_same_instances(ours.instances, theirs)


def test_importing_the_package_loads_neither_the_predictor_nor_pytorchs_compiler():
    program = (
        "import sys, detectron2.modeling; slow = {'uniperceiver_v2.predictor', 'torch._dynamo', 'supervision'}; "
        "slow -= set(sys.modules); import uniperceiver_v2; "  # upstream's modeling loads the compiler itself
        "print(sorted(slow & set(sys.modules))); uniperceiver_v2.Predictor; print(sorted(slow & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == ["[]", "['uniperceiver_v2.predictor']"]
