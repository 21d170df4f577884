"""The check of whole datasets: what is wrong is said file by file, and decides the exit status."""

import importlib
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from uniperceiver_v2.data import register_captions

from ..data import miniatures
from ..data.datasets.test_shards import pairs_of, write_shard


@pytest.fixture
def root(tmp_path, monkeypatch):
    miniatures.register_only(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def check(monkeypatch, capsys):
    """(names) -> exit status, lines that were printed. ``whole`` are the numbers of images of whole datasets."""

    def run(*names: str, whole: dict[str, int]) -> tuple[int, list[str]]:
        program = importlib.import_module("check")
        monkeypatch.setattr(program, "WHOLE", whole)
        monkeypatch.setattr(sys, "argv", ["check.py", *names, "--workers", "2"])
        status = program.main()
        return status, capsys.readouterr().out.strip().split("\n")

    return run


def test_a_whole_dataset(root, check):
    ids = list(range(1, 71))  # more than two chunks
    miniatures.write_coco(root, ids)
    miniatures.write_imagenet(root, {"a": "boat", "b": "ship"}, images=3)
    status, lines = check("coco_2017_train", "imagenet_val", whole={"coco_2017_train": 70, "imagenet_val": 6})
    assert status == 0
    assert lines == ["coco_2017_train: 70 read, nothing is wrong", "imagenet_val: 6 read, nothing is wrong"]


def test_every_file_that_is_wrong_is_named_in_order(root, check):
    miniatures.write_coco(root, list(range(1, 71)))
    folder = root / "coco/train2017"
    missing, cut, other = (folder / f"{i:012d}.jpg" for i in (3, 40, 69))
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:300])
    miniatures.Image.new("RGB", (10, 10)).save(other)
    status, lines = check("coco_2017_train", whole={"coco_2017_train": 118_287})
    assert status == 1 and len(lines) == 5
    assert lines[0] == "coco_2017_train has 70 images, but the whole dataset has 118,287"
    for line, path, words in zip(
        lines[1:4], (missing, cut, other), ("No such file", "Truncated", "Mismatched image shape")
    ):
        assert line.startswith(f"{path}: ") and words in line
    assert lines[4] == "coco_2017_train: 70 read, 4 problems"


def test_captions_shards_and_corpora(root, check, catalogs):
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a boat"}, {"id": 2, "image_id": 2, "caption": " "}],
    }
    for i in (1, 2):
        miniatures.write_image(root / f"{i}.png")
    register_captions("own", str(miniatures.write_json(root / "own.json", content)), str(root))
    (root / "cc3m").mkdir()
    broken = {**pairs_of(0), "000000003.txt": b"an image is missing"}
    write_shard(root / "cc3m/00000.tar", {**broken, "000000001.jpg": b"no image"})
    cut = write_shard(root / "cc3m/00001.tar", pairs_of(1))
    cut.write_bytes(cut.read_bytes()[:-10240])
    (root / "wikipedia").mkdir()
    (root / "wikipedia/00000.txt").write_text("a text\n \nanother")
    status, lines = check("own", "cc3m_train", "wikipedia_train", whole={})
    assert status == 1
    said = "\n".join(lines)
    for words in (
        f"{root}/2.png: the image has no caption",
        f"{root}/cc3m/00001.tar: the shard is cut short",
        f"{root}/cc3m/00000.tar/000000001: cannot identify the image's format",
        f"{root}/wikipedia/00000.txt: the shard is cut short",
        f"{root}/wikipedia/00000.txt: the text at byte 7 has only white space",
        "own: 2 read, 1 problems",
    ):
        assert words in said, said


def test_a_dataset_that_cannot_be_loaded_is_named_with_its_command_and_the_next_is_checked(root, check):
    miniatures.write_imagenet(root, {"a": "boat"})
    status, lines = check("lvis_v1_val", "imagenet_vall", "imagenet_val", whole={})
    assert status == 1
    assert lines[0].startswith("error: ") and str(root / "lvis/lvis_v1_val.json") in lines[0]
    assert "python datasets/prepare/lvis_v1.py" in lines[0] and "did you mean 'imagenet_val'" in lines[1]
    assert lines[2] == "imagenet_val: 1 read, nothing is wrong"


def test_without_a_name_the_papers_datasets_are_checked(root, check):
    miniatures.write_coco(root, [1, 2])
    status, lines = check(whole={})
    assert status == 1
    said = "\n".join(lines)
    assert "coco_2017_train: 2 read, nothing is wrong" in said
    for name in (
        *("imagenet_train", "cc12m_train", "wikipedia_train", "flickr30k_retrieval_karpathy_test"),
        *("lvis_v1_val", "refcoco+_unc_testB", "refcocog_umd_test", "flickr30k_entities_val"),
    ):
        assert f"error: dataset '{name}' is missing" in said


def write_video(path: Path, frames: int) -> Path:
    """A video in which each frame is by itself and none is the last one's copy, so that a part of it can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_suffix(".avi")
    video = cv2.VideoWriter(str(made), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for frame in np.random.default_rng(0).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8):
        video.write(frame)
    video.release()
    return made.rename(path)


def test_every_frame_of_every_video_is_read(root, check):
    folder = root / "kinetics400"
    names = ("whole", "short", "damaged", "frames")
    rows = ["label,youtube_id,time_start,time_end,split", *(f"archery,{name},0,10,train" for name in names)]
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations/train.csv").write_text("\n".join(rows))
    _, short, damaged = (write_video(folder / f"train/{name}_000000_000010.mp4", 20) for name in names[:3])
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 2])
    damaged.write_bytes(b"no video")
    for time in range(4):
        miniatures.write_image(folder / f"train/frames_000000_000010/{time:05d}.png", time)
    last = folder / "train/frames_000000_000010/00003.png"
    last.write_bytes(last.read_bytes()[:100])
    status, lines = check("kinetics400_train", whole={})
    assert status == 1 and len(lines) == 4, lines
    assert lines[0].startswith(f"{short} ends early: ") and lines[0].endswith("of 20 frames can be read")
    assert lines[1] == f"{damaged} cannot be read as a video"
    assert str(last) in lines[2] and lines[3] == "kinetics400_train: 4 read, 3 problems"
