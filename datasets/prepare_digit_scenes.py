"""Prepares digit_scenes, the default training data: real handwriting composed into scenes.

    python datasets/prepare_digit_scenes.py [--output DIR] [--seed S]
                                            [--train-scenes 4000] [--test-scenes 500] [--development]
                                            [--leave-out PAIR ...] [--leave-out-phrases FORM ...]

Writes the tree that datasets/README.md describes, in some seconds and without a network. The same arguments give the
same bytes. A complete tree with the same arguments is not written again. A new tree is written beside its place and
moved there when it is complete, so that an interrupted run leaves no incomplete tree there.

The handwriting is the 1,797 samples of the UCI digits that come with scikit-learn. Training files use the first 1,297
samples only, test files the last 500 only.

With --development, the last 200 training samples are not used for training and replace the test handwriting. This tree,
used by DETECTRON2_DATASETS=datasets/development, serves to choose settings without the test files.

With --leave-out "red seven" or another colour and name, no training file shows or mentions such a digit. With
--leave-out-phrases extreme or relation, training phrases have no such words ("the largest digit", "above a three");
captions and corpus still have them. Test files stay as they are, so that they ask for what was left out
(experiments/open_labels.py).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from digit_scenes_annotations import (
    coco_captions,
    coco_instances,
    coco_panoptic,
    coco_phrases,
    lvis_instances,
    visual_genome,
    vqa,
)
from digit_scenes_clips import CLIP_CLASSES, FRAMES, draw_clip
from digit_scenes_drawing import (
    CLASS_NAMES,
    COLOURS_RGB,
    draw_scene,
    draw_single_digit,
    handwriting,
)
from digit_scenes_left_out import FORMS, NOTHING, LeftOut
from digit_scenes_phrases import describe, write_phrases
from digit_scenes_questions import write_questions
from digit_scenes_texts import Thing, write_captions, write_corpus

FORMAT_VERSION = 6  # increase it when a change makes the same arguments give other bytes, or another file
MANIFEST = "manifest.json"
SPLITS = ("train", "test")
SCENES_PER_CLIP = 5
FEWEST_FOR_PROCESSES = 500  # scenes: fewer are drawn before other processes have started
FIRST_IMAGE_ID = {"train": 1, "test": 1_000_001}  # ids are unique over both splits
# Seeds: (seed, stream of a split, index) draws a scene and its captions, (seed, _TEXT_STREAM) the corpus,
# (seed, _PHRASE_STREAM, stream of a split, index) a scene's phrases, with _QUESTION_STREAM its questions,
# with _CLIP_STREAM a clip.
_TEXT_STREAM, _PHRASE_STREAM, _QUESTION_STREAM, _CLIP_STREAM = 2, 5, 6, 7


class Source(NamedTuple):
    """The source of a split: its handwriting samples, the number of its random stream, and what it does not have."""

    samples: range
    stream: int
    left_out: LeftOut = NOTHING


SOURCES = {"train": Source(range(1297), 0), "test": Source(range(1297, 1797), 1)}
DEVELOPMENT_SOURCES = {"train": Source(range(1097), 3), "test": Source(range(1097, 1297), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    root = Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    parser.add_argument(
        "--output",
        type=Path,
        help=f"folder to write (default: {root}/digit_scenes or {root}/development/digit_scenes)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-scenes", type=int, default=4000)
    parser.add_argument("--test-scenes", type=int, default=500)
    parser.add_argument("--development", action="store_true", help="test on held out training handwriting")
    parser.add_argument("--leave-out", nargs="+", default=(), metavar="DIGIT", help='such as "red seven"; of training')
    parser.add_argument("--leave-out-phrases", nargs="+", default=(), choices=FORMS, help="forms; of training phrases")
    args = parser.parse_args()
    left_out = LeftOut(tuple(args.leave_out), tuple(args.leave_out_phrases))
    if any(left_out) and args.output is None:
        parser.error("--leave-out needs an --output of its own")
    output = args.output or (root / "development" if args.development else root) / "digit_scenes"
    started = time.perf_counter()
    try:
        written = prepare(output, args.seed, args.train_scenes, args.test_scenes, args.development, left_out)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    done = f"written in {time.perf_counter() - started:.1f} s" if written else "already there"
    print(f"digit_scenes: {output} ({args.train_scenes} + {args.test_scenes} scenes, {done})")


def prepare(
    output: Path,
    seed: int = 0,
    train_scenes: int = 4000,
    test_scenes: int = 500,
    development: bool = False,
    left_out: LeftOut = NOTHING,
) -> bool:
    """Writes a digit_scenes tree, or a development tree, to ``output``, its training files without ``left_out``.

    Returns:
        False if a complete tree with the same arguments is there already.

    Raises:
        ValueError: a split has fewer than one scene, the seed is negative, or no colour is left of a name.
        FileExistsError: ``output`` has files that this program did not write.
    """
    if train_scenes < 1 or test_scenes < 1 or seed < 0:
        raise ValueError("--train-scenes and --test-scenes must be positive, --seed not negative")
    if any({(colour, name) for colour in COLOURS_RGB} <= left_out.pairs for name in CLASS_NAMES):
        raise ValueError("--leave-out has to leave a colour of each name")
    output = Path(os.path.abspath(output))
    arguments = {
        "seed": seed,
        "train_scenes": train_scenes,
        "test_scenes": test_scenes,
        "version": FORMAT_VERSION,
        **({"development": True} if development else {}),
        **({"left_out": [list(left_out.digits), list(left_out.forms)]} if any(left_out) else {}),
    }
    manifest = _read_manifest(output)
    if manifest is None and output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty and has no {MANIFEST} of this program; remove it first")
    if manifest is not None and manifest["arguments"] == arguments and _is_whole(output, manifest):
        return False
    output.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(output)
    staging = output.parent / f".{output.name}.{os.getpid()}"
    try:
        sources = dict(DEVELOPMENT_SOURCES if development else SOURCES)
        sources["train"] = sources["train"]._replace(left_out=left_out)
        _write_tree(staging, seed, {"train": train_scenes, "test": test_scenes}, sources)
        _write_json(staging / MANIFEST, {"arguments": arguments, "files": _file_sizes(staging)})
        if output.exists():
            shutil.rmtree(output)
        os.rename(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return True


def _read_manifest(output: Path) -> dict | None:
    try:
        manifest = json.loads((output / MANIFEST).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return manifest if isinstance(manifest, dict) and {"arguments", "files"} <= manifest.keys() else None


def _file_sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def _is_whole(output: Path, manifest: dict) -> bool:
    found = _file_sizes(output)
    return all(found.get(name) == size for name, size in manifest["files"].items())


def _remove_abandoned(output: Path) -> None:
    """Deletes the folders that killed runs left beside ``output``. The name of such a folder ends with the id of its
    process."""
    for staging in output.parent.glob(f".{output.name}.*"):
        pid = staging.name.rsplit(".", 1)[-1]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(staging, ignore_errors=True)


def _write_tree(root: Path, seed: int, num_scenes: dict[str, int], sources: dict[str, Source]) -> None:
    for folder in (
        "annotations",
        "corpus",
        *(f"{kind}/{split}" for kind in ("images", "panoptic") for split in SPLITS),
    ):
        (root / folder).mkdir(parents=True)
    scenes = {split: _write_scenes(root, seed, split, num_scenes[split], sources[split]) for split in SPLITS}
    for split in SPLITS:
        _write_json(root / f"annotations/instances_{split}.json", coco_instances(scenes[split]))
        _write_json(root / f"annotations/captions_{split}.json", coco_captions(scenes[split]))
        _write_json(root / f"annotations/phrases_{split}.json", coco_phrases(scenes[split]))
        for name, content in visual_genome(scenes[split], split).items():
            _write_json(root / f"annotations/{name}_{split}.json", content)
        _write_json(root / f"annotations/panoptic_{split}.json", coco_panoptic(scenes[split]))
        for name, content in vqa(scenes[split]).items():
            _write_json(root / f"annotations/{name}_{split}.json", content)
        _write_json(root / f"annotations/lvis_{split}.json", lvis_instances(scenes[split], split, scenes["train"]))
        _write_clips(root, seed, split, -(-num_scenes[split] // SCENES_PER_CLIP), sources[split])
    _write_single_digits(root / "digits", sources)
    rng = np.random.default_rng([seed, _TEXT_STREAM])
    corpus = dict(zip(SPLITS, write_corpus(rng), strict=True))
    captions = {caption for scene in scenes["train"] for caption in scene["captions"]}
    corpus["test"] = [line for line in corpus["test"] if line not in captions]
    corpus["train"] = [line for line in corpus["train"] if not sources["train"].left_out.is_mentioned(line)]
    for split in SPLITS:
        (root / f"corpus/{split}.txt").write_text("\n".join(corpus[split]) + "\n")


def _write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))


def _write_png(path: Path, image_rgb: np.ndarray) -> None:
    # The lowest compression. Higher ones take longer and save only 5% of the size, as noise hardly compresses.
    _, encoded = cv2.imencode(".png", image_rgb[:, :, ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    path.write_bytes(encoded.tobytes())


def _write_scenes(root: Path, seed: int, split: str, count: int, source: Source) -> list[dict]:
    draw = partial(_write_scene, root, split, seed, FIRST_IMAGE_ID[split], source)
    if count < FEWEST_FOR_PROCESSES:
        return [draw(index) for index in range(count)]
    workers = min(os.cpu_count() or 1, 8)
    # Processes are spawned, as a fork would inherit locks of OpenCV's threads. In each process OpenCV uses one thread.
    start = {"mp_context": multiprocessing.get_context("spawn"), "initializer": cv2.setNumThreads, "initargs": (1,)}
    with ProcessPoolExecutor(workers, **start) as pool:
        return list(pool.map(draw, range(count), chunksize=50))


def _write_scene(root: Path, split: str, seed: int, first_id: int, source: Source, index: int) -> dict:
    """Draws, describes and writes one scene. Returns the facts that the annotation files need."""
    rng = np.random.default_rng([seed, source.stream, index])
    # The first ten scenes show one class each, so that even a tiny data set has images of every category.
    first_label = index if index < len(CLASS_NAMES) else None
    scene = draw_scene(rng, source.samples, first_label, source.left_out.pairs)
    image_id = first_id + index
    file_name = f"{image_id:012d}.png"
    _write_png(root / "images" / split / file_name, scene.image)
    # A segment's id is the place of its instance, from 1; the next number is the background's. A pixel has it as red.
    ids = np.where(scene.owner < 0, len(scene.instances), scene.owner) + 1
    _write_png(root / "panoptic" / split / file_name, np.stack([ids, 0 * ids, 0 * ids], axis=2).astype(np.uint8))
    things = [Thing(CLASS_NAMES[i.label], i.colour, i.box, i.is_crowd) for i in scene.instances]
    phrase_rng = np.random.default_rng([seed, _PHRASE_STREAM, source.stream, index])
    questions = write_questions(things, np.random.default_rng([seed, _QUESTION_STREAM, source.stream, index]))
    return {
        "id": image_id,
        "file_name": file_name,
        "instances": scene.instances,
        "areas": np.bincount(ids.ravel(), minlength=len(scene.instances) + 2)[1:].tolist(),
        "captions": write_captions(things, rng),
        "phrases": write_phrases(things, phrase_rng, lambda text: not source.left_out.is_mentioned(text, True)),
        "regions": [() if thing.is_crowd else describe(thing) for thing in things],
        "questions": [asked for asked in questions if not source.left_out.is_mentioned(asked[0])],
    }


def _write_clips(root: Path, seed: int, split: str, count: int, source: Source) -> None:
    """Kinetics' table of clips, with a folder of frames in place of each video. All classes are equally frequent."""
    lines = ["label,youtube_id,time_start,time_end,split"]
    for index in range(count):
        number = index % len(CLIP_CLASSES)
        folder = root / "clips" / split / f"clip{index:07d}_000000_{FRAMES:06d}"
        folder.mkdir(parents=True)
        frames = draw_clip(np.random.default_rng([seed, _CLIP_STREAM, source.stream, index]), source.samples, number)
        for place, frame in enumerate(frames):
            _write_png(folder / f"{place:03d}.png", frame)
        lines.append(f"{CLIP_CLASSES[number]},clip{index:07d},0,{FRAMES},{split}")
    (root / f"annotations/clips_{split}.csv").write_text("\n".join(lines) + "\n")


def _write_single_digits(root: Path, sources: dict[str, Source]) -> None:
    """An ImageNet-style tree, root/<split>/<class name>/<handwriting sample>.png."""
    labels = handwriting()[1]
    for split, source in sources.items():
        for name in CLASS_NAMES:
            (root / split / name).mkdir(parents=True)
        for sample_id in source.samples:
            name = CLASS_NAMES[labels[sample_id]]
            _write_png(root / split / name / f"{sample_id:04d}.png", draw_single_digit(sample_id))


if __name__ == "__main__":
    main()
