"""Retrieval compared with a plain formula on the whole matrix, in float64."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from uniperceiver_v2.evaluation import RetrievalEvaluator
from uniperceiver_v2.evaluation.retrieval_ranks import hit_probability, retrieve

RANKS = (1, 5, 10)


def unit(vectors):
    vectors = torch.tensor(vectors, dtype=torch.float64)
    return vectors / vectors.norm(dim=-1, keepdim=True)


def plain_recall(similarities, right, k):
    """R@k from float64 similarities [Q, C] and a bool matrix [Q, C] of right candidates. Differences up to 1e-6
    count as ties."""
    hits = []
    for row, own in zip(similarities, right):
        best = row[own].max()
        greater = int((row > best + 1e-6).sum())
        equal = (row - best).abs() <= 1e-6
        among, good = int(equal.sum()), int((equal & own).sum())
        ranks = min(max(k - greater, 0), among)
        hits.append(1 - math.comb(among - good, ranks) / math.comb(among, ranks))
    return 100 * sum(hits) / len(hits)


# Few directions, so that many similarities are equal, and all others well apart.
directions = st.lists(st.integers(-1, 1), min_size=3, max_size=3).filter(any)
galleries = st.lists(st.tuples(directions, st.lists(directions, min_size=1, max_size=7)), min_size=1, max_size=16)


@settings(max_examples=60, deadline=None)
@given(galleries, st.integers(1, 20))
def test_equals_the_plain_formula_whatever_the_chunks(gallery, chunk):
    images = unit([image for image, _ in gallery])
    captions = unit([caption for _, of_image in gallery for caption in of_image])
    image_of = torch.tensor([i for i, (_, of_image) in enumerate(gallery) for _ in of_image])
    found = retrieve(images.float(), captions.float(), image_of, chunk=chunk)
    similarities = images @ captions.T
    right = torch.arange(len(images))[:, None] == image_of
    for result, matrix, own in zip(found, (similarities, similarities.T), (right, right.T)):
        for k in RANKS:
            assert result.recall(k) == pytest.approx(plain_recall(matrix, own, k))
        best = matrix.topk(min(10, matrix.shape[1]), dim=1).values
        assert torch.allclose(result.similarities.double(), best, atol=1e-6)
        assert torch.allclose(matrix.gather(1, result.best), best, atol=1e-6)
        assert all(len(set(row)) == len(row) for row in result.best.tolist())


def random_features(images=60, per_image=5, dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image_of = torch.arange(images).repeat_interleave(per_image)
    pictures = unit(torch.randn(images, dim, generator=generator).tolist())
    noise = torch.randn(len(image_of), dim, generator=generator).double()
    return pictures, unit((pictures[image_of] + 0.6 * noise).tolist()), image_of


@pytest.mark.parametrize("chunk", [1, 7, 60, None])
def test_features_in_general_position(chunk):
    images, captions, image_of = random_features()
    found = retrieve(images.float(), captions.float(), image_of, chunk=chunk)
    right = torch.arange(60)[:, None] == image_of
    for result, matrix, own in zip(found, (images @ captions.T, captions @ images.T), (right, right.T)):
        recalls = [result.recall(k) for k in RANKS]
        assert recalls == pytest.approx([plain_recall(matrix, own, k) for k in RANKS])
        assert 10 < recalls[0] < recalls[1] < recalls[2]
        assert torch.equal(result.best, matrix.topk(10, dim=1).indices)


def test_copies_that_rounding_tells_apart_are_equal():
    """Features of one caption, encoded in different batches, differ in the last bits."""
    images, captions, image_of = random_features(images=30, per_image=1)
    captions = captions[0] + 1e-8 * torch.randn(30, 16, dtype=torch.float64)
    by_image, _ = retrieve(images.float(), captions.float(), image_of)
    assert by_image.recall(5) == pytest.approx(100 * 5 / 30)


def test_no_more_than_a_chunk_of_similarities_is_held():
    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            tensors = [x for x in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(x)]
            self.elements = max([self.elements, *(x.numel() for x in tensors)])
            return result

    images, captions, image_of = random_features(images=100, per_image=2, dim=4)
    for everything_equal in (False, True):
        if everything_equal:
            captions = captions[:1].expand_as(captions)
        with Largest() as largest:
            retrieve(images.float(), captions.float(), image_of, chunk=20)
        assert largest.elements == 20 * 200


@pytest.mark.parametrize("equal", [0, 1, 3])
@pytest.mark.parametrize("right", [1, 2])
@pytest.mark.parametrize("greater", [0, 1, 3])
def test_hit_probability_is_the_share_of_orders(equal, right, greater):
    for k in range(1, 8):
        orders = list(itertools.permutations([True] * right + [False] * equal))
        share = sum(any(order[: max(k - greater, 0)]) for order in orders) / len(orders)
        found = hit_probability(k, *(torch.tensor([value]) for value in (greater, equal, right)))
        assert found.item() == pytest.approx(share)


def samples(images=12, per_image=5):
    pictures, captions, image_of = random_features(images, per_image)
    inputs, outputs = [], []
    for i in reversed(range(images)):
        texts = [f"caption {j} of {i}" for j in range(per_image)]
        inputs.append({"image_id": 10 * i, "file_name": f"{i}.png", "captions": texts})
        outputs.append({"image_feature": pictures[i].float(), "text_features": captions[image_of == i].float()})
    return inputs, outputs, pictures, captions, image_of


def test_results_and_files(tmp_path):
    inputs, outputs, pictures, captions, image_of = samples()
    evaluator = RetrievalEvaluator("pairs", str(tmp_path))
    evaluator.reset()
    for start in range(0, 12, 5):
        evaluator.process(inputs[start : start + 5], outputs[start : start + 5])
    results = evaluator.evaluate()
    right = torch.arange(12)[:, None] == image_of
    assert results == {
        "text_retrieval": {f"R@{k}": pytest.approx(plain_recall(pictures @ captions.T, right, k)) for k in RANKS},
        "image_retrieval": {f"R@{k}": pytest.approx(plain_recall(captions @ pictures.T, right.T, k)) for k in RANKS},
        "text_retrieval (chance)": {
            f"R@{k}": pytest.approx(100 - 100 * math.comb(55, k) / math.comb(60, k)) for k in RANKS
        },
        "image_retrieval (chance)": {f"R@{k}": pytest.approx(100 * k / 12) for k in RANKS},
    }
    assert results == evaluator.evaluate() == json.loads((tmp_path / "results.json").read_text())

    written = json.loads((tmp_path / "predictions.json").read_text())
    assert [image["image_id"] for image in written["images"]] == list(range(0, 120, 10))
    assert written["images"][3]["best_captions"] == (captions @ pictures[3]).topk(10).indices.tolist()
    caption = written["captions"][17]
    assert (caption["id"], caption["image_id"], caption["caption"]) == (17, 30, "caption 2 of 3")
    scores, best = (pictures @ captions[17]).topk(10)
    assert caption["best_images"] == [10 * i for i in best.tolist()]
    assert caption["scores"] == pytest.approx(scores.tolist(), abs=1e-4)


def test_features_that_are_all_alike_are_at_chance():
    inputs, outputs, *_ = samples(images=30)
    outputs = [{key: torch.ones_like(value) / 4 for key, value in output.items()} for output in outputs]
    evaluator = RetrievalEvaluator("pairs")
    evaluator.process(inputs, outputs)
    results = evaluator.evaluate()
    for task in ("text_retrieval", "image_retrieval"):
        assert results[task] == pytest.approx(results[f"{task} (chance)"])


def test_two_ranks_give_the_result_of_one(on_two_ranks):
    inputs, outputs, *_ = samples()
    evaluator = RetrievalEvaluator("pairs")
    evaluator.process(inputs, outputs)
    assert on_two_ranks(lambda: RetrievalEvaluator("pairs"), inputs, outputs) == [evaluator.evaluate(), {}]


def test_what_cannot_be_compared_is_refused():
    inputs, outputs, *_ = samples(images=2)
    evaluator = RetrievalEvaluator("pairs")
    with pytest.raises(ValueError, match="image 10 has 4 captions and 5 features"):
        evaluator.process([{**inputs[0], "captions": inputs[0]["captions"][:4]}], outputs[:1])
    with pytest.raises(ValueError, match="image 10 has 0 captions"):
        nothing = {"image_feature": outputs[0]["image_feature"], "text_features": torch.zeros(0, 16)}
        evaluator.process([{**inputs[0], "captions": []}], [nothing])
    for key in outputs[0]:
        with pytest.raises(FloatingPointError, match="image 10"):
            evaluator.process(inputs[:1], [{**outputs[0], key: outputs[0][key] * math.nan}])
