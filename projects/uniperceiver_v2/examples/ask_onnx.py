"""Asks an exported model about pictures, without PyTorch: onnxruntime, numpy, pillow and tokenizers are all it needs.

    python -m uniperceiver_v2.export --output output/onnx
    python ask_onnx.py output/onnx picture.jpg --labels "zero, a red seven" --tasks detect,classify,caption

The file stands alone: copy it beside your own program. docs/export.md describes the exported files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageOps
from tokenizers import Tokenizer

TASKS = ("detect", "ground", "classify", "caption")


class Found(NamedTuple):
    """An object: its label, its score, its box (absolute XYXY in the picture), and the number of its proposal."""

    label: str
    score: float
    box: tuple[float, ...]
    proposal: int


class Picture(NamedTuple):
    """A picture and the outputs of image.onnx for it."""

    image: Image.Image
    seen: tuple[int, int]  # (height, width) as the model saw it
    outputs: dict[str, np.ndarray]


class Model:
    """The files of a directory in one precision.

    Args:
        directory: as ``python -m uniperceiver_v2.export`` wrote it.
        precision: "fp32", "fp16" or "int8".
        threads: of the processor; 0 takes all cores.
    """

    def __init__(self, directory: str | Path, precision: str = "fp32", threads: int = 0):
        self.directory, self.precision = Path(directory), precision
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.about = json.loads((self.directory / "model.json").read_text(encoding="utf-8"))
        if precision not in self.about["precisions"]:
            raise ValueError(f"{directory} has the precisions {', '.join(self.about['precisions'])}, not {precision}")
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        told = self.about["tokenizer"]
        self.tokenizer = Tokenizer.from_file(str(self.directory / told["file"]))
        self.tokenizer.encode_special_tokens = True  # "<mask>" in a label is letters
        self.tokenizer.enable_truncation(told["max_length"])
        self.tokenizer.enable_padding(pad_id=told["padding"])

    def run(self, part: str, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs of a part by their names. A part is loaded when it is first asked for."""
        about = self.about["parts"][part]
        if part not in self._sessions:
            file = str(self.directory / about["files"][self.precision])
            providers = onnxruntime.get_available_providers()
            self._sessions[part] = onnxruntime.InferenceSession(file, self.options, providers=providers)
        return dict(zip(about["outputs"], self._sessions[part].run(None, dict(zip(about["inputs"], inputs)))))

    def look(self, image: Image.Image, view: str = "whole") -> Picture:
        """A picture as detection and captions see it, or with the view "square" as classification does."""
        resized = self._square(image) if view == "square" else self._whole(image)
        pixels = np.asarray(resized)
        if self.about["preprocessing"]["channel_order"] == "BGR":
            pixels = pixels[:, :, ::-1]
        return Picture(
            image, pixels.shape[:2], self.run("image", np.ascontiguousarray(pixels.transpose(2, 0, 1))[None])
        )

    def _whole(self, image: Image.Image) -> Image.Image:
        told = self.about["preprocessing"]["whole"]
        return _resized(image, told["shorter_side"], told["longer_side_at_most"])

    def _square(self, image: Image.Image) -> Image.Image:
        told = self.about["preprocessing"]["square"]
        resized, side = _resized(image, told["shorter_side"], sys.maxsize), told["centre"]
        left, top = ((length - side) // 2 for length in resized.size)
        return resized.crop((left, top, left + side, top + side))

    def directions(self, texts: Sequence[str]) -> np.ndarray:
        """Features [C,d] of texts."""
        encoded = self.tokenizer.encode_batch(list(texts))
        ids = np.array([one.ids for one in encoded], np.int64)
        return self.run("text", ids, np.array([one.attention_mask for one in encoded], bool))["text_features"]

    def _likelihoods(self, features: np.ndarray, texts: Sequence[str], task: str) -> np.ndarray:
        return features @ self.directions(texts).T / self.about["temperatures"][task]

    def detect(self, picture: Picture, labels: Sequence[str], threshold: float = 0.3) -> list[Found]:
        """Objects with at least this score, best first: objectness times the probability of the label, calibrated."""
        told = self.about["detection"]
        texts = [told["prompt"].format(label) for label in labels]
        probable = _softmax(self._likelihoods(picture.outputs["proposal_features"][0], texts, "detection"))
        scores = picture.outputs["objectness"][0][:, None] * probable  # [O,C]
        best = np.argsort(-scores, axis=None, kind="stable")[: told["per_image"]]
        pairs = zip(*np.unravel_index(best, scores.shape))
        scores = _calibrated(scores, told["score_temperature"])
        return [self._found(picture, labels[c], scores[o, c], o) for o, c in pairs if scores[o, c] >= threshold]

    def ground(self, picture: Picture, phrases: Sequence[str], threshold: float = 0.3) -> list[Found]:
        """The objects that phrases mean. A phrase is compared with "none" alone, so phrases do not compete."""
        told = self.about["grounding"]
        texts = (told["none"], *phrases)
        logits = self._likelihoods(picture.outputs["proposal_features"][0], texts, "grounding")
        scores = picture.outputs["objectness"][0][:, None] / (1 + np.exp(logits[:, :1] - logits[:, 1:]))
        found = []
        for place, phrase in enumerate(phrases):
            for o in np.argsort(-scores[:, place], kind="stable")[: told["per_phrase"]]:
                if scores[o, place] >= threshold:
                    found.append(self._found(picture, phrase, scores[o, place], o))
        return found

    def classify(self, image: Image.Image, labels: Sequence[str]) -> dict[str, float]:
        """The probability of each label for the square at the centre of an image."""
        told = self.about["classification"]
        prompts = (told["prompt"], *told["further_prompts"])
        mean = sum(self.directions([prompt.format(label) for label in labels]) for prompt in prompts)
        mean /= np.linalg.norm(mean, axis=1, keepdims=True)
        features = self.look(image, "square").outputs["image_features"]
        probable = _softmax(features @ mean.T / self.about["temperatures"]["classification"])[0]
        return dict(zip(labels, probable.tolist()))

    def mask(self, picture: Picture, found: Found) -> np.ndarray:
        """The pixels of an object, bool [height, width] of the picture."""
        return self._inside(picture, found.proposal, found.box, picture.image.size)

    def _inside(self, picture: Picture, proposal: int, box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
        """The pixels of a proposal in the picture at a (width, height). The box is of that size."""
        multiple = self.about["preprocessing"]["padded_to_multiples_of"]
        height, width = picture.seen
        padded = (-(-width // multiple) * multiple, -(-height // multiple) * multiple)
        logits = Image.fromarray(picture.outputs["masks"][0, proposal].astype(np.float32))
        own = logits.resize(padded, Image.Resampling.BILINEAR).crop((0, 0, width, height))
        inside = np.asarray(own.resize(size, Image.Resampling.BILINEAR)) > 0
        if self.about["detection"]["masks_end_at_boxes"]:
            x0, y0, x1, y1 = box
            rows, columns = (np.arange(length) for length in inside.shape)
            inside = inside & ((rows + 1 > y0) & (rows < y1))[:, None] & ((columns + 1 > x0) & (columns < x1))
        return inside

    def caption(self, picture: Picture, beams: int | None = None) -> tuple[str, float]:
        """A caption and its log-likelihood, by beam search; one beam is greedy search."""
        told, end = self.about["captioning"], self.about["tokenizer"]["end"]
        beams = told["beams"] if beams is None else beams
        step, tokens = _Steps(self, picture), np.array([self.about["tokenizer"]["start"]])
        rows, sums, said = np.array([0]), np.zeros(1), [[]]
        best: tuple[float, float, list[int]] = (-np.inf, -np.inf, [])
        for length in range(1, told["max_length"] + 1):
            totals = sums[:, None] + step(tokens, rows)
            order = np.argsort(-totals, axis=None, kind="stable")[: 2 * beams if beams > 1 else 1]
            tried = [
                (totals[row, word], row, [*said[row], int(word)])
                for row, word in zip(*np.unravel_index(order, totals.shape))
            ]
            ended = [length == told["max_length"] or words[-1] == end for _, _, words in tried]
            for (total, _, words), over in list(zip(tried, ended))[:beams]:
                score = total / length ** told["length_penalty"]
                if over and score > best[0]:
                    best = (score, total, words)
            going = [one for one, over in zip(tried, ended) if not over and np.isfinite(one[0])][:beams]
            reach = told["max_length"] if told["length_penalty"] > 0 else length + 1
            if not going or going[0][0] / reach ** told["length_penalty"] <= best[0]:
                break
            sums, rows = np.array([total for total, _, _ in going]), np.array([row for _, row, _ in going])
            said = [words for _, _, words in going]
            tokens = np.array([words[-1] for words in said])
        return self.tokenizer.decode(best[2], skip_special_tokens=True).strip(), float(best[1])

    def _found(self, picture: Picture, label: str, score: float, proposal: int) -> Found:
        height, width = picture.seen
        box = picture.outputs["boxes"][0, proposal].clip(0, [width, height, width, height])
        if self.about["detection"]["boxes_around_masks"]:
            inside = self._inside(picture, proposal, box, (width, height))
            rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
            if len(rows):
                box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        box = box * np.tile(np.divide(picture.image.size, (width, height)), 2)
        return Found(label, float(score), tuple(box.tolist()), int(proposal))


class _Steps:
    """log P [N,V] of the next words of N captions of a picture; call it with their last words, and the rows of the call
    before that they continue."""

    def __init__(self, model: Model, picture: Picture):
        self.model, inputs = model, model.about["parts"]["caption_step"]["inputs"]
        begin = model.about["parts"]["caption_begin"]["inputs"]
        begun = model.run("caption_begin", *(picture.outputs[name] for name in begin))
        empty = {"captions": 1, "words": 0}
        pasts = (np.zeros([empty.get(x, x) for x in inputs[name]], np.float32) for name in ("text_past", "word_past"))
        self.image, self.valid, (self.texts, self.words) = begun["image_past"], begun["image_valid"], pasts

    def __call__(self, tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if len(rows) != len(self.valid):  # all captions are of one picture
            self.image, self.valid = self.image[:, :, rows], self.valid[rows]
        texts, words = self.texts[:, :, rows], self.words[:, :, rows]
        found = self.model.run("caption_step", tokens.astype(np.int64), self.image, self.valid, texts, words)
        self.texts, self.words = found["new_text_past"], found["new_word_past"]
        return found["log_probabilities"].astype(np.float64)


def _resized(image: Image.Image, shorter: int, longest: int) -> Image.Image:
    """The image with this shorter side, or a smaller one where the longer side would be longer than ``longest``."""
    if shorter == 0:
        return image
    scale = shorter / min(image.size)
    sides = [shorter if side == min(image.size) else side * scale for side in image.size]
    if max(sides) > longest:
        sides = [side * (longest / max(sides)) for side in sides]
    return image.resize([max(1, int(side + 0.5)) for side in sides], Image.Resampling.BILINEAR)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _calibrated(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Scores with their logits divided by the temperature, which leaves their order."""
    with np.errstate(divide="ignore"):  # at 0 and 1
        logits = np.log(scores) - np.log1p(-scores)
    return 1 / (1 + np.exp(-logits / temperature))


def opened(path: str) -> Image.Image:
    """A picture, upright, in RGB."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def drawn(model: Model, picture: Picture, found: list[Found]) -> Image.Image:
    """The picture with masks, boxes and names."""
    pixels = np.array(picture.image)
    for one in found if model.about["detection"]["masks"] else []:
        inside = model.mask(picture, one)
        pixels[inside] = pixels[inside] // 2 + np.array([0, 100, 60], np.uint8)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    for one in found:
        pen.rectangle(one.box, outline=(0, 255, 120))
        pen.text(
            one.box[:2], f"{one.label} {one.score:.0%}", fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0)
        )
    return image


def main(argv: Sequence[str] | None = None) -> int:
    """The program. Returns its exit code."""
    parser = argparse.ArgumentParser(description="Ask an exported model about pictures, without PyTorch.")
    parser.add_argument("directory", help="of the exported files")
    parser.add_argument("pictures", nargs="+", metavar="picture")
    parser.add_argument("--labels", metavar="LIST", help='names to choose from, such as "cat, a red seven"')
    parser.add_argument("--phrases", metavar="LIST", help='for ground, such as "the red seven on the left"')
    parser.add_argument("--tasks", metavar="LIST", help=f"of {','.join(TASKS)}, by default detect,caption")
    parser.add_argument("--precision", default="fp32", help="fp32, fp16 or int8")
    parser.add_argument("--confidence-threshold", type=float, default=0.3, metavar="SCORE")
    parser.add_argument("--output", metavar="FOLDER", help="for pictures with the objects that were found")
    args = parser.parse_args(argv)
    tasks = _list(args.tasks) or ["detect", "caption", *(["ground"] if args.phrases else [])]
    if set(tasks) - set(TASKS) or ("ground" in tasks) != bool(args.phrases):
        parser.error(f"--tasks are of {','.join(TASKS)}, and ground goes with --phrases")
    try:
        model = Model(args.directory, args.precision)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    answered = [_answer(model, path, tasks, args) for path in args.pictures]
    return 0 if any(answered) else 1


def _answer(model: Model, path: str, tasks: list[str], args: argparse.Namespace) -> bool:
    """Print the answers about a picture. False if it cannot be read."""
    try:
        image = opened(path)
    except (OSError, ValueError, SyntaxError) as error:
        print(f"skipped: {path}: {error}")
        return False
    found, picture = [], model.look(image)
    if "detect" in tasks:
        found += model.detect(
            picture, _list(args.labels) or model.about["labels"]["detection"], args.confidence_threshold
        )
    if "ground" in tasks:
        found += model.ground(picture, _list(args.phrases), args.confidence_threshold)
    for one in found:
        print(f"{path}: {one.label} {one.score:.3f} at {', '.join(f'{x:.1f}' for x in one.box)}")
    if "classify" in tasks:
        scores = model.classify(image, _list(args.labels) or model.about["labels"]["classification"])
        print(f"{path}: " + ", ".join(f"{label} {p:.1%}" for label, p in sorted(scores.items(), key=lambda x: -x[1])))
    if "caption" in tasks:
        text, log_likelihood = model.caption(picture)
        print(f"{path}: {text} (log-likelihood {log_likelihood:.2f})")
    if args.output:
        Path(args.output).mkdir(parents=True, exist_ok=True)
        drawn(model, picture, found).save(Path(args.output) / f"{Path(path).stem}.png")
    return True


def _list(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
