"""The model without its tasks: the encoders f_image and f_text, the decoder g and the likelihood cos/τ.

Shapes: B images, M global tokens, O proposals, C candidates, T tokens, d the decoder's width.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..errors import UserError
from ..transfer import send
from .decoder import IMAGE_TO_TEXT, Attributes, Segment, TaskModalities, UnifiedDecoder
from .image_encoder import HuggingFaceBackbone, ImageEncoder, ImageEncoding, mean_of_valid
from .image_encoder.structures import has_padding, valid_pixels
from .layers import WeightCache, can_compile, checkpoint_blocks, compile_modules
from .likelihood import Likelihood, directions
from .text_encoder import TextEncoder
from .texts_in_parts import TextsInParts

VOCABULARY_CHUNK = 8192  # the most words that are encoded at once, which bounds the memory


class UniPerceiver(nn.Module):
    """The encoders, the unified decoder and the likelihood, with methods to encode and decode images and texts.

    The class knows no task. The classes in `tasks/` call its methods, and `meta_arch.UniPerceiverV2` hands each batch
    to its task.

    Args:
        image_encoder, text_encoder, decoder, likelihood: f_image, f_text, g and cos/τ.
        pixel_mean, pixel_std: mean and standard deviation of the three channels of INPUT.FORMAT, in 0..255.
        texts_in_parts: how training encodes candidates. None for all at once in every process.
    """

    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        decoder: UnifiedDecoder,
        likelihood: Likelihood,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        texts_in_parts: TextsInParts | None = None,
    ):
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.decoder, self.likelihood = decoder, likelihood
        self.texts_in_parts = texts_in_parts or TextsInParts()
        self._candidates = WeightCache((text_encoder, decoder))
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        """The initialiser's arguments from a configuration."""
        # The order decides which random weights a seed gives to each part.
        image_encoder, text_encoder, decoder = ImageEncoder(cfg), TextEncoder(cfg), UnifiedDecoder(cfg)
        node = cfg.MODEL.UNIPERCEIVER_V2
        _checkpoint_activations(image_encoder, text_encoder, decoder, node.ACTIVATION_CHECKPOINTING)
        compiled = {*node.COMPILE, *(("decoder",) if node.DECODER.COMPILE else ())}
        if compiled and can_compile(cfg.MODEL.DEVICE):
            _compile(image_encoder, text_encoder, decoder, compiled)
        if node.CHANNELS_LAST:
            image_encoder.put_channels_last()
        return {
            "image_encoder": image_encoder,
            "text_encoder": text_encoder,
            "decoder": decoder,
            "likelihood": Likelihood(node.TEMPERATURE),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "texts_in_parts": TextsInParts(node.CANDIDATES.AT_ONCE, node.CANDIDATES.SPLIT),
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def preprocess(self, inputs: list[dict]) -> ImageList:
        """Normalises the images [3,H,W] (uint8 or float) of the inputs and pads them to one size.

        Images of bytes travel as bytes, and are converted on the device, all at once.
        """
        images = [send(x["image"], self.device) for x in inputs]
        if any(image.dtype != torch.uint8 for image in images):
            images = [image.float() for image in images]
        batch = ImageList.from_tensors(images, self.image_encoder.backbone.size_divisibility)
        tensor = (batch.tensor.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        if has_padding(batch):
            tensor = tensor * valid_pixels(batch).unsqueeze(1)
        return ImageList(tensor, batch.image_sizes)

    def image_segments(self, encoding: ImageEncoding, task: TaskModalities) -> list[Segment]:
        """The segments of an image as an input x: its global tokens, then its proposals."""
        attributes = Attributes("image", "input", task)
        return [
            Segment(encoding.global_tokens, encoding.global_valid, attributes),
            Segment(encoding.proposal_tokens, None, attributes),
        ]

    def decode_image(self, encoding: ImageEncoding) -> Tensor:
        """Representations [B,d] of whole images, read at <SPE> with global tokens and proposals in view."""
        return self.decoder.read_spe(self.image_segments(encoding, IMAGE_TO_TEXT))

    def decode_proposals(self, encoding: ImageEncoding) -> Tensor:
        """Representations [B,O,d] of all proposals."""
        return self.decoder.read_last(self.image_segments(encoding, IMAGE_TO_TEXT))

    def encode_texts(self, token_ids: Tensor, valid: Tensor | None, task: TaskModalities) -> Tensor:
        """Representations [C,d] of texts as targets y, read at <SPE>.

        Args:
            token_ids: [C,T].
            valid: [C,T] bool, False at padding; None if no text is padded.
            task: the modalities of the task that compares with them.
        """
        return self._decode_texts(self.text_encoder(token_ids, valid), valid, task)

    def _decode_texts(self, tokens: Tensor, valid: Tensor | None, task: TaskModalities) -> Tensor:
        return self.decoder.read_spe([Segment(tokens, valid, Attributes("text", "target", task))])

    def encode_candidates(self, texts: tuple[str, ...], task: TaskModalities = IMAGE_TO_TEXT) -> Tensor:
        """Candidate texts as directions [C,d]. Without gradients they are kept until a weight changes."""

        def encode() -> Tensor:
            return directions(self.encode_texts(*self.text_encoder.tokenize(texts), task))

        return self._candidates.get((texts, task), encode)

    def encode_candidates_and_alignment_targets(
        self, texts: tuple[str, ...], task: TaskModalities = IMAGE_TO_TEXT, shared: bool = False
    ) -> tuple[Tensor, Tensor]:
        """For training: `encode_candidates` and `alignment_targets`, [C,d] each, from one pass of the text encoder.
        `shared` as in `encode_candidates_and_means`."""
        candidates, means = self.encode_candidates_and_means(texts, task, shared)
        return candidates, means - means.mean(0)

    def encode_candidates_and_means(
        self, texts: tuple[str, ...], task: TaskModalities = IMAGE_TO_TEXT, shared: bool = False
    ) -> tuple[Tensor, Tensor]:
        """For training: `encode_candidates` and each text's mean token [C,d], without gradients, by one pass of the
        text encoder. A caller whose texts differ from batch to batch makes its targets of alignment from the means.

        `shared` says that all ranks of the task group make this call with the same texts, so that they may share them.
        """

        def encode(token_ids: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
            tokens = self.text_encoder(token_ids, valid)
            return directions(self._decode_texts(tokens, valid, task)), mean_of_valid(tokens.detach(), valid)

        candidates, means = self.texts_in_parts.encode(encode, *self.text_encoder.tokenize(texts), shared)
        return candidates, means.detach()

    def encode_vocabulary(self, token_ids: Tensor, task: TaskModalities, shared: bool = False) -> Tensor:
        """Representations [n,d] of the words with ids [n]. Each word is encoded as the text `<s> word </s>`.

        `shared` is that of `encode_candidates_and_means`.
        """

        def encode(texts: Tensor, valid: Tensor | None) -> tuple[Tensor, ...]:
            return (self.encode_texts(texts, valid, task),)

        texts = F.pad(
            F.pad(token_ids[:, None], (1, 0), value=self.text_encoder.bos_id), (0, 1), value=self.text_encoder.eos_id
        )
        chunks = texts.split(VOCABULARY_CHUNK)
        return torch.cat([self.texts_in_parts.encode(encode, chunk, None, shared)[0] for chunk in chunks])

    def vocabulary(self, task: TaskModalities) -> Tensor:
        """The whole vocabulary as directions [V,d]. Without gradients they are kept until a weight changes."""

        def encode() -> Tensor:
            words = torch.arange(self.text_encoder.vocab_size, device=self.device)
            return directions(self.encode_vocabulary(words, task, shared=True))

        return self._candidates.get(("vocabulary", task), encode)

    @torch.no_grad()
    def alignment_targets(self, texts: tuple[str, ...]) -> Tensor:
        """Targets [C,d] of the alignment loss, without gradients: the mean token of each text, before the decoder.

        The mean over the C texts is subtracted. What all texts have in common would otherwise hide how they differ.
        """
        token_ids, valid = self.text_encoder.tokenize(texts)
        return _alignment_targets(self.text_encoder(token_ids, valid), valid)


def _alignment_targets(tokens: Tensor, valid: Tensor) -> Tensor:
    means = mean_of_valid(tokens, valid)
    return means - means.mean(0)


def _checkpoint_activations(
    image_encoder: ImageEncoder, text_encoder: TextEncoder, decoder: UnifiedDecoder, parts: Sequence[str]
) -> None:
    """Applies :func:`checkpoint_blocks` to these parts, in place.

    Raises:
        UserError: a part's blocks cannot be found, or a block keeps running statistics.
    """
    regions = image_encoder.regions
    blocks = {
        "backbone": lambda: _backbone_blocks(image_encoder.backbone),
        "region_network": lambda: [*regions.encoder.layers, *regions.decoder.layers],
        "text_encoder": text_encoder.blocks,
        "decoder": lambda: decoder.layers,
    }
    for part in parts:
        try:
            checkpoint_blocks(blocks[part]())
        except ValueError as error:
            raise UserError(f"MODEL.UNIPERCEIVER_V2.ACTIVATION_CHECKPOINTING, {part}: {error}") from error


def _compile(
    image_encoder: ImageEncoder, text_encoder: TextEncoder, decoder: UnifiedDecoder, parts: Collection[str]
) -> None:
    """Lets torch.compile compile these parts, in place, on first use.

    Raises:
        UserError: a part's blocks cannot be found.
    """
    try:
        if "backbone" in parts:
            compile_modules(_backbone_blocks(image_encoder.backbone))
        if "region_network" in parts:
            image_encoder.regions.compile_layers()
        if "text_encoder" in parts:
            compile_modules(text_encoder.blocks())
        if "decoder" in parts:
            decoder.compile_layers()
    except ValueError as error:
        raise UserError(f"MODEL.UNIPERCEIVER_V2.COMPILE: {error}") from error


def _backbone_blocks(backbone: Backbone) -> list[nn.Module]:
    if not isinstance(backbone, HuggingFaceBackbone):
        raise ValueError(f"the blocks of {type(backbone).__name__} are not known, only Hugging Face backbones' are")
    return backbone.blocks()
