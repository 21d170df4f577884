"""Generation of captions, greedy and with three beams, beside Hugging Face's ``generate``.

Our side is the search of captioning: ``next_words`` with the unified decoder, after the tokens of an image. The peer is
a GPT-2 with random weights and the same width, heads, feed-forward width and vocabulary. It gets the tokens as
``inputs_embeds`` and caches keys and values. Neither side may stop early, so that both generate the same number of
words.

In the rows "decoder" a table embeds words, as in GPT-2. Both sides have the same layers. The rows "decoder and text
encoder" measure all of our model, in which a RoBERTa encodes each word before the decoder. GPT-2 then has as many
layers as both together. At base size a row takes long. So only the whole model is measured there, after few tokens and
with few words.

The candidates of our side are the rows of a table, as GPT-2's are. In the model they are encoded once for all captions.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import harness
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel, RobertaConfig, RobertaModel

from uniperceiver_v2.modeling.decoder import IMAGE_TEXT_TO_TEXT, Attributes, Segment, UnifiedDecoder
from uniperceiver_v2.modeling.likelihood import Likelihood, directions
from uniperceiver_v2.modeling.text_encoder import TextEncoder
from uniperceiver_v2.tasks.captioning import next_words
from uniperceiver_v2.tasks.generation import search

START, PAD, STOP = 0, 1, 2
IMAGE = Attributes("image", "input", IMAGE_TEXT_TO_TEXT)


@dataclass(frozen=True)
class Size:
    """The sizes of a model and of its work: tokens of an image (``prefix``) and words to generate (``words``)."""

    name: str
    dim: int
    layers: int
    text_layers: int
    heads: int
    ffn: int
    vocabulary: int
    prefix: int
    words: int


SIZES = (
    Size("tiny", 128, 2, 2, 4, 512, 512, 40, 20),
    Size("base", 768, 6, 12, 12, 3072, 8_000, 64, 12),
)


class Tokenizer:
    """The part of a tokenizer that the text encoder and the search use."""

    all_special_ids = (START, PAD, STOP)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [START, STOP]}


class WordTable(nn.Module):
    """Embeddings of words and positions, in place of the text encoder."""

    tokenizer, eos_id = Tokenizer(), STOP

    def __init__(self, size: Size):
        super().__init__()
        self.words, self.positions = nn.Embedding(size.vocabulary, size.dim), nn.Embedding(64, size.dim)

    def begin(self) -> SimpleNamespace:
        cache = SimpleNamespace(length=0)
        cache.select = lambda rows: cache
        return cache

    def extend(self, cache: SimpleNamespace, token_ids: Tensor) -> Tensor:
        cache.length += 1
        return self.words(token_ids) + self.positions.weight[cache.length - 1]


def text_encoder_of(size: Size) -> TextEncoder:
    config = RobertaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.dim,
        num_hidden_layers=size.text_layers,
        num_attention_heads=size.heads,
        intermediate_size=4 * size.dim,
        max_position_embeddings=66,
        pad_token_id=PAD,
    )
    return TextEncoder(model=RobertaModel(config, add_pooling_layer=False), tokenizer=Tokenizer(), dim=size.dim)


def ours_of(size: Size, text_encoder: nn.Module, image: Tensor, beams: int) -> Callable[[], None]:
    """Generates captions for images with the tokens ``image`` [B,L,d]."""
    shape = {"depth": size.layers, "dim": size.dim, "heads": size.heads}
    decoder = UnifiedDecoder(**shape, ffn_dim=size.ffn // 2, experts=8, active_experts=2).eval()
    words = directions(torch.randn(size.vocabulary, size.dim))
    model = SimpleNamespace(
        decoder=decoder,
        text_encoder=text_encoder.eval(),
        likelihood=Likelihood(),
        vocabulary=lambda task: words,
        image_segments=lambda encoding, task: [Segment(encoding, None, IMAGE)],
    )
    start = torch.full((len(image),), START)
    # The stop token is PAD, which is never generated.
    settings = {"beam_size": beams, "length_penalty": 1.0, "max_length": size.words}

    @torch.no_grad()
    def run() -> None:
        found = search(next_words(model, image), start, PAD, **settings).token_ids
        assert found.shape == (len(image), size.words)

    return run


def peer_of(size: Size, layers: int, image: Tensor, beams: int) -> Callable[[], None]:
    config = GPT2Config(
        vocab_size=size.vocabulary,
        n_embd=size.dim,
        n_layer=layers,
        n_head=size.heads,
        n_inner=size.ffn,
        n_positions=512,
        activation_function="gelu",
        bos_token_id=START,
        eos_token_id=STOP,
        pad_token_id=PAD,
    )
    model = GPT2LMHeadModel(config).eval()
    generation = GenerationConfig(
        max_new_tokens=size.words,
        min_new_tokens=size.words,
        num_beams=beams,
        do_sample=False,
        use_cache=True,
        bos_token_id=START,
        eos_token_id=STOP,
        pad_token_id=PAD,
    )
    seen = torch.ones(image.shape[:2], dtype=torch.long)

    @torch.no_grad()
    def run() -> None:
        found = model.generate(inputs_embeds=image, attention_mask=seen, generation_config=generation)
        assert found.shape == (len(image), size.words)

    return run


def rows(args: argparse.Namespace) -> Iterator[harness.Row]:
    harness.settings.budget /= 2
    for size, whole in itertools.product(SIZES, (False, True)):
        if size.name == "base" and (args.quick or not whole):
            continue
        for batch, beams in itertools.product((1, 16), (1, 3)):
            torch.manual_seed(0)
            image = torch.randn(batch, size.prefix, size.dim)
            text_encoder = text_encoder_of(size) if whole else WordTable(size)
            layers = size.layers + (size.text_layers if whole else 0)
            ours, peer = ours_of(size, text_encoder, image, beams), peer_of(size, layers, image, beams)
            what = "decoder and text encoder" if whole else "decoder"
            search_name = "greedy" if beams == 1 else f"{beams} beams"
            yield harness.compare(
                f"captions, {size.name}, {what}, {search_name}, batch {batch}",
                ours,
                peer,
                peer_name=f"generate, GPT-2 of {layers} layers",
                at_least=1.3,
            )


if __name__ == "__main__":
    harness.main(__doc__, rows)
