"""Captioning: Hugging Face's VisionEncoderDecoder, a ResNet and a RoBERTa that reads its map.

A Vision Transformer in place of the ResNet would have to learn from 4,000 scenes what a convolution is given.
"""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, ResNetConfig, ResNetModel, VisionEncoderDecoderModel
from transformers.modeling_outputs import BaseModelOutput

from uniperceiver_v2.data.samples import NOT_PREDICTED

from .common import Pixels, Specialist, resnet_config
from .language_model import text_encoder_files

WIDTH, STRIDE = 128, 8  # of a token, and of the map


class MapEncoder(ResNetModel):
    """The N cells of a ResNet's map as tokens [B,N,d], with learned positions."""

    def __init__(self, config: ResNetConfig, cells: int):
        super().__init__(config)
        self.position = nn.Parameter(0.02 * torch.randn(cells, WIDTH))

    def forward(self, pixel_values: Tensor, **_) -> BaseModelOutput:
        cells = super().forward(pixel_values).last_hidden_state.flatten(2).transpose(1, 2)
        return BaseModelOutput(last_hidden_state=cells + self.position)


class Captioner(nn.Module):
    def __init__(self, cfg: CfgNode):
        super().__init__()
        decoder, self.tokenizer = text_encoder_files(cfg)
        decoder.is_decoder = decoder.add_cross_attention = True
        encoder = resnet_config(hidden_sizes=[64, WIDTH], depths=[3, 3], hidden_size=WIDTH)
        cells = (cfg.INPUT.MIN_SIZE_TEST // STRIDE) ** 2
        self.model = VisionEncoderDecoderModel(
            encoder=MapEncoder(encoder, cells), decoder=AutoModelForCausalLM.from_config(decoder)
        )
        ids = {"decoder_start_token_id": decoder.bos_token_id, "eos_token_id": decoder.eos_token_id}
        self.special_ids = {**ids, "pad_token_id": decoder.pad_token_id}
        for name, value in self.special_ids.items():
            setattr(self.model.config, name, value)
        self.max_length = decoder.max_position_embeddings - 2
        self.pixels = Pixels(cfg)

    def forward(self, inputs: list[dict]) -> Tensor | list[dict]:
        return self._loss(inputs) if self.training else self._captions(inputs)

    def _loss(self, inputs: list[dict]) -> Tensor:
        """The mean over the words of all captions. An image is encoded once for all of its captions."""
        encoded = self.model.encoder(self.pixels(inputs)).last_hidden_state
        counts = torch.tensor([len(x["caption_token_ids"]) for x in inputs])
        words = [ids[1:] for x in inputs for ids in x["caption_token_ids"]]
        labels = nn.utils.rnn.pad_sequence(words, True, NOT_PREDICTED)
        outputs = BaseModelOutput(last_hidden_state=encoded.repeat_interleave(counts, 0))
        return self.model(encoder_outputs=outputs, labels=labels).loss

    def _captions(self, inputs: list[dict]) -> list[dict]:
        """The most likely captions of three beams."""
        found = self.model.generate(
            pixel_values=self.pixels(inputs),
            num_beams=3,
            length_penalty=0.0,
            max_length=self.max_length,
            return_dict_in_generate=True,
            output_scores=True,
            **self.special_ids,
        )
        texts = self.tokenizer.batch_decode(found.sequences, skip_special_tokens=True)
        return [
            {"caption": text.strip(), "log_likelihood": score}
            for text, score in zip(texts, found.sequences_scores.tolist(), strict=True)
        ]


SPECIALIST = Specialist(
    task="scene_captions",
    tests={
        "digit_scenes_captions_test": {
            "captions true": ("caption_truth", "true"),
            "CIDEr": ("caption", "CIDEr"),
            "BLEU-4": ("caption", "Bleu_4"),
        }
    },
    build=Captioner,
    rate=2e-3,
    pace=3.6,
)
