"""The complete model: dispatch, preparation of images, candidates and their cache."""

from dataclasses import replace

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage

from uniperceiver_v2 import kinds
from uniperceiver_v2.kinds import KINDS, TaskSettings, register_kind
from uniperceiver_v2.meta_arch import UniPerceiverV2
from uniperceiver_v2.tasks import DETECTION, ClassificationTask, DetectionTask, Task, candidate_texts

NAMES = ("zero", "one", "seven")


def image_of(height: int = 40, width: int = 56) -> torch.Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def inputs(task: str, *sizes: tuple[int, int]) -> list[dict]:
    return [{"task": task, "image": image_of(*size), "candidates": NAMES} for size in sizes or ((40, 56),)]


def test_is_registered(tiny_config, tiny_model):
    assert META_ARCH_REGISTRY.get("UniPerceiverV2") is UniPerceiverV2
    assert isinstance(tiny_model, UniPerceiverV2)
    assert tiny_model.device == torch.device("cpu")


def test_tasks_go_by_their_names_and_by_their_kinds(tiny_model):
    assert isinstance(tiny_model.tasks["scenes"], DetectionTask)
    assert isinstance(tiny_model.tasks["digits"], ClassificationTask)
    for task, key in (
        ("scenes", "instances"),
        ("detection", "instances"),
        ("digits", "scores"),
        ("classification", "scores"),
    ):
        assert tiny_model(inputs(task))[0].keys() == {key}


def test_a_task_has_the_settings_of_its_node(tiny_config):
    tiny_config.TASKS.digits.LABEL_SMOOTHING = 0.3
    model = build_model(tiny_config)
    assert model.tasks["digits"].settings.label_smoothing == 0.3
    assert model.tasks["classification"] is model.tasks["digits"]  # the kind stands for its first task


def test_detection_is_meant_without_a_task(tiny_model):
    assert "instances" in tiny_model([{"image": image_of(), "candidates": NAMES}])[0]


def test_unknown_task(tiny_model):
    with pytest.raises(KeyError, match=r"'scens'.*scenes"):
        tiny_model(inputs("scens"))


def test_new_kinds_of_task_register_themselves(tiny_config, monkeypatch):
    class Counting(Task):
        def losses(self, model, inputs):
            return {"loss_count": torch.tensor(float(len(inputs)) * self.settings.loss_weight)}

        def predict(self, model, inputs):
            return [{"count": len(inputs)}] * len(inputs)

    monkeypatch.setattr("uniperceiver_v2.kinds.KINDS", dict(KINDS))
    monkeypatch.setattr("uniperceiver_v2.meta_arch.KINDS", kinds.KINDS)
    counting = replace(DETECTION, name="counting", task=Counting, settings=TaskSettings, evaluators={})
    assert register_kind(counting) is counting
    model = build_model(tiny_config).eval()
    assert model(inputs("counting"))[0] == {"count": 1}
    assert model.train()(inputs("counting")) == {"loss_count": 1.0}
    with pytest.raises(ValueError, match="counting"):
        register_kind(counting)
    with pytest.raises(ValueError, match=r"'detection' and 'seeing' both evaluate coco"):
        register_kind(replace(DETECTION, name="seeing"))


def test_predictions_need_no_gradients(tiny_model):
    assert not tiny_model(inputs("digits"))[0]["scores"].requires_grad
    assert torch.is_grad_enabled()


def test_images_are_normalised_and_padded(tiny_config):
    tiny_config.MODEL.PIXEL_MEAN, tiny_config.MODEL.PIXEL_STD = [10.0, 20.0, 30.0], [2.0, 4.0, 5.0]
    model = build_model(tiny_config)
    batch = inputs("scenes", (40, 56), (33, 20))
    images = model.preprocess(batch)
    assert images.tensor.shape == (2, 3, 64, 64)  # a multiple of 32
    assert [tuple(size) for size in images.image_sizes] == [(40, 56), (33, 20)]
    for channel, (mean, std) in enumerate(((10, 2), (20, 4), (30, 5))):
        expected = (batch[1]["image"][channel].float() - mean) / std
        torch.testing.assert_close(images.tensor[1, channel, :33, :20], expected)
    assert (images.tensor[1, :, 33:] == 0).all()
    assert (images.tensor[1, :, :, 20:] == 0).all()


def test_float_images_are_taken_too(tiny_model):
    batch = inputs("digits")
    as_float = [{**batch[0], "image": batch[0]["image"].float()}]
    torch.testing.assert_close(tiny_model(as_float)[0]["scores"], tiny_model(batch)[0]["scores"])


@torch.no_grad()
def test_padding_of_the_global_tokens_is_invisible(tiny_model):
    encoding, _ = tiny_model.image_encoder(tiny_model.preprocess(inputs("scenes", (64, 128), (40, 50))))
    assert not encoding.global_valid.all()
    before = tiny_model.decode_image(encoding), tiny_model.decode_proposals(encoding)
    encoding.global_tokens[~encoding.global_valid] = 50.0
    torch.testing.assert_close((tiny_model.decode_image(encoding), tiny_model.decode_proposals(encoding)), before)


@torch.no_grad()
def test_a_candidate_does_not_depend_on_the_others(tiny_model):
    texts = ("seven", "a red seven to the left of two blue threes", "two")
    together = tiny_model.encode_candidates(texts)
    for text, representation in zip(texts, together, strict=True):
        torch.testing.assert_close(tiny_model.encode_candidates((text,))[0], representation, atol=1e-5, rtol=1e-4)


