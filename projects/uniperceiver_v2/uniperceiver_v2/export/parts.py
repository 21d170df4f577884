"""The parts of a model that become ONNX files: modules of tensors alone, which call the model's own submodules.

Shapes: B images of one size, H × W pixels, O proposals, h × w pixels of a mask, M global tokens, P = 1 + M + O tokens
before a caption, C texts of T tokens, N captions with L words so far, K key-value heads of width D, V words, d width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..errors import UserError
from ..modeling.decoder import IMAGE_TEXT_TO_TEXT, IMAGE_TO_TEXT, ConditionalFeedForward, attribute_classes
from ..modeling.image_encoder import ImageEncoding
from ..modeling.image_encoder.boxes import cxcywh_to_xyxy
from ..modeling.likelihood import directions
from ..modeling.model import UniPerceiver
from ..tasks.captioning import CAPTION, never_next

Shape = tuple[str | int, ...]  # names of the axes that vary, and the lengths of the others


@dataclass(frozen=True)
class Part:
    """A module with what its ONNX file says about it.

    Attributes:
        name: of the file.
        module: takes and returns tensors.
        inputs, outputs: {name: shape}, in the module's order.
        example: inputs to trace it with.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Shape]
    outputs: dict[str, Shape]
    example: tuple[Tensor, ...]


def deployable(model: UniPerceiver) -> UniPerceiver:
    """A copy of a model on the CPU in float32, whose experts are merged for images and captions: the routes depend on
    attributes alone (:meth:`~uniperceiver_v2.modeling.decoder.UnifiedDecoder.merge_experts`).
    """
    copied = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    if any(isinstance(module, ConditionalFeedForward) for module in copied.decoder.modules()):
        copied.decoder.merge_experts(attribute_classes([IMAGE_TO_TEXT, IMAGE_TEXT_TO_TEXT]))
    for module in list(copied.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, PlainGroupNorm(child))
    return copied


class PlainGroupNorm(nn.Module):
    """Group normalisation with the precision of PyTorch's.

    As ONNX's InstanceNormalization, onnxruntime would compute the variance in one pass, with errors of 3e-5, and a mean
    over all pixels at once loses a digit, too. Over the layers this moves boxes by several thousandths of a pixel.
    """

    def __init__(self, norm: nn.GroupNorm):
        super().__init__()
        self.groups, self.eps, self.weight, self.bias = norm.num_groups, norm.eps, norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(1, (self.groups, -1))  # [B,groups,channels of a group,H,W]
        centred = grouped - self._mean(grouped)
        normalised = centred * (self._mean(centred.square()) + self.eps).rsqrt()
        return normalised.flatten(1, 2) * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)

    @staticmethod
    def _mean(grouped: Tensor) -> Tensor:
        """[B,groups,1,1,1], as means of means of as many numbers each: short sums round less."""
        return grouped.mean(-1, keepdim=True).mean(-2, keepdim=True).mean(-3, keepdim=True)


@torch.no_grad()
def parts_of(model: UniPerceiver) -> list[Part]:
    """All parts of a :func:`deployable` model, with examples of two images.

    Raises:
        UserError: the model's text encoder cannot write captions word by word.
    """
    words = _LengthsOf(model)
    images = torch.randint(0, 256, (2, 3, 120, 200), dtype=torch.uint8)
    image = ImagePart(model)
    *_, global_tokens, global_valid, proposal_tokens = image(images)
    begin = CaptionBegin(model)
    image_past, image_valid = begin(global_tokens, global_valid, proposal_tokens)
    token_ids = torch.full((3, 5), model.text_encoder.bos_id)
    rows = torch.tensor([0, 1, 1])
    step = (
        token_ids[:, 0],
        image_past[:, :, rows],
        image_valid[rows],
        torch.randn(words.text_layers, 2, 3, words.text_heads, 4, words.text_width),
        torch.randn(words.layers, 2, 3, words.heads, 4, words.width),
    )
    d, pixels = words.dim, ("mask_height", "mask_width")
    prefix = {
        "global_tokens": ("batch", "tokens", d),
        "global_valid": ("batch", "tokens"),
        "proposal_tokens": ("batch", "proposals", d),
    }
    text_past = (words.text_layers, 2, "captions", words.text_heads, "words", words.text_width)
    word_past = (words.layers, 2, "captions", words.heads, "words", words.width)
    image_axes = (words.layers, 2, "captions", words.heads, "prefix", words.width)
    return [
        Part(
            "image",
            image,
            {"images": ("batch", 3, "height", "width")},
            {
                "boxes": ("batch", "proposals", 4),
                "objectness": ("batch", "proposals"),
                "masks": ("batch", "proposals", *pixels),
                "proposal_features": ("batch", "proposals", d),
                "image_features": ("batch", d),
                **prefix,
            },
            (images,),
        ),
        Part(
            "text",
            TextPart(model),
            {"token_ids": ("texts", "length"), "valid": ("texts", "length")},
            {"text_features": ("texts", d)},
            (token_ids, torch.ones_like(token_ids, dtype=torch.bool)),
        ),
        Part(
            "caption_begin",
            begin,
            prefix,
            {"image_past": (words.layers, 2, "batch", *image_axes[3:]), "image_valid": ("batch", "prefix")},
            (global_tokens, global_valid, proposal_tokens),
        ),
        Part(
            "caption_step",
            CaptionStep(model),
            {
                "token_ids": ("captions",),
                "image_past": image_axes,
                "image_valid": ("captions", "prefix"),
                "text_past": text_past,
                "word_past": word_past,
            },
            {
                "log_probabilities": ("captions", words.vocabulary),
                "new_text_past": text_past,
                "new_word_past": word_past,
            },
            step,
        ),
    ]


