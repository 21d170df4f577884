"""Retrieval's second comparison against the plain formula in float64, candidate by candidate."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniperceiver_v2.evaluation import RetrievalEvaluator
from uniperceiver_v2.evaluation.reranking import Reranking, rerank
from uniperceiver_v2.evaluation.retrieval_ranks import retrieve

TEMPERATURE = 0.05


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def gallery(images: int, texts: list[int], seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features of images and of a caption for each of ``texts`` (equal numbers are equal captions), the images of the
    captions, and log P(text | image)."""
    generator = torch.Generator().manual_seed(seed)
    pictures = unit(torch.randn(images, 6, generator=generator).double())
    words = unit(torch.randn(max(texts) + 1, 6, generator=generator).double())
    image_of = torch.arange(len(texts)) % images
    return pictures, words[texts], image_of, -20 * torch.rand(images, max(texts) + 1, generator=generator).double()


def plain(pictures, captions, image_of, texts, given, keep) -> tuple[float, float, float, float]:
    """R@1 and R@2 of both directions, by a loop over all queries."""
    cosines = pictures @ captions.T
    by_image = [cosines[i].topk(min(keep, len(texts))).indices.tolist() for i in range(len(pictures))]
    by_caption = [cosines[:, m].topk(min(keep, len(pictures))).indices.tolist() for m in range(len(texts))]
    compared = {(i, texts[m]) for i, found in enumerate(by_image) for m in found}
    compared |= {(i, texts[m]) for m, found in enumerate(by_caption) for i in found}

    def score(i: int, m: int) -> float:
        likelihoods = [math.exp(given[j, t]) for j, t in compared if t == texts[m]]
        prior = math.log(sum(likelihoods) / len(likelihoods))
        return cosines[i, m].item() / TEMPERATURE + given[i, texts[m]].item() - prior

    def recall(queries, k: int) -> float:
        hits = []
        for scores in queries:  # [(score, right)] of the candidates in a query's list
            best = max((s for s, right in scores if right), default=None)
            if best is None:
                hits.append(0.0)
                continue
            greater = sum(s > best + 1e-3 for s, _ in scores)
            wrong = sum(abs(s - best) <= 1e-3 and not right for s, right in scores)
            good = sum(abs(s - best) <= 1e-3 and right for s, right in scores)
            ranks = min(max(k - greater, 0), wrong + good)
            hits.append(1 - math.comb(wrong, ranks) / math.comb(wrong + good, ranks))
        return 100 * sum(hits) / len(hits)

    found_captions = [[(score(i, m), image_of[m] == i) for m in found] for i, found in enumerate(by_image)]
    found_images = [[(score(i, m), image_of[m] == i) for i in found] for m, found in enumerate(by_caption)]
    return tuple(recall(queries, k) for queries in (found_captions, found_images) for k in (1, 2))


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 7), st.integers(2, 8), st.integers(0, 1000))
def test_equals_the_plain_formula(data, images, keep, seed):
    texts = data.draw(st.lists(st.integers(0, 9), min_size=images, max_size=20))
    pictures, captions, image_of, given_image = gallery(images, texts, seed)
    asked = []

    def log_likelihoods(pairs: torch.Tensor) -> torch.Tensor:
        asked.extend((image, texts[caption]) for image, caption in pairs.tolist())
        return torch.stack([given_image[image, texts[caption]] for image, caption in pairs.tolist()])

    # Equal captions are candidates of equal cosine, of which only some may be in a list: then any choice is right.
    found = retrieve(pictures.float(), captions.float(), image_of, keep=keep)
    if len(set(texts)) == len(texts):
        names = [str(text) for text in texts]
        by_image, by_caption = rerank(*found, image_of, names, TEMPERATURE, log_likelihoods)
        recalls = [result.recall(k) for result in (by_image, by_caption) for k in (1, 2)]
        assert recalls == pytest.approx(plain(pictures, captions, image_of, texts, given_image, keep))
        assert (by_image.similarities.diff(dim=1) <= 0).all() and (by_caption.similarities.diff(dim=1) <= 0).all()
    else:
        rerank(*found, image_of, [str(text) for text in texts], TEMPERATURE, log_likelihoods)
    assert len(set(asked)) == len(asked), "a text is compared with an image once"
    assert [image for image, _ in asked] == sorted(image for image, _ in asked)


def test_likelihoods_find_what_cosines_miss(tmp_path):
    """Cosines are random. The likelihood knows which caption belongs to which image, and finds it in a list of all."""
    pictures, captions, image_of, _ = gallery(8, list(range(16)), seed=0)
    evaluator = RetrievalEvaluator("pairs", str(tmp_path))
    evaluator.reset()
    inputs = [
        {
            "image_id": i,
            "file_name": f"{i}.png",
            "captions": [f"caption {m}" for m in range(16) if image_of[m] == i],
            "caption_token_ids": [torch.tensor([0, m, 1]) for m in range(16) if image_of[m] == i],
        }
        for i in range(8)
    ]
    outputs = [
        {
            "image_feature": pictures[i].float(),
            "text_features": captions[image_of == i].float(),
            "image_tokens": torch.full((3, 2), float(i)),
        }
        for i in range(8)
    ]
    evaluator.process(inputs, outputs)
    alone = evaluator.evaluate()
    assert alone["text_retrieval"]["R@1"] < 60 and alone["image_retrieval"]["R@1"] < 60

    def log_likelihoods(images, token_ids, pairs):
        owners = [image_of[token_ids[caption][1]].item() for caption in pairs[:, 1].tolist()]
        shown = [images[image][0, 0].item() for image in pairs[:, 0].tolist()]
        return torch.tensor([0.0 if owner == image else -90.0 for owner, image in zip(owners, shown)])

    evaluator.reset()
    evaluator.reranking = Reranking(16, TEMPERATURE, log_likelihoods)
    evaluator.process(inputs, outputs)
    again = evaluator.evaluate()
    assert again["text_retrieval"]["R@1"] == again["image_retrieval"]["R@1"] == 100
    written = json.loads((tmp_path / "predictions.json").read_text())
    assert all(len(row["best_captions"]) == len(row["scores"]) == 10 for row in written["images"]), "of 16 compared"
    assert all(row["best_images"][0] == row["image_id"] and len(row["scores"]) == 8 for row in written["captions"])
