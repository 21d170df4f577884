"""Grounding: its losses against plain formulas, its predictions against plain rules."""

import dataclasses
import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from uniperceiver_v2.modeling.image_encoder import RegionTargets
from uniperceiver_v2.tasks.grounding import phrase_losses, phrases_found, referent_losses

REGION_LOSSES = {"loss_objectness", "loss_box", "loss_giou", "loss_mask", "loss_dice"}
NAMES = ["loss_phrase", "loss_referent", "loss_alignment", "loss_centre"]


@pytest.fixture
def grounded(scenes) -> list[dict]:
    """Two objects with four phrases, of which one means both and one nothing; no objects; and one object."""
    phrases = (
        {"red seven": [0], "the largest digit": [0], "all digits": [0, 1], "a blue nine": []},
        {"a blue nine": []},
        {"red seven": [], "all digits": [0]},
    )
    for item, own in zip(scenes, phrases, strict=True):
        objects = torch.zeros(len(own), len(item["instances"]), dtype=torch.bool)
        for row, meant in enumerate(own.values()):
            objects[row, meant] = True
        item["instances"].remove("gt_classes")
        del item["candidates"]
        item.update(task="phrases", phrases=tuple(own), phrase_objects=objects)
    return scenes


def train_losses(model, batch: list[dict]) -> dict[str, torch.Tensor]:
    with EventStorage():
        return model.train()(batch)


def plain_phrase_loss(logits, none, true, false):
    """Of one proposal, term by term."""
    wrong = [torch.exp(none)] + [torch.exp(x) for x, bad in zip(logits, false) if bad]
    loss = -torch.log(torch.exp(none) / sum(wrong))
    right = [-torch.log(torch.exp(x) / (torch.exp(x) + sum(wrong))) for x, good in zip(logits, true) if good]
    return loss + (sum(right) / len(right) if right else 0)


def plain_referent_loss(logits, true, false, place):
    """Of one object [N,T] of an image, term by term."""
    terms = []
    for phrase in true[place].nonzero().flatten().tolist():
        wrong = [torch.exp(logits[i, phrase]) for i in range(len(logits)) if false[i, phrase]]
        own = torch.exp(logits[place, phrase])
        terms.append(-torch.log(own / (own + sum(wrong))))
    return sum(terms) / len(terms) if terms else logits.new_zeros(())


@pytest.fixture
def table():
    """Logits [3,4,5], those of none [3,4], true and false, in float64, with all that can occur in them."""
    logits, none = torch.randn(3, 4, 5, dtype=torch.float64) * 3, torch.randn(3, 4, dtype=torch.float64)
    asked = torch.rand(3, 1, 5) < 0.7
    true = (torch.rand(3, 4, 5) < 0.4) & asked
    true[0, 0] = False  # an object without a phrase
    true[1, :, 2] = asked[1, :, 2] = True  # a phrase that means all
    true[2], asked[2] = False, False  # an image that is asked for nothing
    false = asked & ~true
    false[0, 3] = true[0, 3] = False  # an object without a proposal
    return logits.requires_grad_(), none.requires_grad_(), true, false


def test_the_loss_over_phrases_is_the_plain_formula_with_its_gradients(table):
    logits, none, true, false = table
    found = phrase_losses(logits, none, true, false)
    expected = torch.stack(
        [
            torch.stack([plain_phrase_loss(logits[b, n], none[b, n], true[b, n], false[b, n]) for n in range(4)])
            for b in range(3)
        ]
    )
    check_equal_with_gradients(found, expected, (logits, none))
    assert found[2].abs().max() == 0  # nothing was asked for: none has no rival


def test_the_loss_over_proposals_is_the_plain_formula_with_its_gradients(table):
    logits, _, true, false = table
    found = referent_losses(logits, true, false)
    expected = torch.stack(
        [torch.stack([plain_referent_loss(logits[b], true[b], false[b], n) for n in range(4)]) for b in range(3)]
    )
    check_equal_with_gradients(found, expected, (logits,))
    assert found[0, 0] == 0 and found[2].abs().max() == 0


def check_equal_with_gradients(found, expected, inputs):
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    weights = torch.rand_like(found)
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for a, b in zip(ours, theirs):
        assert a.isfinite().all() and a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_which_phrases_are_found():
    scores = torch.tensor([[[3.0, 1.0, 9.0], [2.0, 2.0, 1.0], [9.0, 0.0, 0.0]]])
    true = torch.tensor([[[True, True, False], [False, False, False], [False, False, False]]])
    answered = torch.tensor([[True, True, False]])  # the third object has no proposal
    hits, asked = phrases_found(scores, true, answered)
    assert (hits.item(), asked.item()) == (1, 2)


