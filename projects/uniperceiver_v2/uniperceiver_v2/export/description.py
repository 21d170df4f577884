"""``model.json``: all that a program has to know of an exported model beside its ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UserError
from ..predictor import Predictor
from ..predictor.pretrained import labels_of
from .files import OPSET
from .parts import Part

DESCRIPTION, TOKENIZER = "model.json", "tokenizer.json"
FORMAT = "uniperceiver_v2.onnx"


def file_of(part: str, precision: str) -> str:
    """The name of a part's file."""
    return f"{part}.onnx" if precision == "fp32" else f"{part}_{precision}.onnx"


def describe(predictor: Predictor, parts: list[Part], precisions: list[str]) -> dict[str, Any]:
    """The content of ``model.json``."""
    cfg, model = predictor.cfg, predictor.model
    region = cfg.MODEL.UNIPERCEIVER_V2.REGION
    detection, classification = predictor.task("detection"), predictor.task("classification")
    captioning, grounding = predictor.task("captioning").settings, predictor.task("grounding").settings
    temperature = model.likelihood.temperature.item()
    return {
        "format": FORMAT,
        "version": 1,
        "opset": OPSET,
        "precisions": precisions,
        "preprocessing": {
            "input": "uint8, [batch, 3, height, width], upright, of one size in a batch",
            "channel_order": cfg.INPUT.FORMAT,
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
            "normalised_and_padded_by": "the file image.onnx itself",
            "padded_to_multiples_of": model.image_encoder.backbone.size_divisibility,
            "resampling": "bilinear",
            # 0: images are not resized
            "whole": {"shorter_side": cfg.INPUT.MIN_SIZE_TEST, "longer_side_at_most": cfg.INPUT.MAX_SIZE_TEST},
            "square": {
                "shorter_side": classification.settings.tested_size,
                "centre": classification.settings.tested_size,
            },
        },
        "temperatures": {
            **dict.fromkeys(("detection", "grounding", "captioning"), temperature),
            "classification": temperature * classification.settings.temperature,
        },
        "detection": {
            "score_temperature": detection.settings.temperature,
            "prompt": detection.settings.prompt,
            "per_image": detection.detections_per_image,
            "masks": cfg.MODEL.MASK_ON,  # False: they were not learned
            "masks_end_at_boxes": region.MASKS_IN_BOXES,
            "boxes_around_masks": region.BOXES_AROUND_MASKS and cfg.MODEL.MASK_ON,
        },
        # With further prompts, a label's feature is the mean of its features in each, scaled to length 1.
        "classification": {
            "prompt": classification.settings.prompt,
            "further_prompts": list(classification.settings.further_prompts),
        },
        "grounding": {"none": grounding.none, "per_phrase": grounding.proposals_per_phrase},
        "captioning": {
            "beams": captioning.beam_size,
            "length_penalty": captioning.length_penalty,
            "max_length": min(captioning.max_length, model.text_encoder.max_length),
        },
        "labels": labels_of(model),
        "tokenizer": {
            "file": TOKENIZER,
            "start": model.text_encoder.bos_id,
            "end": model.text_encoder.eos_id,
            "padding": model.text_encoder.pad_id,
            "max_length": model.text_encoder.max_length,
        },
        "parts": {part.name: _describe(part, precisions) for part in parts},
    }


def _describe(part: Part, precisions: list[str]) -> dict[str, Any]:
    return {
        "files": {precision: file_of(part.name, precision) for precision in precisions},
        "inputs": {name: list(shape) for name, shape in part.inputs.items()},
        "outputs": {name: list(shape) for name, shape in part.outputs.items()},
    }


def save_tokenizer(model: Any, directory: Path) -> None:
    """Write the tokenizer as a file of the package tokenizers.

    Raises:
        UserError: it is none that this package knows.
    """
    backend = getattr(model.text_encoder.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("the model's tokenizer cannot be exported: it has no form in the package tokenizers")
    backend.save(str(directory / TOKENIZER))
