"""log P(caption | image) of given captions, as captioning learns it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..modeling.decoder import IMAGE_TEXT_TO_TEXT, Attributes, Segment
from ..modeling.image_encoder import ImageEncoding
from ..modeling.model import UniPerceiver
from ..transfer import send
from .captioning import CAPTION

PAIRS = 512  # decoded at once
LOGITS = 2**26  # computed at once: 256 MiB


def tokens_of_images(encoding: ImageEncoding) -> list[Tensor]:
    """The tokens [T,d] of each image that the decoder reads: its global tokens without padding, then its proposals."""
    return [
        torch.cat((tokens[valid], proposals))
        for tokens, valid, proposals in zip(
            encoding.global_tokens, encoding.global_valid, encoding.proposal_tokens, strict=True
        )
    ]


@torch.no_grad()
def caption_log_likelihoods(
    model: UniPerceiver, images: Sequence[Tensor], captions: Sequence[Tensor], pairs: Tensor
) -> Tensor:
    """The sum of log P over the words and the stop token of each pair's caption, given its image.

    An image is decoded once for all of its captions in a batch, as its keys and values do not depend on them.

    Args:
        images: tokens [T,d] of each image, see :func:`tokens_of_images`, on any device.
        captions: ids [T] of each, with start and stop token.
        pairs: [P,2] an image and a caption each, best sorted by image.

    Returns:
        [P] float32, on the CPU.
    """
    words = model.vocabulary(IMAGE_TEXT_TO_TEXT)
    longest = max(len(caption) for caption in captions)
    size = max(min(PAIRS, LOGITS // (longest * len(words))), 1)
    # In one piece from the start: a small result of each batch would keep the memory below it from the next one.
    found = torch.empty(len(pairs))
    for part, its in zip(pairs.split(size), found.split(size), strict=True):
        its.copy_(_of_batch(model, images, captions, part, words))
    return found


def _of_batch(
    model: UniPerceiver, images: Sequence[Tensor], captions: Sequence[Tensor], pairs: Tensor, words: Tensor
) -> Tensor:
    which, rows = pairs[:, 0].unique_consecutive(return_inverse=True)
    tokens, valid = _padded([images[index] for index in which.tolist()], model)
    prefix = Segment(tokens, valid, Attributes("image", "input", IMAGE_TEXT_TO_TEXT))
    token_ids, said = model.text_encoder.pad([captions[index] for index in pairs[:, 1].tolist()])
    token_ids, said, next_ids = token_ids[:, :-1], said[:, 1:], token_ids[:, 1:]
    texts = model.text_encoder(token_ids, said, causal=True)
    cache = model.decoder.begin([prefix]).select(send(rows, tokens.device))
    features = model.decoder.extend(cache, texts, CAPTION)
    log_probs = model.likelihood.against(words)(features).log_softmax(-1)
    return log_probs.gather(2, next_ids[:, :, None])[..., 0].masked_fill(~said, 0).sum(1)


def _padded(images: Sequence[Tensor], model: UniPerceiver) -> tuple[Tensor, Tensor | None]:
    """Tokens [B,T,d] on the model's device, and where they are no padding; None if there is none."""
    lengths = torch.tensor([len(image) for image in images])
    tokens = nn.utils.rnn.pad_sequence(list(images), batch_first=True).to(model.device, torch.float32)
    if (lengths == tokens.shape[1]).all():
        return tokens, None
    return tokens, send(torch.arange(tokens.shape[1]) < lengths[:, None], model.device)