def test_losses_are_the_plain_formulas(tiny_model, grounded):
    """From what the encoders and the decoder give, proposal by proposal."""
    tiny_model.train()
    settings = tiny_model.tasks["phrases"].settings
    texts = ["red seven", "the largest digit", "all digits", "a blue nine"]
    with torch.no_grad():
        images = tiny_model.preprocess(grounded)
        targets = RegionTargets.from_instances([x["instances"] for x in grounded], images)
        targets = dataclasses.replace(targets, labels=torch.arange(6).view(3, 2))
        torch.manual_seed(7)
        encoding, regions = tiny_model.image_encoder(images, targets)
        candidates = tiny_model.encode_candidates(("none", *texts))
        logits = tiny_model.likelihood.of_directions(tiny_model.decode_proposals(encoding), candidates)
        proposal = {
            (i, t): q for i, t, q in zip(*(getattr(regions.matches, k).tolist() for k in ("image", "target", "query")))
        }
        means = torch.stack([mean_token(tiny_model, text) for text in ("none", *texts)])
        asked = [text for x in grounded for text in x["phrases"]]
        centre = torch.stack([means[1 + texts.index(text)] for text in asked]).mean(0)
        states = tiny_model.image_encoder.fusion.semantics(regions.states)
        aligned = tiny_model.likelihood(states, means - centre)

    of_phrases, of_proposals, of_states = 0.0, 0.0, 0.0
    for image, item in enumerate(grounded):
        count, columns = len(item["instances"]), [1 + texts.index(text) for text in item["phrases"]]
        own = [logits[image, proposal[image, n]].double() for n in range(count)]
        true = item["phrase_objects"].T  # [N,P]
        for n in range(count):
            of_phrases += plain_phrase_loss(own[n][columns], own[n][0], true[n], ~true[n]).item()
            of_proposals += plain_referent_loss(torch.stack([x[columns] for x in own]), true, ~true, n).item()
        for state, label, weight in zip(aligned.double(), regions.labels.tolist(), regions.weights.tolist()):
            if label // 2 == image:
                n = label % 2
                of_states += weight * plain_phrase_loss(state[columns], state[0], true[n], ~true[n]).item()

    torch.manual_seed(7)
    losses = train_losses(tiny_model, grounded)
    assert losses["loss_phrase"].item() == pytest.approx(settings.phrase_weight * of_phrases / 3, rel=1e-4)
    assert losses["loss_referent"].item() == pytest.approx(settings.referent_weight * of_proposals / 3, rel=1e-4)
    expected = settings.alignment_weight * of_states / regions.weights.sum().item()
    assert losses["loss_alignment"].item() == pytest.approx(expected, rel=1e-4)
    for name in REGION_LOSSES:
        torch.testing.assert_close(losses[name], regions.losses[name])


def mean_token(model, text: str) -> torch.Tensor:
    return model.text_encoder(*model.text_encoder.tokenize([text]))[0].mean(0)


def test_losses_teach_every_part(tiny_model, grounded):
    losses = train_losses(tiny_model, grounded)
    assert losses.keys() == REGION_LOSSES | set(NAMES)
    assert all(loss.shape == () and loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses[name] for name in ("loss_phrase", "loss_referent")).backward()
    for part in ("image_encoder.backbone", "image_encoder.regions", "text_encoder", "decoder", "likelihood"):
        gradients = [p.grad for p in tiny_model.get_submodule(part).parameters() if p.grad is not None]
        assert any(g.abs().sum() > 0 for g in gradients), part
        assert all(g.isfinite().all() for g in gradients), part


def test_what_another_image_is_asked_for_is_neither_true_nor_false(tiny_model, grounded):
    """A phrase of the first image teaches the third one's object nothing; it is not taught to be "none" either."""

    def gradient_at_third(batch: list[dict]) -> torch.Tensor:
        torch.manual_seed(7)
        batch[1]["image"] = batch[1]["image"].float().requires_grad_()
        losses = train_losses(tiny_model, batch)
        return torch.autograd.grad(losses["loss_phrase"], batch[1]["image"])[0]

    third = {**grounded[2], "phrases": ("all digits",), "phrase_objects": torch.tensor([[False]])}
    assert gradient_at_third([grounded[0], {**third}]).abs().max() > 0
    assert gradient_at_third([grounded[0], nothing_asked(third)]).abs().max() == 0


def nothing_asked(item: dict) -> dict:
    return {**item, "phrases": (), "phrase_objects": torch.zeros(0, len(item["instances"]), dtype=torch.bool)}


def test_images_without_objects_train(tiny_model, grounded):
    losses = train_losses(tiny_model, grounded[1:2])
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_phrase"] == losses["loss_referent"] == 0
    assert losses["loss_objectness"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_model.parameters())