def test_alignment_targets_are_centred_mean_tokens_without_gradients(tiny_model):
    texts = ("seven", "a red seven to the left of two blue threes", "two")
    means = []
    for text in texts:
        token_ids, valid = tiny_model.text_encoder.tokenize([text])
        means.append(tiny_model.text_encoder(token_ids, valid)[0].mean(0))
    means = torch.stack(means).detach()
    found = tiny_model.alignment_targets(texts)
    assert not found.requires_grad
    torch.testing.assert_close(found, means - means.mean(0), atol=1e-5, rtol=1e-4)


def test_candidates_and_alignment_targets_in_one_pass(tiny_model, monkeypatch):
    texts, passes = ("seven", "a red seven to the left of two blue threes", "two"), []
    expected = tiny_model.encode_candidates(texts), tiny_model.alignment_targets(texts)
    tiny_model.text_encoder.register_forward_hook(lambda *_: passes.append(1))
    candidates, alignment_targets = tiny_model.encode_candidates_and_alignment_targets(texts)
    assert len(passes) == 1
    assert torch.equal(candidates, expected[0])
    assert torch.equal(alignment_targets, expected[1])
    assert candidates.requires_grad
    assert not alignment_targets.requires_grad
    torch.testing.assert_close(candidates.norm(dim=1), torch.ones(3))


def test_training_encodes_its_candidates_once(tiny_model):
    """For both tasks with an alignment loss."""
    passes = []
    tiny_model.text_encoder.register_forward_hook(lambda *_: passes.append(1))
    with EventStorage():
        tiny_model.train()([{**x, "label": 1} for x in inputs("digits", (32, 32))])
    assert len(passes) == 1


@pytest.fixture
def encoded(tiny_model, monkeypatch) -> list[tuple[str, ...]]:
    """The sets of texts that the text encoder was called with."""
    seen, tokenize = [], tiny_model.text_encoder.tokenize
    monkeypatch.setattr(
        tiny_model.text_encoder, "tokenize", lambda texts: (seen.append(tuple(texts)), tokenize(texts))[1]
    )
    return seen


def test_candidates_are_encoded_once_in_evaluation(tiny_model, encoded):
    for task in ("scenes", "digits", "scenes"):
        tiny_model(inputs(task))
    assert encoded == [NAMES]
    tiny_model([{**inputs("digits")[0], "candidates": ("two",)}])
    assert encoded == [NAMES, ("two",)]


def test_training_between_evaluations_changes_the_candidates(tiny_model, encoded):
    batch = [{**x, "label": 1} for x in inputs("digits", (32, 32), (32, 32))]
    before = tiny_model(batch)[0]["scores"]
    with EventStorage():
        loss = tiny_model.train()(batch)["loss_label"]
    loss.backward()
    torch.optim.SGD(tiny_model.parameters(), lr=0.1).step()
    encoded.clear()
    after = tiny_model.eval()(batch)[0]["scores"]
    assert encoded == [NAMES]
    assert not torch.allclose(before, after)


def test_loaded_weights_change_the_candidates(tiny_config, tiny_model, encoded):
    batch = inputs("digits")
    tiny_model(batch)
    other = build_model(tiny_config).eval()
    tiny_model.load_state_dict(other.state_dict())
    torch.testing.assert_close(tiny_model(batch)[0]["scores"], other(batch)[0]["scores"])
    assert len(encoded) == 2


def test_weights_hold_no_task_heads(tiny_model):
    """All tasks have one set of weights. A task with other names or of another kind adds none."""
    parts = {name.split(".")[0] for name in tiny_model.state_dict()}
    assert parts == {"image_encoder", "text_encoder", "decoder", "likelihood"}


def test_a_kind_stands_for_the_first_task_of_that_kind(tiny_config):
    """Test datasets name kinds. They get the prompt with which the task was trained."""
    tiny_config.TASKS.digits.PROMPT = "the digit {}"
    tiny_config.TASKS.more_digits = tiny_config.TASKS.digits.clone()
    tiny_config.TASKS.more_digits.PROMPT = "another {}"
    tiny_config.TASKS.NAMES.append("more_digits")
    model = build_model(tiny_config)
    texts = {
        name: candidate_texts(model.tasks[name].settings.prompt, [{"candidates": ("two",)}])
        for name in ("classification", "more_digits")
    }
    assert texts == {"classification": ("the digit two",), "more_digits": ("another two",)}


@pytest.mark.parametrize("task", ["scenes", "phrases", "digits", "captions"])
def test_a_result_does_not_depend_on_the_neighbours_in_the_batch(tiny_model, task):
    with torch.no_grad():
        for parameter in tiny_model.parameters():  # at the start, much does not depend on the image yet
            parameter.add_(torch.randn_like(parameter) * 0.05)
    sizes = ((64, 64), (40, 60), (64, 64), (72, 96), (40, 60))
    batch = [
        {
            "task": task,
            "image": torch.randint(0, 256, (3, *size), dtype=torch.uint8),
            "candidates": ("one", "two"),
            "phrases": ("one",),
        }
        for size in sizes
    ]
    for item, found in zip(batch, tiny_model(batch), strict=True):
        (alone,) = tiny_model([item])
        if task in ("scenes", "phrases"):
            assert found["instances"].image_size == alone["instances"].image_size
            assert torch.equal(found["instances"].pred_masks, alone["instances"].pred_masks)
            for name in ("scores", "pred_boxes"):
                both = (getattr(x["instances"], name) for x in (found, alone))
                torch.testing.assert_close(*(getattr(x, "tensor", x) for x in both), atol=1e-4, rtol=0)
        elif task == "digits":
            torch.testing.assert_close(found["scores"], alone["scores"], atol=1e-4, rtol=0)
        else:
            torch.testing.assert_close(found["image_feature"], alone["image_feature"], atol=1e-4, rtol=0)
            assert found["caption"] == alone["caption"]