class ImagePart(nn.Module):
    """Images to proposals, and to the features that likelihoods compare with texts."""

    def __init__(self, model: UniPerceiver):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            images: uint8 [B,3,H,W] in the order of channels of INPUT.FORMAT.
        Returns:
            boxes [B,O,4], absolute XYXY in pixels of the input;
            objectness [B,O] in 0..1;
            masks [B,O,h,w], logits at the stride of the finest map, which cover the input padded to the coarsest;
            features of proposals [B,O,d] and of whole images [B,d], of length 1;
            the tokens that captions begin with, see :class:`CaptionBegin`.
        """
        model, encoder = self.model, self.model.image_encoder
        encoding, _ = encoder.encode_maps(*self._maps(images))
        decoded = model.decoder(model.image_segments(encoding, IMAGE_TO_TEXT))
        proposals, (height, width) = encoding.proposals, images.shape[-2:]
        size = torch.stack([proposals.boxes.new_full((), side) for side in (width, height, width, height)])
        return (
            cxcywh_to_xyxy(proposals.boxes) * size,
            proposals.objectness.sigmoid(),
            proposals.masks,
            directions(decoded.segments[-1]),
            directions(decoded.spe),
            encoding.global_tokens,
            encoding.global_valid,
            encoding.proposal_tokens,
        )

    def _maps(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """The backbone's maps, finest first, and `valid` of the padded images: `preprocess` without a loop over
        images."""
        model, backbone = self.model, self.model.image_encoder.backbone
        divisor = backbone.size_divisibility
        cells = [(side + divisor - 1) // divisor for side in images.shape[-2:]]
        below, right = (cell * divisor - side for cell, side in zip(cells, images.shape[-2:]))
        pixels = F.pad((images.float() - model.pixel_mean) / model.pixel_std, (0, right, 0, below))
        valid = F.pad(torch.ones_like(images[:, 0], dtype=torch.bool), (0, right, 0, below))
        strides = sorted(shape.stride for shape in backbone.output_shape().values())
        maps = model.image_encoder.maps(ImageList(pixels, []))
        # Each map has this size already. Said so, it is a product of `cells`; otherwise every later shape would have
        # the nested roundings of all strides in it, and tracing would take several times as long.
        sizes = [[cell * (divisor // stride) for cell in cells] for stride in strides]
        return [x.narrow(2, 0, h).narrow(3, 0, w) for x, (h, w) in zip(maps, sizes)], valid


class TextPart(nn.Module):
    """Texts to the features of candidates."""

    def __init__(self, model: UniPerceiver):
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, valid: Tensor) -> Tensor:
        """Features [C,d] of length 1 of texts: ids [C,T], and `valid` [C,T] bool, False at padding."""
        return directions(self.model.encode_texts(token_ids, valid, IMAGE_TO_TEXT))


class CaptionBegin(nn.Module):
    """What all words of a caption see of the image, computed once."""

    def __init__(self, model: UniPerceiver):
        super().__init__()
        self.model = model

    def forward(self, global_tokens: Tensor, global_valid: Tensor, proposal_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            global_tokens: [B,M,d]; global_valid: [B,M] bool; proposal_tokens: [B,O,d]: outputs of :class:`ImagePart`.
        Returns:
            keys and values [layers,2,B,K,P,D] of <SPE> and these tokens, and `valid` [B,P] bool of them.
        """
        proposals: Any = None  # the segments have tokens only
        encoding = ImageEncoding(global_tokens, global_valid, proposal_tokens, proposals)
        decoder = self.model.decoder
        prefix, valid = decoder.prefix(self.model.image_segments(encoding, IMAGE_TEXT_TO_TEXT))
        heads = decoder.layers[0].attention.heads
        both = torch.stack([torch.stack((layer.keys, layer.values)) for layer in prefix])  # [layers,2,B,P,d]
        return both.unflatten(4, (heads, -1)).transpose(3, 4), valid


