"""The federated sample of categories, and its loss, against rules and formulas written out plainly."""

import math

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from uniperceiver_v2.data.datasets.records import federation_of
from uniperceiver_v2.modeling.image_encoder import RegionTargets
from uniperceiver_v2.tasks.category_sample import CategorySample

NAMES = tuple("abcdefghij")
COUNTS = (100, 100, 100, 100, 100, 100, 100, 1, 1, 0)


@pytest.fixture
def federated(scenes) -> list[dict]:
    """Scenes of ten categories; they show 4, 1 and 2."""
    for item, unsure in zip(scenes, [(1, 3), (), (2, 5)], strict=True):
        item.update({"candidates": NAMES, "category_images": COUNTS, "unsure_categories": unsure})
    return scenes


def sample(scenes, count: int) -> CategorySample:
    return CategorySample.federated(NAMES, torch.tensor([[4, 1], [0, 0], [2, 0]]), scenes, count)


def test_a_sample_has_the_batch_s_categories_and_others_by_frequency(federated):
    times = dict.fromkeys(NAMES, 0)
    for _ in range(300):
        categories = sample(federated, 5)
        assert len(set(categories.texts)) == 5 and {"e", "b", "c"} <= set(categories.texts)
        places = [categories.labels[0, 0], categories.labels[0, 1], categories.labels[2, 0]]
        assert [categories.texts[i] for i in places] == ["e", "b", "c"]
        for text in categories.texts:
            times[text] += 1
    assert times["j"] == 0  # no image shows it
    # Two of the others are drawn: four have weight 10, two have weight 1.
    common = [times[name] for name in "adfg"]
    assert min(common) > 100 and 5 < times["h"] + times["i"] < 60
    assert set(sample(federated, 50).texts) == set(NAMES) - {"j"}
    assert set(sample(federated, 1).texts) == {"e", "b", "c"}


def test_what_an_image_does_not_annotate_exhaustively_is_left_out_of_its_comparison(federated):
    categories = sample(federated, 50)
    logits = torch.zeros(4, len(categories.texts))
    image, labels = torch.tensor([0, 0, 1, 2]), torch.tensor([4, 1, 0, 2])
    compared = categories.compared(logits, image, labels)
    left_out = [{categories.texts[i] for i in row.isinf().nonzero().flatten()} for row in compared]
    assert left_out == [{"b", "d"}, {"d"}, set(), {"f"}]  # never an object's own


def test_the_losses_are_equation_7_over_the_sample(tiny_config, federated):
    tiny_config.TASKS.scenes.FEDERATED_SAMPLE = 6
    model = build_model(tiny_config).train()
    torch.manual_seed(7)
    with EventStorage():
        losses = model(federated)
    torch.manual_seed(7)
    with torch.no_grad():
        images = model.preprocess(federated)
        targets = RegionTargets.from_instances([x["instances"] for x in federated], images)
        categories = CategorySample.federated(NAMES, targets.labels, federated, 6)
        place = torch.arange(targets.valid.numel()).view_as(targets.valid)
        targets.labels = place
        encoding, regions = model.image_encoder(images, targets)
        names = model.encode_candidates(categories.texts)
        means = model.alignment_targets(categories.texts)
        matches, proposals = regions.matches, model.decode_proposals(encoding)
        states = model.image_encoder.fusion.semantics(regions.states)
        found = model.likelihood.of_directions(proposals[matches.image, matches.query], names).tolist()
        aligned = model.likelihood(states, means).tolist()

    def surprise(logits: list[float], image: int, target: int) -> float:
        label = federated[image]["instances"].gt_classes[target].item()
        unsure = {NAMES[c] for c in federated[image]["unsure_categories"]} - {NAMES[label]}
        likelihoods = {n: math.exp(z) for n, z in zip(categories.texts, logits, strict=True) if n not in unsure}
        return -math.log(likelihoods[NAMES[label]] / sum(likelihoods.values()))

    category = [
        surprise(z, i, t) for z, i, t in zip(found, matches.image.tolist(), matches.target.tolist(), strict=True)
    ]
    settings = model.tasks["scenes"].settings
    expected = settings.category_weight * sum(category) / len(category)
    assert losses["loss_category"].item() == pytest.approx(expected, rel=1e-4)
    weights = regions.weights.tolist()
    owners = [divmod(o, targets.valid.shape[1]) for o in regions.labels.tolist()]
    total = sum(w * surprise(z, *owner) for w, z, owner in zip(weights, aligned, owners, strict=True))
    assert losses["loss_alignment"].item() == pytest.approx(settings.alignment_weight * total / sum(weights), rel=1e-4)


def test_a_batch_without_objects_trains(tiny_config, federated):
    tiny_config.TASKS.scenes.FEDERATED_SAMPLE = 3
    with EventStorage():
        losses = build_model(tiny_config).train()(federated[1:2])
    assert losses["loss_category"] == 0 and all(loss.isfinite() for loss in losses.values())


def test_a_federation_is_read_from_records(catalogs):
    def record(categories, unsure=None):
        known = {} if unsure is None else {"not_exhaustive_category_ids": unsure}
        return {"annotations": [{"category_id": c} for c in categories], **known}

    MetadataCatalog.get("federation_lvis").thing_classes = ["a", "b", "c"]
    records = [record([0, 0, 1], [3, 1]), record([0], [])]
    federation = federation_of(records, "federation_lvis")
    assert federation.image_counts == (2, 1, 0)
    assert [federation.unsure(r) for r in records] == [(0, 2), ()]
    MetadataCatalog.get("federation_own").set(
        thing_classes=["a", "b"], thing_dataset_id_to_contiguous_id={"x": 0, 70: 1}
    )
    records = [record([1], [70]), record([0])]
    federation = federation_of(records, "federation_own")
    assert federation.image_counts == (1, 1) and [federation.unsure(r) for r in records] == [(1,), ()]
