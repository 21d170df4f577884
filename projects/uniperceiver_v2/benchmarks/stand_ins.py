"""Directories with the sizes of the published models that configs/joint begins with, and without their weights.

Sizes are facts of the published configurations. A byte-level tokenizer with as many tokens stands in for RoBERTa's: its
tokens are bytes and pairs of bytes, so that it cuts an English text into two to three times as many.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from detectron2.config import CfgNode
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import uniperceiver_v2  # noqa: F401  (registers the model and the datasets)
from uniperceiver_v2.config import load_config
from uniperceiver_v2.files import REPOSITORY

MODELS = ("r50", "swin_base", "swin_large")  # of configs/joint
_SWIN = {"model_type": "swin", "window_size": 12, "image_size": 384, "depths": [2, 2, 18, 2]}
SIZES = {
    "resnet-50": {"model_type": "resnet", "layer_type": "bottleneck", "depths": [3, 4, 6, 3]},
    "swin-base-patch4-window12-384-in22k": {**_SWIN, "embed_dim": 128, "num_heads": [4, 8, 16, 32]},
    "swin-large-patch4-window12-384-in22k": {**_SWIN, "embed_dim": 192, "num_heads": [6, 12, 24, 48]},
    "roberta-base": {
        "model_type": "roberta",
        "vocab_size": 50265,
        "max_position_embeddings": 514,
        "type_vocab_size": 1,
    },
}
TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


def joint_config(model: str, folder: Path, options: list[str], **arguments: bool) -> CfgNode:
    """``configs/joint/uniperceiver_v2_<model>.yaml`` that begins with stand-ins in place of ``pretrained/``.

    Args:
        model: one of ``MODELS``.
        folder: takes the stand-ins, or has those of an earlier call.
        options: further ``KEY VALUE`` pairs.
        arguments: of ``load_config``.
    """
    path = str(REPOSITORY / f"configs/joint/uniperceiver_v2_{model}.yaml")
    node = load_config(path, datasets=False).MODEL.UNIPERCEIVER_V2
    for part in ("BACKBONE", "TEXT_ENCODER"):
        directory = stand_in(Path(node[part].PATH).name, folder)
        options = [f"MODEL.UNIPERCEIVER_V2.{part}.PATH", str(directory), *options]
    return load_config(path, options, **arguments)


def stand_in(name: str, folder: Path) -> Path:
    """Writes the directory of one of ``SIZES`` into a folder, unless it is there."""
    directory = folder / name
    if not directory.is_dir():
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(SIZES[name]))
        if "vocab_size" in SIZES[name]:
            _write_tokenizer(directory, SIZES[name]["vocab_size"])
    return directory


def _write_tokenizer(directory: Path, size: int) -> None:
    *framing, mask = TOKENS.values()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(itertools.islice(itertools.product(letters, letters), size - len(framing) - len(letters) - 1))
    words = [*framing, *letters, *map("".join, pairs), mask]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **TOKENS).save_pretrained(directory)
