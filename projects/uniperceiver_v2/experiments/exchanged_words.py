"""Which words of a caption a checkpoint can tell from wrong ones.

    python projects/uniperceiver_v2/experiments/exchanged_words.py output/digit_scenes_tiny/model_final.pth
        [--config-file FILE] [--dataset digit_scenes_captions_test] [--scenes 500]

A word of a true caption is exchanged so that the caption is false of its scene. Prints for each sort of word how often
the true caption is the likelier one, in percent; 50 is chance. Greedy captions show only what a model prefers to say;
this shows what it knows. docs/probes.md tells how to read it.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from probes import format_table, load_model
from torch import Tensor

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_test_loader
from uniperceiver_v2.evaluation.digit_scenes.facts import Scene, SceneFacts
from uniperceiver_v2.evaluation.digit_scenes.parser import COLOURS, NAMES
from uniperceiver_v2.evaluation.digit_scenes.truth import judge
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.modeling.decoder import IMAGE_TEXT_TO_TEXT
from uniperceiver_v2.modeling.image_encoder import ImageEncoding
from uniperceiver_v2.modeling.model import UniPerceiver
from uniperceiver_v2.tasks.captioning import decode_captions
from uniperceiver_v2.tasks.vocabulary import vocabulary_logits

# By sort, words that stand for each other. A word gives way to the first after it that makes the caption false.
EXCHANGES: Mapping[str, Sequence[Sequence[str]]] = {
    "sides": (("to the left of", "to the right of"), ("above", "below"), ("left to right", "top to bottom")),
    "places": (("in the top left", "in the bottom right"), ("in the top right", "in the bottom left")),
    "extremes": (("largest", "smallest"), ("leftmost", "rightmost"), ("highest", "lowest")),
    "colours": (COLOURS,),
    "digits": (NAMES,),
}


def exchanged(caption: str, scene: Scene) -> Iterator[tuple[str, str]]:
    """(sort, false caption) for each sort of which the true caption has a word."""
    for sort, groups in EXCHANGES.items():
        others = ((text, judge(text, scene)) for group in groups for text in _others(caption, group))
        false = next((text for text, verdict in others if verdict.is_parsed and not verdict.is_true), None)
        if false is not None:
            yield sort, false


def _others(caption: str, words: Sequence[str]) -> Iterator[str]:
    """The caption with the first of these words that it has exchanged for each of the others."""
    found = re.search(rf"\b({'|'.join(words)})\b", caption)
    if found:
        place = words.index(found[0])
        for other in (*words[place + 1 :], *words[:place]):
            text = caption[: found.start()] + other + caption[found.end() :]
            yield re.sub(r"\ban?(?= ([a-z]+))", lambda m: "an" if m[1] in ("eight", "orange") else "a", text)


def log_likelihoods(
    model: UniPerceiver, encoding: ImageEncoding, images: Sequence[int], captions: Sequence[str]
) -> Tensor:
    """log P [C] of captions, the stop token included.

    Args:
        encoding: the encoded batch of images.
        images: C indices into the batch, the image of each caption.
    """
    tokenizer = model.text_encoder.tokenizer
    token_ids, valid = model.text_encoder.pad([torch.tensor(tokenizer(c)["input_ids"]) for c in captions])
    said = valid[:, 1:]
    features = decode_captions(model, encoding, list(images), token_ids[:, :-1], said)[said]
    logits, labels = vocabulary_logits(model, features, token_ids[:, 1:][said], IMAGE_TEXT_TO_TEXT, 0)
    words = -F.cross_entropy(logits, labels, reduction="none")
    return words.new_zeros(said.shape).masked_scatter(said, words).sum(1)


@torch.no_grad()
def known(cfg: CfgNode, model: UniPerceiver, dataset: str, scenes: int) -> dict[str, list[bool]]:
    """By sort, for each exchange in captions of the first scenes, whether the true caption is the likelier one."""
    facts = SceneFacts(MetadataCatalog.get(dataset).scene_facts)  # of digit_scenes alone
    found, seen = defaultdict(list), 0
    for batch in build_test_loader(cfg, dataset):
        batch = batch[: scenes - seen]
        encoding, _ = model.image_encoder(model.preprocess(batch))
        asked = [
            (index, sort, caption, false)
            for index, (sample, scene) in enumerate(zip(batch, facts.of(batch), strict=True))
            for caption in sample["captions"]
            for sort, false in exchanged(caption, scene)
        ]
        if asked:
            images, sorts, true, false = zip(*asked)
            likelier = log_likelihoods(model, encoding, images, true) > log_likelihoods(model, encoding, images, false)
            for sort, answer in zip(sorts, likelier.tolist()):
                found[sort].append(answer)
        seen += len(batch)
        if seen >= scenes:
            break
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", help="a checkpoint")
    parser.add_argument("--config-file", default=str(TINY_CONFIG), type=Path)
    parser.add_argument("--dataset", default="digit_scenes_captions_test", help="scenes with captions")
    parser.add_argument("--scenes", type=int, default=500, help="at most")
    args = parser.parse_args(arguments)
    cfg = load_config(str(args.config_file), ["MODEL.WEIGHTS", args.weights])
    found = known(cfg, load_model(cfg).eval(), args.dataset, args.scenes)
    rows = {
        sort: {"captions": str(len(found[sort])), "known": f"{100 * sum(found[sort]) / len(found[sort]):.1f}"}
        for sort in EXCHANGES
        if found[sort]
    }
    print(format_table("exchanged", rows))


if __name__ == "__main__":
    main()
