"""Captioning with complete models: losses equal equation (7), no position sees later words, caches change nothing."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from uniperceiver_v2.config import task_defaults
from uniperceiver_v2.modeling.decoder import IMAGE_TEXT_TO_TEXT, Segment, attribute_classes
from uniperceiver_v2.tasks import CAPTIONING, CaptioningTask
from uniperceiver_v2.tasks.captioning import CAPTION, decode_captions, next_words
from uniperceiver_v2.tasks.generation import search
from uniperceiver_v2.tasks.retrieval import RetrievalTask

TEXTS = ("a red seven to the left of a blue three", "three twos", "")


def with_settings(model, **settings) -> None:
    node = {**task_defaults("captioning", "captioning"), **settings}
    model.tasks["captioning"] = CaptioningTask(CAPTIONING.settings.of(node))


@pytest.fixture(params=[0, 4], ids=["dense", "experts"])
def model(tiny_config, request):
    """A model with random weights in every part, as the initial decoder only pools."""
    tiny_config.MODEL.UNIPERCEIVER_V2.DECODER.update({"LAYERS": 2, "EXPERTS": request.param, "ACTIVE_EXPERTS": 2})
    torch.manual_seed(3)  # weights with which the captions of the images differ
    model = build_model(tiny_config).eval()
    with torch.no_grad():
        for part in (model.decoder, model.text_encoder):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.ndim > 1 else 0.05))
        for part in (model.image_encoder.fusion, model.image_encoder.global_tokens):  # to tell the images apart
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.35)
    return model


@pytest.fixture
def captioned(tiny_model, scenes) -> list[dict]:
    """Images of three sizes, with a long, a short and an empty caption."""
    ids, valid = tiny_model.text_encoder.tokenize(TEXTS)
    return [
        {"task": "captioning", "image": x["image"], "caption_token_ids": [i[v]]}
        for x, i, v in zip(scenes, ids, valid, strict=True)
    ]


def encode(model, batch: list[dict]):
    return model.image_encoder(model.preprocess(batch))[0]


def train_losses(model, batch: list[dict]) -> dict[str, torch.Tensor]:
    with EventStorage():
        return model.train()(batch)


@torch.no_grad()
def word_log_probs(model, batch: list[dict], smoothing: float = 0.0) -> list[torch.Tensor]:
    """Equation (7) for each caption's words, [T-1] each in float64. Every word is computed from the words before it
    only."""
    encoding, words = encode(model, batch), model.vocabulary(IMAGE_TEXT_TO_TEXT).double()
    words = words / words.norm(dim=1, keepdim=True)
    found = [[] for _ in batch]
    for length in range(1, max(len(x["caption_token_ids"][0]) for x in batch)):
        beginnings, valid = model.text_encoder.pad([x["caption_token_ids"][0][:length] for x in batch])
        features = decode_captions(model, encoding, [*range(len(batch))], beginnings, valid).double()
        for i, item in enumerate(batch):
            if length < len(item["caption_token_ids"][0]):
                feature = features[i, length - 1]
                z = words @ (feature / feature.norm()) / model.likelihood.temperature.double()
                log_probs = z - z.exp().sum().log()
                found[i].append(
                    (1 - smoothing) * log_probs[item["caption_token_ids"][0][length]] + smoothing * log_probs.mean()
                )
    return [torch.stack(log_probs) for log_probs in found]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_equation_7_of_each_word_after_its_beginning(model, captioned, smoothing):
    with_settings(model, LABEL_SMOOTHING=smoothing)
    model.train()  # image encoders may differ between the modes
    expected = -torch.cat(word_log_probs(model, captioned, smoothing)).mean()
    losses = train_losses(model, captioned)
    assert losses.keys() == {"loss_caption"}
    assert losses["loss_caption"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_with_a_sampled_vocabulary(model, captioned, monkeypatch):
    encoded, encode_vocabulary = [], model.encode_vocabulary
    monkeypatch.setattr(
        model,
        "encode_vocabulary",
        lambda ids, task, shared=False: (encoded.append(ids), encode_vocabulary(ids, task, shared))[1],
    )
    whole = train_losses(model, captioned)["loss_caption"]
    with_settings(model, VOCABULARY_SAMPLE=200)
    samples = torch.stack([train_losses(model, captioned)["loss_caption"].detach() for _ in range(8)])
    said = torch.cat([x["caption_token_ids"][0][1:] for x in captioned]).unique()
    assert [len(ids) for ids in encoded] == [model.text_encoder.vocab_size] + 8 * [200 + len(said)]
    assert samples.std() > 0
    assert samples.mean().item() == pytest.approx(whole.item(), rel=0.05)


def test_loss_teaches_every_part(model, captioned):
    train_losses(model, captioned)["loss_caption"].backward()
    parts = ("image_encoder.backbone", "image_encoder.fusion", "image_encoder.global_tokens", "text_encoder", "decoder")
    for part in (*parts, "likelihood"):
        gradients = [p.grad for p in model.get_submodule(part).parameters()]
        assert any(g is not None and g.any() for g in gradients), part
        assert all(g is None or g.isfinite().all() for g in gradients), part


@torch.no_grad()
def test_accuracy_is_logged(model, captioned):
    model.train()
    encoding, hits = encode(model, captioned), []
    for i, item in enumerate(captioned):
        ids, valid = model.text_encoder.pad([x["caption_token_ids"][0] for x in captioned])
        logits = model.likelihood(
            decode_captions(model, encoding, [*range(len(captioned))], ids, valid)[i],
            model.vocabulary(IMAGE_TEXT_TO_TEXT),
        )
        hits += (
            logits.argmax(-1)[: len(item["caption_token_ids"][0]) - 1] == item["caption_token_ids"][0][1:]
        ).tolist()
    with EventStorage() as storage:
        model(captioned)
        assert storage.latest()["word_accuracy"][0] == pytest.approx(sum(hits) / len(hits))


@torch.no_grad()
def test_no_position_sees_a_later_word(model, captioned):
    """In the text encoder, the decoder and the routed networks. <SPE> and the image see no word at all."""
    encoding = encode(model, captioned[:1])
    ids = captioned[0]["caption_token_ids"][0][None]
    valid = torch.ones_like(ids, dtype=torch.bool)

    def decode(token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = model.text_encoder(token_ids, valid, causal=True)
        segments = model.image_segments(encoding, IMAGE_TEXT_TO_TEXT)
        found = model.decoder([*segments, Segment(tokens, valid, CAPTION)])
        return torch.cat([found.spe[:, None], *found.segments[:-1]], dim=1), found.segments[-1][0]

    image, words = decode(ids)
    for position in range(ids.shape[1]):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 100) % model.text_encoder.vocab_size
        other_image, other_words = decode(changed)
        assert torch.equal(other_image, image)
        assert torch.equal(other_words[:position], words[:position])
        assert ((other_words - words)[position:].abs().amax(-1) > 1e-3).all()


@torch.no_grad()
def test_words_depend_on_the_image(model, captioned):
    ids, valid = model.text_encoder.pad([captioned[0]["caption_token_ids"][0]] * 3)
    found = decode_captions(model, encode(model, captioned), [0, 1, 2], ids, valid)
    assert (found[0] - found[1]).abs().amax(-1).min() > 1e-3


def next_words_anew(model, encoding):
    """``next_words`` without a cache: each step computes the image and all words again."""
    segments = model.image_segments(encoding, IMAGE_TEXT_TO_TEXT)
    images, prefixes = torch.arange(len(segments[0].tokens)), torch.empty(len(segments[0].tokens), 0, dtype=torch.long)

    def step(tokens, rows):
        nonlocal images, prefixes
        images, prefixes = images[rows], torch.cat([prefixes[rows], tokens[:, None]], dim=1)
        caption = model.text_encoder(prefixes, torch.ones_like(prefixes, dtype=torch.bool), causal=True)
        image = [
            Segment(s.tokens[images], None if s.valid is None else s.valid[images], s.attributes) for s in segments
        ]
        features = model.decoder([*image, Segment(caption, None, CAPTION)]).segments[-1][:, -1]
        log_probs = model.likelihood(features, model.vocabulary(IMAGE_TEXT_TO_TEXT)).log_softmax(-1)
        log_probs[:, [0, 1, 3, 4]] = -torch.inf  # all special tokens but </s>
        return log_probs

    return step


@pytest.mark.parametrize("beam_size", [1, 3])
@torch.no_grad()
def test_caches_change_neither_words_nor_likelihoods(model, captioned, beam_size):
    with_settings(model, BEAM_SIZE=beam_size, LENGTH_PENALTY=0.7, MAX_LENGTH=12)
    found = model(captioned)
    for item, prediction in zip(captioned, found, strict=True):
        anew = search(
            next_words_anew(model, encode(model, [item])),
            torch.full((1,), model.text_encoder.bos_id),
            model.text_encoder.eos_id,
            beam_size=beam_size,
            length_penalty=0.7,
            max_length=12,
        )
        assert [prediction["caption"]] == model.text_encoder.decode(anew.token_ids)
        assert prediction["log_likelihood"] == pytest.approx(anew.log_likelihoods.item(), abs=1e-5, rel=1e-5)
    assert len({x["caption"] for x in found}) == 3


@torch.no_grad()
def test_of_the_beams_captions_retrieval_chooses(model, captioned):
    """The caption with the greatest log P(t | x) + cos(x, t) / τ in float64, by features computed one by one."""
    plain = {"BEAM_SIZE": 8, "LENGTH_PENALTY": 0.0, "MAX_LENGTH": 6}
    with_settings(model, **plain)
    likeliest = [x["caption"] for x in model(captioned)]
    with_settings(model, **plain, RERANK=True)
    found = model(captioned)
    for item, prediction in zip(captioned, found, strict=True):
        encoding = encode(model, [item])
        start = torch.full((1,), model.text_encoder.bos_id)
        beams = {"beam_size": 8, "length_penalty": 0.0, "max_length": 6, "count": 8}
        best = search(next_words(model, encoding), start, model.text_encoder.eos_id, **beams)
        captions = model.text_encoder.decode(best.token_ids)
        image = RetrievalTask.image_features(model, encoding)[0].double()
        scores = []
        for caption, log_likelihood in zip(captions, best.log_likelihoods.tolist(), strict=True):
            (ids,), _ = model.text_encoder.tokenize([caption])
            cosine = image @ RetrievalTask.text_features(model, [ids])[0].double()
            scores.append(log_likelihood + cosine.item() / model.likelihood.temperature.item())
        place = max(range(8), key=scores.__getitem__)
        assert prediction["caption"] == captions[place]
        assert prediction["log_likelihood"] == pytest.approx(best.log_likelihoods[place].item(), abs=1e-4)
    assert [x["caption"] for x in found] != likeliest  # else nothing was chosen


@pytest.mark.parametrize("model", [4], indirect=True)
@torch.no_grad()
def test_merged_experts_say_the_same(model, captioned):
    with_settings(model, MAX_LENGTH=12)
    expected = model(captioned)
    model.decoder.merge_experts(attribute_classes([IMAGE_TEXT_TO_TEXT]))
    for a, b in zip(model(captioned), expected, strict=True):
        assert a["caption"] == b["caption"]
        assert a["log_likelihood"] == pytest.approx(b["log_likelihood"], rel=1e-5)


@torch.no_grad()
def test_predictions(model, captioned):
    with_settings(model, MAX_LENGTH=9)
    features = encode(model, captioned).mean_global_token()
    special = set(model.text_encoder.tokenizer.all_special_tokens)
    for prediction, feature in zip(model(captioned), features, strict=True):
        assert prediction.keys() == {"caption", "log_likelihood", "image_feature"}
        assert isinstance(prediction["caption"], str)
        assert not any(token in prediction["caption"] for token in special)
        assert prediction["log_likelihood"] < 0
        torch.testing.assert_close(prediction["image_feature"], feature)


@torch.no_grad()
def test_special_tokens_are_no_words(model, captioned):
    step = next_words(model, encode(model, captioned))
    log_probs = step(torch.full((3,), model.text_encoder.bos_id), torch.arange(3))
    assert log_probs.shape == (3, model.text_encoder.vocab_size)
    names = model.text_encoder.tokenizer.convert_ids_to_tokens((log_probs[0] == -torch.inf).nonzero()[:, 0].tolist())
    assert set(names) == {"<s>", "<pad>", "<unk>", "<mask>"}


@torch.no_grad()
def test_captions_are_no_longer_than_asked_for_or_than_the_encoder_reads(model, captioned, monkeypatch):
    stop = model.text_encoder.eos_id
    words = model.vocabulary(IMAGE_TEXT_TO_TEXT).clone()
    words[stop] = -words.mean(0)  # the unlikeliest of all
    monkeypatch.setattr(model, "vocabulary", lambda task: words)
    for asked, longest in ((5, 5), (1000, model.text_encoder.max_length)):
        with_settings(model, MAX_LENGTH=asked, BEAM_SIZE=1)
        steps, extend = [], model.text_encoder.extend
        with monkeypatch.context() as patch:
            patch.setattr(model.text_encoder, "extend", lambda *x: (steps.append(x), extend(*x))[1])  # noqa: B023
            model(captioned[:1])
        assert len(steps) == longest


def test_a_batch_is_learned_and_said(tiny_model, captioned):
    """Trained with samples of the vocabulary. Generation chooses from the whole vocabulary."""
    with_settings(tiny_model, VOCABULARY_SAMPLE=30)
    optimizer = torch.optim.AdamW(tiny_model.parameters(), lr=3e-3)
    for _ in range(40):
        loss = train_losses(tiny_model, captioned)["loss_caption"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = tiny_model.eval()(captioned)
    assert [x["caption"] for x in found] == list(TEXTS)
    with torch.no_grad():
        expected = [log_probs.sum().item() for log_probs in word_log_probs(tiny_model, captioned)]
    assert [x["log_likelihood"] for x in found] == pytest.approx(expected, abs=1e-4)


def test_several_captions_of_an_image_count_as_the_image_again_with_each(tiny_model, captioned):
    first, second, third = captioned
    texts = [first["caption_token_ids"][0], second["caption_token_ids"][0]]
    together = train_losses(tiny_model, [{**first, "caption_token_ids": texts}, third])["loss_caption"]
    apart = [{**first, "caption_token_ids": [text]} for text in texts]
    torch.testing.assert_close(together, train_losses(tiny_model, [*apart, third])["loss_caption"])
