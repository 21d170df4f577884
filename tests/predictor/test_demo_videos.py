"""The demo on videos and cameras."""

import json
import weakref

import cv2
import numpy as np
import pytest

from uniperceiver_v2 import Predictor

RATE, COUNT = 10, 5


@pytest.fixture
def video(tmp_path, pixels):
    """A film of five frames of 60 x 48 pixels."""
    path = tmp_path / "my film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), RATE, (60, 48))
    for seed in range(COUNT):
        writer.write(np.ascontiguousarray(pixels(48, 60, seed)[:, :, ::-1]))
    writer.release()
    return path


def frames_of(path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while (read := capture.read())[0]:
        frames.append(read[1])
    return frames


def test_every_frame_is_answered(demo, directory, video, tmp_path):
    output = tmp_path / "output"
    options = ("--tasks", "detect,classify", "--confidence-threshold", 0)
    assert demo("--zoo", directory, "--video-input", video, "--output", output, *options) == 0
    assert sorted(path.name for path in output.iterdir()) == ["my film.jsonl", "my film.mp4"]
    lines = [json.loads(line) for line in (output / "my film.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["frame"], line["seconds"]) for line in lines] == [(n, n / RATE) for n in range(COUNT)]
    drawn = frames_of(output / "my film.mp4")
    assert len(drawn) == COUNT
    assert min(drawn[0].shape[:2]) >= 384  # enlarged until it is legible
    frame = frames_of(video)[3][:, :, ::-1]  # OpenCV's are BGR
    found = Predictor.from_pretrained(directory).detect(np.ascontiguousarray(frame), threshold=0)
    np.testing.assert_allclose([row["score"] for row in lines[3]["objects"]], found.scores, atol=1e-4)
    assert lines[3]["objects"][0]["segmentation"]["size"] == [48, 60]


def test_one_frame_is_in_memory(demo, directory, video, tmp_path, monkeypatch):
    encode, alive, most = Predictor.encode, [], []

    def watched(self, images, **options):
        most.append(sum(frame() is not None for frame in alive))
        alive.append(weakref.ref(images[0]))
        return encode(self, images, **options)

    monkeypatch.setattr(Predictor, "encode", watched)
    assert demo("--zoo", directory, "--video-input", video, "--output", tmp_path / "out.mp4", "--tasks", "detect") == 0
    assert len(most) == COUNT
    assert max(most) <= 1  # the frame before


def test_a_camera(demo, demo_module, directory, video, tmp_path, monkeypatch):
    opened, capture = [], cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: opened.append(source) or capture(str(video)))
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(demo_module("demo"), "show", lambda card, wait: shown.append(card) or len(shown) < 3)
    assert demo("--zoo", directory, "--webcam", "--tasks", "classify") == 0
    assert (opened, len(shown)) == ([0], 3)  # the window was closed at the third frame
    assert demo("--zoo", directory, "--webcam", "--output", tmp_path / "seen", "--tasks", "classify") == 0
    assert sorted(path.name for path in (tmp_path / "seen").iterdir()) == ["webcam.jsonl", "webcam.mp4"]


def test_a_recording_that_is_interrupted_is_kept(demo_module, tmp_path, pixels):
    from PIL import Image

    path = tmp_path / "seen.mp4"
    with pytest.raises(KeyboardInterrupt), demo_module("videos").VideoFile(path, RATE) as file:
        file.add(Image.fromarray(pixels(481, 501)), {"frame": 0})
        raise KeyboardInterrupt
    assert frames_of(path)[0].shape == (482, 502, 3)
    other = tmp_path / "other.mp4"
    with pytest.raises(ValueError), demo_module("videos").VideoFile(other, RATE) as file:
        file.add(Image.fromarray(pixels(480, 500)), {"frame": 0})
        raise ValueError
    assert sorted(file.name for file in tmp_path.iterdir()) == ["seen.jsonl", "seen.mp4"]


@pytest.mark.parametrize(
    ("name", "output", "said"),
    [
        ("gone.mp4", "output", "there is no video"),
        ("text.mp4", "output", "cannot be read as a video"),
        ("my film.avi", "film.mov", "written as .mp4"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(demo, video, tmp_path, capfd, name, output, said):
    (tmp_path / "text.mp4").write_text("no film")
    assert demo("--video-input", tmp_path / name, "--output", tmp_path / output) == 1
    error = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))
    assert said in error


def test_a_video_is_not_overwritten(demo, video, tmp_path, capsys):
    same = video.rename(tmp_path / "film.mp4")
    before = same.read_bytes()
    assert demo("--video-input", same, "--output", tmp_path) == 1
    assert "would overwrite the video" in capsys.readouterr().err
    assert same.read_bytes() == before
