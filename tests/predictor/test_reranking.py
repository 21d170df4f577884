"""Retrieval's order is that of evaluation: its best candidates are compared again by the likelihood of the caption."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from uniperceiver_v2 import Predictor
from uniperceiver_v2.data.datasets.texts import encode
from uniperceiver_v2.data.mappers.captions import RetrievalMapper
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.evaluation import RetrievalEvaluator
from uniperceiver_v2.evaluation.reranking import Reranking
from uniperceiver_v2.predictor import BadImages, api
from uniperceiver_v2.tasks.caption_likelihoods import caption_log_likelihoods

CANDIDATES = 10  # the least number: more are given, so some are not compared again
TEXTS = [
    f"a {colour} {digit}" for colour in ("red", "blue") for digit in ("one", "two", "three", "four", "five", "six")
]


@pytest.fixture
def reranking(predictor) -> Predictor:
    task = predictor.task("retrieval")
    task.settings = replace(task.settings, rerank=CANDIDATES)
    return predictor


@pytest.fixture
def paths(tmp_path, pixels) -> list[str]:
    """Twelve pictures of two sizes."""
    found = [str(tmp_path / f"{number}.png") for number in range(12)]
    for number, path in enumerate(found):
        Image.fromarray(pixels(48 + 12 * (number % 2), 60, seed=number)).save(path)
    return found


def test_the_order_is_that_of_the_evaluator(reranking, paths, tmp_path):
    model, cfg = reranking.model, reranking.cfg
    mapper = RetrievalMapper(cfg, "retrieval", model.text_encoder.tokenizer)
    evaluator = RetrievalEvaluator("pairs", str(tmp_path / "evaluation"))

    def log_likelihoods(images, captions, pairs):
        return caption_log_likelihoods(model, images, captions, pairs)

    evaluator.reranking = Reranking(CANDIDATES, model.likelihood.temperature.item(), log_likelihoods)
    evaluator.reset()
    for number, path in enumerate(paths):
        sample = mapper({"file_name": path, "image_id": number, "captions": [TEXTS[number]]})
        evaluator.process([sample], model([sample]))
    evaluator.evaluate()
    expected = json.loads((tmp_path / "evaluation" / "predictions.json").read_text())
    found = reranking.retrieve(paths, TEXTS)
    for place, row in enumerate(expected["captions"]):
        assert [match.place for match in found.images_of(place, 10)] == row["best_images"]
    for place, row in enumerate(expected["images"]):
        assert [match.place for match in found.texts_of(place, 10)] == row["best_captions"]


def plain_order(predictor, paths: list[str], text: str) -> list[int]:
    """Images of a text by cos/τ + log P(t|x) of the ten best, pair by pair in float64; the others by cosine."""
    model = predictor.model
    encoded = predictor.encode(paths)
    cosines = (predictor.embed_images(encoded).double() @ predictor.embed_texts(text)[0].double()).tolist()
    tokens = predictor.gallery(encoded).tokens
    ids = [encode(model.text_encoder.tokenizer, text)]
    by_cosine = sorted(range(len(paths)), key=lambda place: -cosines[place])
    temperature = model.likelihood.temperature.item()

    def score(place: int) -> float:
        given = caption_log_likelihoods(model, [tokens[place]], ids, torch.tensor([[0, 0]])).item()
        return cosines[place] / temperature + given

    return sorted(by_cosine[:CANDIDATES], key=lambda place: -score(place)) + by_cosine[CANDIDATES:]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_one_text_equals_the_plain_formula_whatever_the_batch(reranking, paths, batch_size):
    expected = plain_order(reranking, paths, TEXTS[3])
    other = Predictor.from_model(reranking.model, reranking.cfg, batch_size=batch_size)
    found = other.retrieve(paths, TEXTS[3])
    assert [match.place for match in found.images_of(TEXTS[3], 12)] == expected
    similarities = [match.similarity for match in found.images_of(0, 12)]
    assert similarities == [found.similarities[place, 0].item() for place in expected], "cosines, as without RERANK"
    assert similarities != sorted(similarities, reverse=True)
    assert [match.place for match in found.texts_of(4)] == [0]


def test_one_text_is_compared_with_its_candidates_alone(reranking, paths, monkeypatch):
    asked = []
    monkeypatch.setattr(api, "caption_log_likelihoods", lambda *args: asked.append(args[3]) or torch.zeros(10))
    reranking.retrieve(paths, TEXTS[0])
    assert [len(pairs) for pairs in asked] == [CANDIDATES]
    assert reranking.retrieve(paths[:1], TEXTS).best_texts is None, "P(t) is P(t | x), so cosines decide"
    assert len(asked) == 1


def test_without_rerank_cosines_decide(predictor, paths, monkeypatch):
    monkeypatch.setattr(api, "caption_log_likelihoods", lambda *_: pytest.fail("compared again"))
    assert predictor.gallery(paths).tokens == ()
    found = predictor.retrieve(paths, TEXTS)
    assert found.best_images is None and found.best_texts is None
    for place in range(12):
        by_cosine = found.similarities.argsort(dim=0, descending=True)[:, place].tolist()
        assert [match.place for match in found.images_of(place, 12)] == by_cosine
        assert [match.place for match in found.texts_of(place, 12)] == found.similarities[place].argsort(
            descending=True
        ).tolist()


def test_bad_images_are_no_candidates(reranking, paths, bad_files):
    """The others have the order that they have without the bad ones."""
    alone = reranking.retrieve(paths, TEXTS)
    mixed = [bad_files[0], *paths[:5], bad_files[2], *paths[5:]]
    places = [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13]
    with pytest.raises(BadImages) as caught:
        reranking.retrieve(mixed, TEXTS)
    for found in (reranking.retrieve(mixed, TEXTS, on_error="skip"), caught.value.results):
        assert found.similarities[[0, 6]].isnan().all()
        assert found.texts_of(0) == found.texts_of(6) == []
        for place in range(12):
            expected = [places[match.place] for match in alone.images_of(place, 12)]
            assert [match.place for match in found.images_of(place, 20)] == expected
            texts = [match.name for match in found.texts_of(places[place], 12)]
            assert texts == [match.name for match in alone.texts_of(place, 12)]


def test_a_gallery_answers_as_its_images_do(reranking, paths, bad_files, predictor):
    expected = reranking.retrieve([*paths, bad_files[0]], TEXTS, on_error="skip")
    first, last = reranking.gallery(paths[:7]), reranking.gallery([*paths[7:], bad_files[0]], on_error="skip")
    gallery = first + last
    assert len(gallery) == 13 and list(gallery.failures) == [12] and gallery.names == expected.images
    assert all(own.dtype == torch.half and own.device.type == "cpu" for own in gallery.tokens)
    found = reranking.retrieve(gallery, TEXTS, on_error="skip")
    np.testing.assert_allclose(found.similarities, expected.similarities, atol=1e-5)
    assert torch.equal(found.best_images, expected.best_images)
    assert torch.equal(found.best_texts[:12], expected.best_texts[:12])
    with pytest.raises(BadImages):
        reranking.retrieve(gallery, TEXTS)
    with pytest.raises(UserError, match="by another model"):
        reranking.retrieve(replace(first, model=None), TEXTS)


def test_what_leaves_nothing_to_compare(reranking, paths, bad_files):
    assert reranking.retrieve([], TEXTS).similarities.shape == (0, 12)
    found = reranking.retrieve([bad_files[0], paths[0], bad_files[2]], TEXTS, on_error="skip")
    assert [match.place for match in found.images_of(0)] == [1]
    assert len(found.texts_of(1, 12)) == 12
    repeated = reranking.retrieve(paths[:3], [TEXTS[0], TEXTS[0]])
    assert repeated.best_images[0].tolist() == repeated.best_images[1].tolist()