def test_without_masks_boxes_and_phrases_are_learned(tiny_model, grounded):
    """Objects of the first image have no masks: what the mask head learns is of the third image alone."""
    whole = grounded[2]["instances"].gt_masks
    grounded[0]["instances"].remove("gt_masks")
    losses = train_losses(tiny_model, grounded)
    assert all(loss.isfinite() for loss in losses.values()) and losses["loss_mask"] > 0 and losses["loss_box"] > 0
    grounded[2]["instances"].remove("gt_masks")
    losses = train_losses(tiny_model, grounded)
    assert losses["loss_mask"] == losses["loss_dice"] == 0
    assert losses["loss_box"] > 0 and losses["loss_phrase"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in tiny_model.parameters())
    assert whole.tensor.any()


def test_a_text_that_an_image_has_twice_means_what_either_does(tiny_model, grounded):
    item = grounded[0]
    twice = {**item, "phrases": ("digit", "digit"), "phrase_objects": torch.tensor([[True, False], [False, True]])}
    once = {**item, "phrases": ("digit",), "phrase_objects": torch.tensor([[True, True]])}
    losses = []
    for batch in ([twice], [once]):
        torch.manual_seed(7)
        losses.append(train_losses(tiny_model, batch))
    for name in NAMES:
        torch.testing.assert_close(losses[0][name], losses[1][name])


@pytest.mark.parametrize(("boxes_from_masks", "steps"), [(False, 40), (True, 60)])
def test_a_batch_is_learned(tiny_config, grounded, boxes_from_masks, steps):
    tiny_config.MODEL.UNIPERCEIVER_V2.REGION.BOXES_FROM_MASKS = boxes_from_masks
    model = build_model(tiny_config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(steps):
        with EventStorage() as storage:
            losses = model(grounded)
            accuracy = storage.latest()["phrase_accuracy"][0]
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()} | {"accuracy": accuracy})
    first, last = ({n: sum(h[n] for h in part) / 3 for n in history[0]} for part in (history[:3], history[-3:]))
    for name in (*NAMES, "loss_box", "loss_mask"):
        assert last[name] < 0.9 * first[name], name
    assert last["accuracy"] > 0.9


@torch.no_grad()
def test_predictions_are_the_plain_rule(tiny_config, grounded):
    """Objectness times the sigmoid of the difference to none, for each phrase the best, at the size asked for."""
    tiny_config.TASKS.phrases.PROPOSALS_PER_PHRASE = 3
    model = build_model(tiny_config).eval()
    grounded[0].update(height=100, width=150)
    for item, prediction in zip(grounded, model(grounded), strict=True):
        encoding, _ = model.image_encoder(model.preprocess([item]))
        decoded = model.decode_proposals(encoding)
        assert prediction["phrases"] == item["phrases"]
        instances = prediction["instances"]
        size = item["height"], item["width"]
        assert instances.image_size == size and len(instances) == 3 * len(item["phrases"])
        assert instances.pred_classes.tolist() == [p for p in range(len(item["phrases"])) for _ in range(3)]
        assert instances.pred_masks.shape == (len(instances), *size) and instances.pred_masks.dtype == torch.bool
        for row, phrase in enumerate(item["phrases"]):
            none, own = model.likelihood(decoded[0], model.encode_candidates(("none", phrase))).T.tolist()
            objectness = encoding.proposals.objectness[0].tolist()
            scores = [1 / (1 + math.exp(-o)) / (1 + math.exp(n - s)) for o, n, s in zip(objectness, none, own)]
            best = sorted(range(len(scores)), key=lambda o: -scores[o])[:3]
            found = instances[instances.pred_classes == row]
            assert found.scores.tolist() == pytest.approx([scores[o] for o in best], rel=1e-4)
            for o, box in zip(best, found.pred_boxes.tensor.tolist()):
                cx, cy, w, h = encoding.proposals.boxes[0, o].tolist()
                corners = [
                    (cx - w / 2) * size[1],
                    (cy - h / 2) * size[0],
                    (cx + w / 2) * size[1],
                    (cy + h / 2) * size[0],
                ]
                clipped = [min(max(x, 0), limit) for x, limit in zip(corners, [size[1], size[0]] * 2)]
                assert box == pytest.approx(clipped, abs=1e-2)


def test_a_phrases_scores_do_not_depend_on_other_phrases(tiny_model, grounded):
    together = tiny_model.eval()(grounded[:1])[0]["instances"]
    for index, phrase in enumerate(grounded[0]["phrases"]):
        alone = tiny_model([{**grounded[0], "phrases": (phrase,)}])[0]["instances"]
        own = together[together.pred_classes == index]
        torch.testing.assert_close(own.scores, alone.scores, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(own.pred_boxes.tensor, alone.pred_boxes.tensor)


def test_no_phrases_no_instances(tiny_model, grounded):
    prediction = tiny_model.eval()([{**grounded[0], "phrases": ()}])[0]
    assert prediction["phrases"] == () and len(prediction["instances"]) == 0


def test_what_counts(tiny_model, grounded):
    assert tiny_model.loss_count(grounded) == 3