class CaptionStep(nn.Module):
    """One word of each caption to the probabilities of the next.

    Raises:
        UserError: the text encoder is none that generation has a fast form of.
    """

    def __init__(self, model: UniPerceiver):
        super().__init__()
        self.model = model
        words = model.vocabulary(IMAGE_TEXT_TO_TEXT)
        self._causal = model.text_encoder.begin().causal
        if self._causal is None:
            kind = model.text_encoder.model.config.model_type
            raise UserError(f"captions cannot be exported: the text encoder is a {kind}, and must be a BERT or RoBERTa")
        self._layers = [layer.prepare(CAPTION) for layer in model.decoder.layers]
        self._likelihoods = model.likelihood.against(words)
        forbidden = torch.zeros(len(words), dtype=torch.bool)
        forbidden[never_next(model.text_encoder)] = True
        self.register_buffer("forbidden", forbidden)

    def forward(
        self, token_ids: Tensor, image_past: Tensor, image_valid: Tensor, text_past: Tensor, word_past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            token_ids: [N], the last word of each caption; first the start token.
            image_past: [layers,2,N,K,P,D]; image_valid: [N,P]: outputs of :class:`CaptionBegin` for N captions.
            text_past: [text layers,2,N,K',L,D'], word_past: [layers,2,N,K,L,D]: keys and values of the L words before;
                first with L = 0.
        Returns:
            log P [N,V] of the next word, -inf for words that no caption has, and both pasts with L + 1 words.
        """
        text = _KeyValues(text_past)
        tokens = self.model.text_encoder.project(self._causal(token_ids[:, None], text))
        cache = _DecoderCache(self._layers, _KeyValues(word_past, image_past), image_valid)
        features = self.model.decoder.extend(cache, tokens, CAPTION)[:, 0]
        log_probabilities = self._likelihoods(features).log_softmax(-1).masked_fill(self.forbidden, -torch.inf)
        return log_probabilities, torch.stack(text.grown), torch.stack(cache.past.grown)


class _KeyValues:
    """`KeyValueBuffer` for one step without writing into its inputs.

    Args:
        past: [layers,2,N,heads,L,width].
        prefix: [layers,2,N,heads,P,width], what comes before all words.
    """

    def __init__(self, past: Tensor, prefix: Tensor | None = None):
        self._past, self._prefix = past, prefix
        self.length = past.shape[4] + (0 if prefix is None else prefix.shape[4])
        self.grown: list[Tensor] = []  # of each layer, [2,N,heads,L+1,width]

    def add(self, layer: int, new: Tensor) -> Sequence[Tensor]:
        self.grown.append(torch.cat((self._past[layer], new), dim=3))
        if self._prefix is None:
            return self.grown[-1].unbind()
        return torch.cat((self._prefix[layer], self.grown[-1]), dim=3).unbind()


class _DecoderCache:
    """`DecoderCache` for one step."""

    def __init__(self, layers: list[Any], past: _KeyValues, valid: Tensor):
        self.layers, self.past, self.length = {CAPTION: layers}, past, past.length
        self._valid = valid

    def valid(self, new: int) -> Tensor:
        batch, known = self._valid.shape
        return torch.cat((self._valid, self._valid.new_ones(batch, self.length + new - known)), dim=1)


class _LengthsOf:
    """Lengths of the axes that do not vary."""

    def __init__(self, model: UniPerceiver):
        config = model.text_encoder.model.config
        self.text_layers, self.text_heads = config.num_hidden_layers, config.num_attention_heads
        self.text_width = config.hidden_size // self.text_heads
        self.layers, self.heads = len(model.decoder.layers), model.decoder.layers[0].attention.heads
        self.dim = model.decoder.norm.normalized_shape[0]
        self.width = self.dim // self.heads
        self.vocabulary = model.text_encoder.vocab_size
