"""Trains digit_scenes' byte-level BPE tokenizer, and writes it with the configuration of the small text encoder.

    python datasets/train_tokenizer.py [--dataset DIR] [--output configs/digit_scenes/text_encoder]

The result is committed. Run this only when digit_scenes' texts change. It reads training texts only: captions, corpus
and class names. ``transformers.AutoTokenizer`` and ``AutoConfig`` load the folder, like the folder of a published
RoBERTa.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

from digit_scenes_drawing import CLASS_NAMES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, RobertaConfig

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # the first four with RoBERTa's ids
MAX_VOCABULARY = 1000
MAX_POSITIONS = 66  # RoBERTa's positions begin with the padding id + 1, so this is enough for 64 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "digit_scenes"
    parser.add_argument("--dataset", type=Path, default=default, help="a folder of prepare_digit_scenes.py")
    parser.add_argument("--output", type=Path, default=Path("configs/digit_scenes/text_encoder"))
    args = parser.parse_args()
    tokenizer = train_tokenizer(training_texts(args.dataset))
    tokenizer.save_pretrained(args.output)
    _name_portable_class(args.output / "tokenizer_config.json")
    text_encoder_config(tokenizer).save_pretrained(args.output)
    print(f"{len(tokenizer)} tokens: {args.output}")


def training_texts(dataset: Path) -> Iterator[str]:
    """Every training text of a digit_scenes tree: captions, corpus lines, class names."""
    captions = json.loads((dataset / "annotations/captions_train.json").read_text())
    for annotation in captions["annotations"]:
        yield annotation["caption"]
    yield from (dataset / "corpus/train.txt").read_text().splitlines()
    # Class names occur alone as candidates. Here each occurs twice, as BPE ignores pairs that occur only once.
    yield from CLASS_NAMES * 2


def train_tokenizer(texts: Iterator[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE that adds RoBERTa's special tokens to a text, ``<s> text </s>``.

    Unlike RoBERTa's, it puts a space before a text. So a word is the same token at the beginning of a caption, in its
    middle, and alone as a class name.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        min_frequency=2,
        # As in RoBERTa, the mask replaces a word and the space before it.
        special_tokens=[AddedToken(token, lstrip=token == "<mask>") for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = {token: tokenizer.token_to_id(token) for token in ("<s>", "</s>")}
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", ids["</s>"]), ("<s>", ids["<s>"]), add_prefix_space=True
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=MAX_POSITIONS - 2,
        clean_up_tokenization_spaces=False,
    )


def _name_portable_class(path: Path) -> None:
    """Names the tokenizer's class by the name that all versions of transformers have. Version 5 writes an alias."""
    config = {**json.loads(path.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def text_encoder_config(tokenizer: PreTrainedTokenizerFast) -> RobertaConfig:
    """The small RoBERTa of the embedded default. It has no dropout, as a short training run overfits little."""
    return RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_POSITIONS,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        architectures=["RobertaModel"],
    )


if __name__ == "__main__":
    main()
