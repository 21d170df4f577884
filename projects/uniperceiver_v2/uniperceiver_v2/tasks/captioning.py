"""Image captioning: each position of a caption is compared with the vocabulary, to say the next word."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from ..modeling.decoder import IMAGE_TEXT_TO_TEXT, Attributes, Segment
from ..ranks import mean_divisor, sum_over_ranks
from .generation import Step, search
from .task import Task, log_accuracy, register_task
from .vocabulary import vocabulary_logits

if TYPE_CHECKING:
    from ..modeling.image_encoder import ImageEncoding
    from ..modeling.model import UniPerceiver

CAPTION = Attributes("text", "input", IMAGE_TEXT_TO_TEXT, causal=True)


@register_task("captioning")
class CaptioningTask(Task):
    """Captions word by word, from left to right; nothing sees a later word, the image is seen whole.

    Inputs: "image", in training "caption_token_ids", captions [T] of it from <s> to </s>. Predictions: "caption", its
    "log_likelihood" among all texts (the sum over its words and the stop), and "image_feature" [d], the mean global
    token, by which images are alike.
    """

    def losses(self, model: UniPerceiver, inputs: list[dict]) -> dict[str, Tensor]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        images = [index for index, x in enumerate(inputs) for _ in x["caption_token_ids"]]
        token_ids, valid = model.text_encoder.pad([caption for x in inputs for caption in x["caption_token_ids"]])
        said = valid[:, 1:]  # position t of the caption says token t + 1
        features = decode_captions(model, encoding, images, token_ids[:, :-1], said)[said]
        logits, labels = vocabulary_logits(
            model, features, token_ids[:, 1:][said], IMAGE_TEXT_TO_TEXT, self.settings["VOCABULARY_SAMPLE"]
        )
        count, hits = sum_over_ranks(said.sum(), (logits.argmax(-1) == labels).sum())
        log_accuracy("word_accuracy", hits, count)
        smoothing = self.settings["LABEL_SMOOTHING"]
        total = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="sum")
        return {"loss_caption": total / mean_divisor(count)}

    def loss_count(self, inputs: list[dict]) -> int:
        return sum(len(caption) - 1 for x in inputs for caption in x["caption_token_ids"])

    def predict(self, model: UniPerceiver, inputs: list[dict]) -> list[dict]:
        encoding, _ = model.image_encoder(model.preprocess(inputs))
        text_encoder = model.text_encoder
        generated = search(
            next_words(model, encoding),
            torch.full((len(inputs),), text_encoder.bos_id, device=model.device),
            text_encoder.eos_id,
            beam_size=self.settings["BEAM_SIZE"],
            length_penalty=self.settings["LENGTH_PENALTY"],
            max_length=min(self.settings["MAX_LENGTH"], text_encoder.max_length),
        )
        captions = text_encoder.decode(generated.token_ids)
        found = zip(captions, generated.log_likelihoods.tolist(), encoding.mean_global_token())
        return [
            {"caption": caption, "log_likelihood": log_likelihood, "image_feature": feature}
            for caption, log_likelihood, feature in found
        ]


def decode_captions(
    model: UniPerceiver, encoding: ImageEncoding, images: list[int], token_ids: Tensor, valid: Tensor
) -> Tensor:
    """Representations [C,T,d] of the tokens of C captions, ids and validity [C,T], each behind the image of the encoded
    batch that `images` names."""
    tokens = model.text_encoder(token_ids, valid, causal=True)
    rows = torch.tensor(images, device=tokens.device)
    segments = [segment.select(rows) for segment in model.image_segments(encoding, IMAGE_TEXT_TO_TEXT)]
    return model.decoder.read_last([*segments, Segment(tokens, valid, CAPTION)])


def next_words(model: UniPerceiver, encoding: ImageEncoding) -> Step:
    """What may follow in captions of the B images: log P of all words [N,V], among which </s> is the one special token.
    Image and words are read once, their keys and values kept."""
    text_encoder, decoder = model.text_encoder, model.decoder
    words = model.vocabulary(IMAGE_TEXT_TO_TEXT)
    likelihoods = model.likelihood.against(words)
    special = set(text_encoder.tokenizer.all_special_ids) - {text_encoder.eos_id}
    forbidden = torch.tensor(sorted(special), device=words.device)
    image = model.image_segments(encoding, IMAGE_TEXT_TO_TEXT)
    text_cache, cache = text_encoder.begin(), decoder.begin(image)
    standing = torch.arange(len(image[0].tokens), device=words.device)

    def step(tokens: Tensor, rows: Tensor) -> Tensor:
        nonlocal text_cache, cache, standing
        if not torch.equal(rows, standing):  # greedy search hardly ever moves a row
            text_cache, cache, standing = text_cache.select(rows), cache.select(rows), torch.arange(len(rows)).to(rows)
        tokens = text_encoder.extend(text_cache, tokens[:, None])
        features = decoder.extend(cache, tokens, CAPTION)[:, 0]
        return likelihoods(features).log_softmax(-1).index_fill_(1, forbidden, -torch.inf)

    return step
