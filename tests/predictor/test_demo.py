"""The demo on pictures: its files, its sentences, and what it refuses."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as run_lengths

from uniperceiver_v2 import Predictor

ROOT = Path(__file__).parents[2]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_json_and_pictures_hold_the_predictors_answers(demo, directory, files, tmp_path):
    output = tmp_path / "output"
    asked = [
        "--tasks",
        "detect,caption,classify",
        "--phrases",
        "a red seven, the two",
        "--confidence-threshold",
        "0.02",
    ]
    assert demo("--zoo", directory, "--input", *files, "--output", output, *asked) == 0
    predictor = Predictor.from_pretrained(directory)
    for path in files:
        content = read(output / f"{Path(path).stem}.json")
        found, grounded = (
            predictor.detect(path, threshold=0.02),
            predictor.ground(path, ["a red seven", "the two"], threshold=0.02),
        )
        assert content["file_name"] == path
        assert (content["height"], content["width"]) == found.size
        for rows, expected in ((content["objects"], found), (content["phrases"], grounded)):
            assert [row["label"] for row in rows] == [box.label for box in expected]
            np.testing.assert_allclose([row["score"] for row in rows], expected.scores, atol=1e-4)
            for row, mask in zip(rows, expected.instances.pred_masks.numpy(), strict=True):
                assert np.mean(run_lengths.decode(row["segmentation"]) != mask) < 0.01
        assert len(content["objects"]) > 0
        caption = predictor.caption(path)
        assert content["caption"]["text"] == caption.text
        assert content["caption"]["log_likelihood"] == pytest.approx(caption.log_likelihood, abs=1e-3)
        top = predictor.classify(path).top(3)
        assert [entry["label"] for entry in content["classes"]] == [label for label, _ in top]
        with Image.open(output / f"{Path(path).stem}.png") as picture:
            assert picture.width >= 2 * 384  # two panels of an enlarged picture


def test_the_documents_json_has_the_keys_that_are_written(demo, directory, files, tmp_path):
    text = (ROOT / "docs/demo.md").read_text(encoding="utf-8")
    (example,) = (json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    options = ("--tasks", "detect,caption,classify", "--phrases", "a two", "--confidence-threshold", 0.02)
    assert demo("--zoo", directory, "--input", files[0], "--output", tmp_path / "x.png", *options) == 0
    content = read(tmp_path / "x.json")
    for found, told in (
        (content, example),
        (content["objects"][0], example["objects"][0]),
        (content["objects"][0]["segmentation"], example["objects"][0]["segmentation"]),
        (content["caption"], example["caption"]),
        (content["classes"][0], example["classes"][0]),
    ):
        assert {key: type(value) for key, value in found.items()} == {key: type(value) for key, value in told.items()}


def test_a_picture_without_objects_has_its_size_in_json(demo, directory, files, tmp_path):
    where = tmp_path / "one.jpg"
    options = ("--tasks", "detect", "--confidence-threshold", 1)
    assert demo("--zoo", directory, "--input", files[0], "--output", where, *options) == 0
    assert read(where.with_suffix(".json")) == {"file_name": files[0], "height": 48, "width": 60, "objects": []}
    assert Image.open(where).format == "JPEG"


def test_bad_pictures_are_named_and_skipped(demo, directory, files, tmp_path, capsys, monkeypatch):
    encoded, encode = [], Predictor.encode
    monkeypatch.setattr(
        Predictor, "encode", lambda self, images, **options: encoded.extend(images) or encode(self, images, **options)
    )
    broken, text = tmp_path / "broken.png", tmp_path / "notes.jpg"
    broken.write_bytes(Path(files[0]).read_bytes()[:200])
    text.write_text("no picture")
    gone, movie = tmp_path / "gone.png", tmp_path / "film.mp4"
    movie.write_bytes(b"no film")
    given = (files[0], broken, files[1], text, gone, files[2], movie, files[3])
    assert demo("--zoo", directory, "--input", *given, "--output", tmp_path / "output") == 0
    assert sorted(path.name for path in (tmp_path / "output").glob("*.json")) == [
        "0.json",
        "1.json",
        "2.json",
        "3.json",
    ]
    assert [Path(path).name for path in encoded] == [Path(path).name for path in given]  # each once
    skipped = [line for line in capsys.readouterr().out.splitlines() if line.startswith("skipped: ")]
    assert [next(path.name for path in (broken, text, gone, movie) if path.name in line) for line in skipped] == [
        "broken.png",
        "notes.jpg",
        "gone.png",
        "film.mp4",
    ]
    assert "--video-input" in skipped[-1]


def test_pictures_as_people_have_them(demo, directory, picture_files, photograph, bad_files, tmp_path, capsys):
    bad = [path for path in bad_files if not Path(path).is_dir()]  # of a folder, its pictures are meant
    given = [*picture_files, *bad, photograph]
    sizes = {**{path: pixels.shape[:2] for path, pixels in picture_files.items()}, photograph: (3000, 4000)}
    options = ("--tasks", "detect,classify", "--confidence-threshold", 0.05)
    assert demo("--zoo", directory, "--input", *given, "--output", tmp_path / "output", *options) == 0
    lines = capsys.readouterr().out.splitlines()
    contents = {path: read(path) for path in (tmp_path / "output").glob("*.json")}
    assert {content["file_name"]: (content["height"], content["width"]) for content in contents.values()} == sizes
    for path, content in contents.items():
        height, width = content["height"], content["width"]
        assert len(content["classes"]) == 3
        for row in content["objects"]:
            assert row["segmentation"]["size"] == [height, width]
            left, top, *size = row["bbox"]
            assert left + size[0] <= width + 1e-3 and top + size[1] <= height + 1e-3, content["file_name"]
        with Image.open(path.with_suffix(".png")) as picture:
            assert max(picture.size) <= 1700
    skipped = [line for line in lines if line.startswith("skipped: ")]
    assert all(Path(path).name in line for path, line in zip(bad, skipped, strict=True))


def test_only_bad_pictures_are_a_failure(demo, directory, tmp_path, capsys):
    assert demo("--zoo", directory, "--input", tmp_path / "gone.png", "--output", tmp_path / "output") == 1
    assert "0 answered, 1 skipped" in capsys.readouterr().out


def test_answers_do_not_depend_on_the_neighbours(demo, directory, files, tmp_path):
    assert (
        demo("--zoo", directory, "--input", *files[1:4], "--output", tmp_path / "all", "--confidence-threshold", 0) == 0
    )
    assert demo("--zoo", directory, "--input", files[3], "--output", tmp_path / "x", "--confidence-threshold", 0) == 0
    one, other = read(tmp_path / "all" / "3.json"), read(tmp_path / "x" / "3.json")
    assert one["caption"]["text"] == other["caption"]["text"]
    np.testing.assert_allclose(
        [row["score"] for row in one["objects"]], [row["score"] for row in other["objects"]], atol=1e-4
    )


def test_folders_patterns_and_strange_names(demo_module, tmp_path):
    expand = demo_module("demo").expand
    folder = tmp_path / "my pictures" / "ö"
    folder.mkdir(parents=True)
    for name in ("b.PNG", "ä b.jpg", "[1].png", ".hidden.png", "notes.txt"):
        (folder / name).touch()
    assert [Path(path).name for path in expand([str(folder)])] == ["[1].png", "b.PNG", "ä b.jpg"]
    assert expand([f"{tmp_path}/**/ä*"]) == [str(folder / "ä b.jpg")]
    bracketed = str(folder / "[1].png")
    assert expand([bracketed, bracketed]) == [bracketed]
    assert expand([(folder / "b.PNG").as_uri()]) == [str(folder / "b.PNG")]
    assert expand([str(tmp_path / "gone.png")]) == [str(tmp_path / "gone.png")]  # to be named when it is read


def test_pictures_of_one_name_get_files_of_their_own(demo_module, tmp_path):
    names = demo_module("demo").names_of_outputs(["a/x.png", "b/x.jpg", "c/X.png"], str(tmp_path / "new" / "folder"))
    assert [path.name for path in names.values()] == ["x.png", "x_2.png", "X_3.png"]
    assert (tmp_path / "new" / "folder").is_dir()


def test_a_runs_settings_with_overrides(demo, predictor, directory, files, tmp_path, capsys):
    import torch

    config, weights = tmp_path / "config.yaml", tmp_path / "model_final.pth"
    config.write_text(predictor.cfg.dump())
    torch.save({"model": predictor.model.state_dict()}, weights)
    options = ("--output", tmp_path / "output", "--labels", "cat, a red seven", "--confidence-threshold", 0)
    settings = ("--opts", "MODEL.WEIGHTS", weights, "TEST.DETECTIONS_PER_IMAGE", 5)
    assert demo("--config-file", config, "--input", files[0], *options, *settings) == 0
    rows = read(tmp_path / "output" / "0.json")["objects"]
    assert len(rows) == 5
    assert {row["label"] for row in rows} <= {"cat", "a red seven"}
    assert demo("--config-file", config, "--input", files[0], *options, "--opts", "MODEL.WEIGHT", weights) == 1
    assert "MODEL.WEIGHT" in capsys.readouterr().err


def test_it_says_what_the_model_has_learned(demo, directory, predictor, files, tmp_path, capsys):
    options = ("--input", files[0], "--output", tmp_path / "output")
    assert demo("--zoo", directory, *options) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "detection (zero, a red seven, two), classification (the same), captioning" in first
    assert "--zoo" in first
    predictor.cfg.TASKS.NAMES = ["scenes"]
    predictor.save_pretrained(tmp_path / "smaller")
    assert demo("--zoo", tmp_path / "smaller", *options) == 0
    told = capsys.readouterr().out.splitlines()
    assert "learned detection (zero, a red seven, two)." in told[0]
    assert told[1] == 'It was not trained to "caption": these answers mean nothing.'


def test_a_sheet_shows_the_first_pictures(demo, demo_module, directory, files, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module("demo"), "ON_SHEET", 4)
    sheet = tmp_path / "new" / "sheet.png"
    assert demo("--zoo", directory, "--input", *files, "--sheet", sheet, "--tasks", "caption") == 0
    with Image.open(sheet) as picture:
        assert picture.width == 4 * 384 + 24
        pixels = np.asarray(picture)
    for place in range(4):
        assert pixels[100:400, 24 + place * 384 : 384 + place * 384].std() > 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tasks", "detekt"], "did you mean 'detect'?"),
        (["--tasks", "ground"], "--phrases"),
        (["--tasks", ","], "--tasks is empty"),
        (["--labels", " , "], "--labels is empty"),
        (["--confidence-threshold", "30"], "0..1"),
        (["--opts", "TEST.IMS_PER_BATCH", "1"], "--config-file"),
        (["--output", "{folder}"], "would overwrite the picture"),
        (["--output", "{folder}/one.png"], "2 pictures"),
        (["--zoo", "no/such"], "no/such"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(demo, files, tmp_path, capsys, options, said):
    options = [option.format(folder=tmp_path) for option in options]
    before = Path(files[0]).read_bytes()
    output = [] if "--output" in options else ["--output", tmp_path / "output"]
    assert demo("--input", *files[:2], *output, *options) == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert told[-1].startswith("error: ")
    assert said in told[-1]
    assert Path(files[0]).read_bytes() == before


def test_a_pattern_without_pictures_is_said(demo, tmp_path, capsys):
    assert demo("--input", tmp_path / "*.png", "--output", tmp_path) == 1
    assert "there are no pictures in" in capsys.readouterr().err


def test_without_a_display_the_window_is_refused_in_a_sentence(demo, files, capsys, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert demo("--input", files[0]) == 1
    assert "--output" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["", "my pictures/*.jpg", "it's.png", "a $b.png"])
def test_make_demo_passes_the_readers_pictures_on(given):
    asked = ["make", "-n", "demo", f"INPUT={given.replace('$', '$$')}"]
    lines = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    command = shlex.split(lines[lines.rindex("HF_HUB_OFFLINE") :].replace("\\\n", " "))
    pictures = command[command.index("--input") + 1 : command.index("--output")]
    assert pictures[: len(pictures) - 2] == ([given] if given else [])
    assert all("images/test" in pattern for pattern in pictures[-2:])
