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
BLOCK = 4 * PAIRS  # sorted by their captions' lengths before they are decoded, so that little of a batch is padding
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

    The text encoder reads each caption once, whatever the number of its pairs. An image is decoded once for all of its
    captions in a batch, as its keys and values do not depend on them.

    Args:
        images: tokens [T,d] of each image, see :func:`tokens_of_images`, on any device.
        captions: ids [T] of each, with start and stop token.
        pairs: [P,2] an image and a caption each, best sorted by image.

    Returns:
        [P] float32, on the CPU.
    """
    words = model.vocabulary(IMAGE_TEXT_TO_TEXT)
    lengths = torch.tensor([len(caption) for caption in captions])
    size = max(min(PAIRS, LOGITS // (int(lengths.max()) * len(words))), 1)
    texts = _encoded(model, captions, pairs[:, 1].unique(), size)
    # In one piece from the start: a small result of each batch would keep the memory below it from the next one.
    found = torch.empty(len(pairs))
    for block in torch.arange(len(pairs)).split(BLOCK):
        for part in block[lengths[pairs[block, 1]].argsort()].split(size):
            found[part] = _of_batch(model, images, captions, texts, pairs[part], words).cpu()
    return found


def _encoded(model: UniPerceiver, captions: Sequence[Tensor], which: Tensor, size: int) -> dict[int, Tensor]:
    """Tokens [T-1,d] of the captions ``which``, without the stop token, which predicts nothing."""
    by_length = sorted(which.tolist(), key=lambda index: len(captions[index]))
    texts: dict[int, Tensor] = {}
    for first in range(0, len(by_length), size):
        part = by_length[first : first + size]
        tokens = model.text_encoder(*model.text_encoder.pad([captions[index][:-1] for index in part]), causal=True)
        texts.update((index, row[: len(captions[index]) - 1]) for index, row in zip(part, tokens, strict=True))
    return texts


def _of_batch(
    model: UniPerceiver,
    images: Sequence[Tensor],
    captions: Sequence[Tensor],
    texts: dict[int, Tensor],
    pairs: Tensor,
    words: Tensor,
) -> Tensor:
    which, rows = pairs[:, 0].unique(return_inverse=True)
    tokens, valid = _padded([images[index] for index in which.tolist()], model)
    prefix = Segment(tokens, valid, Attributes("image", "input", IMAGE_TEXT_TO_TEXT))
    cache = model.decoder.begin([prefix]).select(send(rows, tokens.device))
    own = pairs[:, 1].tolist()
    # Zeros behind a shorter text are seen by none of its words.
    said_tokens = nn.utils.rnn.pad_sequence([texts[index] for index in own], batch_first=True)
    features = model.decoder.extend(cache, said_tokens, CAPTION)
    log_probs = model.likelihood.against(words)(features).log_softmax(-1)
    next_ids, said = model.text_encoder.pad([captions[index][1:] for index in own])
    return log_probs.gather(2, next_ids[:, :, None])[..., 0].masked_fill(~said, 0).sum(1)


def _padded(images: Sequence[Tensor], model: UniPerceiver) -> tuple[Tensor, Tensor | None]:
    """Tokens [B,T,d] on the model's device, and where they are no padding; None if there is none."""
    lengths = torch.tensor([len(image) for image in images])
    tokens = nn.utils.rnn.pad_sequence(list(images), batch_first=True).to(model.device, torch.float32)
    if (lengths == tokens.shape[1]).all():
        return tokens, None
    return tokens, send(torch.arange(tokens.shape[1]) < lengths[:, None], model.device)
