"""UniPerceiverV2: assembles the encoders, the decoder and the likelihood, and hands each batch to its task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from .config import task_defaults
from .errors import UserError
from .modeling.decoder import IMAGE_TO_TEXT, Attributes, Segment, TaskModalities, UnifiedDecoder, compile_decoder
from .modeling.image_encoder import HuggingFaceBackbone, ImageEncoder, ImageEncoding, mean_of_valid
from .modeling.layers import checkpoint_blocks
from .modeling.likelihood import CandidateCache, Likelihood, directions
from .modeling.text_encoder import TextEncoder
from .tasks import TASK_KINDS, Task

VOCABULARY_CHUNK = 8192  # words encoded at once, for the memory of a whole vocabulary


@META_ARCH_REGISTRY.register()
class UniPerceiverV2(nn.Module):
    """A generalist model without task heads (Li et al., CVPR 2023).

    `model(inputs)` takes Detectron2's list of dicts. In training mode it returns the losses of the batch's task, in
    evaluation mode a list of predictions. Each input's "task" names a task of the configuration or a kind of task;
    without it, detection is meant.

    Args:
        image_encoder, text_encoder, decoder, likelihood: f_image, f_text, g and cos/τ.
        tasks: by name and by kind.
        pixel_mean, pixel_std: of the three channels of INPUT.FORMAT, in 0..255.
        detections_per_image: how many pairs of proposal and category go out.
    """

    @configurable
    def __init__(
        self,
        *,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        decoder: UnifiedDecoder,
        likelihood: Likelihood,
        tasks: dict[str, Task],
        pixel_mean: list[float],
        pixel_std: list[float],
        detections_per_image: int,
    ):
        super().__init__()
        self.image_encoder, self.text_encoder = image_encoder, text_encoder
        self.decoder, self.likelihood = decoder, likelihood
        self.tasks = tasks
        self.detections_per_image = detections_per_image
        self._candidates = CandidateCache((text_encoder, decoder))
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        tasks = {kind: task(task_defaults(kind, kind)) for kind, task in TASK_KINDS.items()}
        for name in reversed(cfg.TASKS.NAMES):
            node = cfg.TASKS[name]
            # A kind stands for the first task of that kind, so that evaluation, too, puts names into its prompt.
            tasks[name] = tasks[node.KIND] = TASK_KINDS[node.KIND](dict(node))
        # In this order, in which a seed draws their weights.
        image_encoder, text_encoder, decoder = ImageEncoder(cfg), TextEncoder(cfg), UnifiedDecoder(cfg)
        _checkpoint_activations(image_encoder, decoder, cfg.MODEL.UNIPERCEIVER_V2.ACTIVATION_CHECKPOINTING)
        if cfg.MODEL.UNIPERCEIVER_V2.DECODER.COMPILE:
            compile_decoder(decoder, cfg.MODEL.DEVICE)
        return {
            "image_encoder": image_encoder,
            "text_encoder": text_encoder,
            "decoder": decoder,
            "likelihood": Likelihood(cfg.MODEL.UNIPERCEIVER_V2.TEMPERATURE),
            "tasks": tasks,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        task = self._task_of(inputs)
        if self.training:
            return task.losses(self, inputs)
        with torch.no_grad():
            return task.predict(self, inputs)

    def loss_count(self, inputs: list[dict]) -> int:
        """How many things the losses of a batch are means over, see `Task.loss_count`."""
        return self._task_of(inputs).loss_count(inputs)

    def _task_of(self, inputs: list[dict]) -> Task:
        name = inputs[0].get("task", "detection")
        if name not in self.tasks:
            raise KeyError(f"no task or kind of task {name!r}; there are {', '.join(self.tasks)}")
        return self.tasks[name]

    def preprocess(self, inputs: list[dict]) -> ImageList:
        """Normalises and pads the inputs' images, uint8 or float [3,H,W]."""
        images = [(x["image"].to(self.device, torch.float32) - self.pixel_mean) / self.pixel_std for x in inputs]
        return ImageList.from_tensors(images, self.image_encoder.backbone.size_divisibility)

    def image_segments(self, encoding: ImageEncoding, task: TaskModalities) -> list[Segment]:
        """An image as input: its global tokens, then its proposals."""
        attributes = Attributes("image", "input", task)
        return [
            Segment(encoding.global_tokens, encoding.global_valid, attributes),
            Segment(encoding.proposal_tokens, None, attributes),
        ]

    def decode_image(self, encoding: ImageEncoding) -> Tensor:
        """<SPE>'s representation [B,d] of whole images, globals and proposals together."""
        return self.decoder.read_spe(self.image_segments(encoding, IMAGE_TO_TEXT))

    def decode_proposals(self, encoding: ImageEncoding) -> Tensor:
        """The representation [B,O,d] of every proposal."""
        return self.decoder.read_last(self.image_segments(encoding, IMAGE_TO_TEXT))

    def encode_texts(self, token_ids: Tensor, valid: Tensor | None, task: TaskModalities) -> Tensor:
        """<SPE>'s representation [C,d] of each text as a target: ids [C,T] and their validity, None if all are."""
        return self._decode_texts(self.text_encoder(token_ids, valid), valid, task)

    def _decode_texts(self, tokens: Tensor, valid: Tensor | None, task: TaskModalities) -> Tensor:
        return self.decoder.read_spe([Segment(tokens, valid, Attributes("text", "target", task))])

    def encode_candidates(self, texts: tuple[str, ...], task: TaskModalities = IMAGE_TO_TEXT) -> Tensor:
        """Texts to choose from as directions [C,d], kept in evaluation while no weight changes."""

        def encode() -> Tensor:
            return directions(self.encode_texts(*self.text_encoder.tokenize(texts), task))

        return self._candidates.get((texts, task), encode)

    def encode_candidates_and_anchors(
        self, texts: tuple[str, ...], task: TaskModalities = IMAGE_TO_TEXT
    ) -> tuple[Tensor, Tensor]:
        """For training: `encode_candidates` and `candidate_anchors` [C,d] by one pass of the text encoder."""
        token_ids, valid = self.text_encoder.tokenize(texts)
        tokens = self.text_encoder(token_ids, valid)
        return directions(self._decode_texts(tokens, valid, task)), _anchors(tokens.detach(), valid)

    def encode_vocabulary(self, token_ids: Tensor, task: TaskModalities) -> Tensor:
        """Representations [n,d] of words as candidates: `<s> word </s>` each, of ids [n], encoded as any text."""
        frame = token_ids.new_tensor([self.text_encoder.bos_id, self.text_encoder.eos_id]).expand(len(token_ids), 2)
        texts = torch.stack((frame[:, 0], token_ids, frame[:, 1]), dim=1)
        return torch.cat([self.encode_texts(chunk, None, task) for chunk in texts.split(VOCABULARY_CHUNK)])

    def vocabulary(self, task: TaskModalities) -> Tensor:
        """The whole vocabulary as directions [V,d], kept in evaluation while no weight changes."""

        def encode() -> Tensor:
            return directions(
                self.encode_vocabulary(torch.arange(self.text_encoder.vocab_size, device=self.device), task)
            )

        return self._candidates.get(("vocabulary", task), encode)

    @torch.no_grad()
    def candidate_anchors(self, texts: tuple[str, ...]) -> Tensor:
        """Fixed targets [C,d] for alignment, without gradients: the text encoder's mean token of each text, less the
        mean over the texts, so that they differ as much as they can."""
        token_ids, valid = self.text_encoder.tokenize(texts)
        return _anchors(self.text_encoder(token_ids, valid), valid)


def _anchors(tokens: Tensor, valid: Tensor) -> Tensor:
    means = mean_of_valid(tokens, valid)
    return means - means.mean(0)


def _checkpoint_activations(image_encoder: ImageEncoder, decoder: UnifiedDecoder, parts: Sequence[str]) -> None:
    """Lets these parts compute their activations twice, in place, see :func:`checkpoint_blocks`.

    Raises:
        UserError: a part's blocks cannot be found or have to keep what they compute.
    """
    regions = image_encoder.regions
    blocks = {
        "backbone": lambda: _backbone_blocks(image_encoder.backbone),
        "region_network": lambda: [*regions.encoder.layers, *regions.decoder.layers],
        "decoder": lambda: decoder.layers,
    }
    for part in parts:
        try:
            checkpoint_blocks(blocks[part]())
        except ValueError as error:
            raise UserError(f"MODEL.UNIPERCEIVER_V2.ACTIVATION_CHECKPOINTING, {part}: {error}") from error


def _backbone_blocks(backbone: Backbone) -> list[nn.Module]:
    if not isinstance(backbone, HuggingFaceBackbone):
        raise ValueError(f"the blocks of {type(backbone).__name__} are not known, only Hugging Face backbones' are")
    return backbone.blocks()
