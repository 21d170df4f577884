"""Asks a trained model about pictures, videos or a camera, and draws its answers.

    python demo.py --input PICTURE FOLDER "photos/*.jpg" --output FOLDER [--sheet sheet.png]
    python demo.py --video-input VIDEO --output FOLDER
    python demo.py --webcam

The model is one of the zoo (--zoo), or a run's: --config-file output/RUN/config.yaml --opts MODEL.WEIGHTS
output/RUN/model_final.pth. Options are those of Detectron2's demo and a few more, and docs/demo.md describes them.
Beside each picture NAME.png in --output lies NAME.json with the same answers.
"""

from __future__ import annotations

import glob
import os
import sys
import time
from argparse import REMAINDER, ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from answers import Answer, Questions, questions_of
from PIL import Image
from tqdm import tqdm
from videos import Frames, VideoFile, require_display, show

from uniperceiver_v2.config import load_config
from uniperceiver_v2.errors import UnreadableImage, UserError, exit_code
from uniperceiver_v2.files import write_atomically, write_json
from uniperceiver_v2.predictor import THRESHOLD, BadImages, Predictor, learned
from uniperceiver_v2.predictor.inputs import path_of
from uniperceiver_v2.reading.images import picture_endings
from uniperceiver_v2.visualization import draw_sheet

DEFAULT_MODEL = "digit_scenes/small"
ON_SHEET, SHEET_SIDE = 24, 360  # pictures, and pixels of each
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")


def parser() -> ArgumentParser:
    options = ArgumentParser(description="Ask a trained model about pictures, videos or a camera.")
    model = options.add_mutually_exclusive_group()
    model.add_argument(
        "--zoo", metavar="NAME", help=f"a model of the zoo, by default {DEFAULT_MODEL}, or its directory"
    )
    model.add_argument("--config-file", metavar="FILE", help="settings of a run; weights are its MODEL.WEIGHTS")
    source = options.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", metavar="PATH", help='pictures, folders, or patterns such as "a/*.jpg"')
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument("--webcam", action="store_true", help="the first camera")
    options.add_argument("--output", metavar="PATH", help="a folder or a file; without it, answers show in a window")
    options.add_argument("--sheet", metavar="FILE", help=f"a PNG file of the first {ON_SHEET} pictures with answers")
    options.add_argument(
        "--tasks", metavar="LIST", help='of "detect,ground,caption,classify", by default detect,caption'
    )
    options.add_argument("--labels", metavar="LIST", help='names to choose from, such as "cat, a red seven"')
    options.add_argument("--phrases", metavar="LIST", help='to look for, such as "the red seven on the left"')
    options.add_argument(
        "--confidence-threshold", type=float, default=THRESHOLD, metavar="SCORE", help="of objects, in 0..1"
    )
    options.add_argument("--opts", nargs=REMAINDER, default=[], metavar="KEY VALUE", help="settings, at the very end")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """The program. Returns its exit code: 1 if nothing could be answered."""
    args = parser().parse_args(argv)
    sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text
    return exit_code(lambda: run(args))


def run(args: Namespace) -> int:
    """
    Raises:
        UserError: an option, the model or the whole input cannot be used.
        OSError: a file cannot be written.
    """
    questions = questions_of(args.tasks, args.labels, args.phrases, args.confidence_threshold)
    if args.output is None and not args.sheet:
        require_display()
    if not args.input:
        return run_frames(args, questions)
    paths = expand(args.input)
    outputs = names_of_outputs(paths, args.output) if args.output else {}
    return answer_pictures(load(args, questions), paths, outputs, questions, args)


def run_frames(args: Namespace, questions: Questions) -> int:
    """The program for a video or a camera."""
    if args.sheet:
        raise UserError("--sheet shows pictures: it goes with --input")
    output = name_of_video(args) if args.output else None
    frames = Frames(0 if args.webcam else os.path.expanduser(args.video_input))
    try:
        count = answer_frames(load(args, questions), frames, questions, output)
    finally:
        frames.close()
    if not count:
        raise UserError(f"{args.video_input or 'the camera'} has no frame that can be read")
    if output is not None:
        promised = f" (of {frames.count} that the file promises)" if frames.count and frames.count != count else ""
        print(f"{count} frames answered{promised}: {output}, {output.with_suffix('.jsonl')}", flush=True)
    return 0


def load(args: Namespace, questions: Questions) -> Predictor:
    """The model, with a line that says what it has learned."""
    if args.config_file:
        predictor = Predictor(load_config(args.config_file, args.opts, training=False, datasets=False))
    else:
        device = None
        if args.opts:
            if len(args.opts) != 2 or args.opts[0] != "MODEL.DEVICE":
                raise UserError(
                    "--opts: of a model of the zoo, only MODEL.DEVICE may be set; others need --config-file"
                )
            device = args.opts[1]
        name = os.path.expanduser(args.zoo or DEFAULT_MODEL)
        known = Predictor.from_pretrained if os.path.isdir(name) else Predictor.from_zoo
        predictor = known(name, device=device)
    print(f"{learned(predictor)} Others are loaded by --zoo or --config-file.", flush=True)
    for task in questions.untrained(predictor):
        print(f'It was not trained to "{task}": these answers mean nothing.', flush=True)
    return predictor


def expand(given: Iterable[str]) -> list[str]:
    """The paths of files, of all pictures in folders, and of all files that patterns name, each once.

    A path that is no file stays, to be named when it is read.

    Raises:
        UserError: nothing is left.
    """
    pictures = picture_endings()
    paths: list[str] = []
    for text in given:
        path = path_of(text)
        if os.path.isdir(path):
            names = sorted(name for name in os.listdir(path) if name.lower().endswith(pictures) and name[0] != ".")
            paths += [os.path.join(path, name) for name in names]
        elif os.path.exists(path) or not glob.has_magic(path):
            paths.append(path)
        else:
            paths += sorted(found for found in glob.glob(path, recursive=True) if os.path.isfile(found))
    if not paths:
        raise UserError(f"--input: there are no pictures in {', '.join(given)}")
    return list(dict.fromkeys(paths))


def names_of_outputs(paths: Sequence[str], output: str) -> dict[str, Path]:
    """The file of each picture's answers, {path: file}. Pictures of the same name are numbered.

    Args:
        paths: of the pictures.
        output: a file for a single picture, or a folder, which is created.

    Raises:
        UserError: a picture would be overwritten, or several would go to one file.
    """
    place = Path(output).expanduser()
    if place.suffix.lower() in Image.registered_extensions() and not place.is_dir():
        if len(paths) > 1:
            raise UserError(f"--output {output} is one file, but there are {len(paths)} pictures: name a folder")
        files = [place]
    else:
        files, taken = [], set()
        for path in paths:
            stem = name = Path(path).stem or "picture"
            number = 1
            while name.lower() in taken:  # some file systems do not tell capitals
                number += 1
                name = f"{stem}_{number}"
            taken.add(name.lower())
            files.append(place / f"{name}.png")
    originals = {os.path.realpath(path) for path in paths}
    for file in files:
        if os.path.realpath(file) in originals:
            raise UserError(f"--output {output} would overwrite the picture {file}: name another folder")
        file.parent.mkdir(parents=True, exist_ok=True)
    return dict(zip(paths, files))


def answer_pictures(
    predictor: Predictor, paths: Sequence[str], outputs: dict[str, Path], questions: Questions, args: Namespace
) -> int:
    """Answer the questions about all pictures. Those that cannot be read are named and skipped."""
    started, answered, cards = time.perf_counter(), 0, []
    with tqdm(total=len(paths), unit="picture", disable=None) as bar:

        def say(text: str) -> None:
            bar.write(text, file=sys.stdout)

        for path, pixels, answer in answers_of(predictor, paths, questions, say, bar.update):
            answered += 1
            say(f"{path}: {answer}")
            if path in outputs:
                save(answer.card(pixels), outputs[path])
                write_json(str(outputs[path].with_suffix(".json")), {"file_name": path, **answer.to_json()})
            elif not args.sheet and not show(answer.card(pixels, path), 0):
                break
            if args.sheet and len(cards) < ON_SHEET:
                cards.append(
                    answer.card(pixels, os.path.basename(path).encode("utf-8", "replace").decode(), SHEET_SIDE)
                )
    if args.sheet and cards:
        save(draw_sheet(cards, learned(predictor)), Path(args.sheet).expanduser(), ".png")
    skipped = len(paths) - answered
    where = f" Answers: {args.output}." if args.output and answered else ""
    sheet = f" Sheet: {args.sheet}." if args.sheet and cards else ""
    print(f"{answered} answered, {skipped} skipped, {time.perf_counter() - started:.1f} s.{where}{sheet}", flush=True)
    return 0 if answered else 1


def answers_of(
    predictor: Predictor,
    paths: Sequence[str],
    questions: Questions,
    say: Callable[[str], None],
    done: Callable[[int], Any],
) -> Iterator[tuple[str, Any, Answer]]:
    """(path, pixels, answer) of each readable picture. A batch of them is in memory at a time, in the model's size.

    Args:
        say: gets a sentence about each other picture.
        done: gets the number of pictures that are done.
    """
    size = predictor.cfg.TEST.IMS_PER_BATCH
    for start in range(0, len(paths), size):
        batch = list(paths[start : start + size])
        try:
            images = predictor.encode(batch)
        except BadImages as error:
            for place, sentence in error.failures.items():
                hint = " (a video? --video-input)" if batch[place].lower().endswith(VIDEOS) else ""
                say(f"skipped: {sentence}{hint}")
            done(len(error.failures))
            batch = [path for place, path in enumerate(batch) if place not in error.failures]
            images = error.results.readable()
        for path, source, answer in zip(batch, images.sources, questions.answers(predictor, images)):
            try:
                pixels = source.pixels()
            except UnreadableImage as error:  # it was removed in the meantime
                say(f"skipped: {error}")
                continue
            finally:
                done(1)
            yield path, pixels, answer


def save(picture: Image.Image, path: Path, default: str = "") -> None:
    """
    Raises:
        UserError: the name's ending is no format of pictures.
        OSError: it cannot be written.
    """
    kind = Image.registered_extensions().get((path.suffix or default).lower())
    if kind not in Image.SAVE:
        raise UserError(f"{path} cannot be written: its name ends with no format that pictures are written in")
    write_atomically(str(path), lambda file: picture.save(file, kind))


def answer_frames(predictor: Predictor, frames: Frames, questions: Questions, output: Path | None) -> int:
    """Answer the questions about each frame, and write a video or show it in a window. Returns the number of frames."""
    count = 0

    def answered() -> Iterator[tuple[Image.Image, dict[str, Any]]]:
        nonlocal count
        for pixels in tqdm(frames, total=frames.count, unit="frame", disable=None):
            (answer,) = questions.answers(predictor, predictor.encode([pixels]))
            yield answer.card(pixels), {"frame": count, "seconds": count / frames.rate, **answer.to_json()}
            count += 1

    if output is None:
        for card, _ in answered():
            if not show(card, 1):
                return count + 1
    else:
        with VideoFile(output, frames.rate) as video:
            for card, content in answered():
                video.add(card, content)
    return count


def name_of_video(args: Namespace) -> Path:
    """The file of the answers; its folder is created.

    Raises:
        UserError: it is no MP4 file, or the video itself.
    """
    path = Path(args.output).expanduser()
    if path.is_dir() or not path.suffix:
        path = path / f"{Path(args.video_input).stem if args.video_input else 'webcam'}.mp4"
    if path.suffix.lower() != ".mp4":
        raise UserError(f"--output {args.output}: videos are written as .mp4, or name a folder")
    if args.video_input and os.path.realpath(path) == os.path.realpath(os.path.expanduser(args.video_input)):
        raise UserError(f"--output {args.output} would overwrite the video: name another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main())
