"""Kinetics' files as miniatures, as videos and as folders of frames, and the samples that they become."""

import logging
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.data.datasets.builtin import CLIP_CLASSES, register_digit_scenes, register_kinetics
from uniperceiver_v2.data.order import numpy_draws_from
from uniperceiver_v2.errors import UnreadableImage, UserError
from uniperceiver_v2.kinds import KINDS, kind_of_dataset
from uniperceiver_v2.reading import read_frames

KIND = KINDS["video_classification"]
ROWS = [("juggling", "abc_1", 4, 14), ("archery", "-xyz", 0, 10), ("archery", "gone", 2, 12)]


def grey(value):
    return np.full((48, 64, 3), value, np.uint8)


@pytest.fixture
def kinetics(tmp_path, monkeypatch):
    """``kinetics400_train``: a video whose frames grow brighter, a folder of frames, and a clip that is not there."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        monkeypatch.setattr(catalog, "data", {})
    root = tmp_path / "kinetics400"
    (root / "annotations").mkdir(parents=True)
    lines = [f"{label},{video},{start},{end},train" for label, video, start, end in ROWS]
    (root / "annotations/train.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *lines]))
    (root / "train/-xyz_000000_000010").mkdir(parents=True)
    for time in range(5):
        Image.fromarray(grey(50 * time)).save(root / f"train/-xyz_000000_000010/{time:05d}.png")
    video = cv2.VideoWriter(str(root / "train/abc_1_000004_000014.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (64, 48))
    for time in range(20):
        video.write(grey(10 * time))
    video.release()
    register_kinetics(str(tmp_path))
    return root


def test_clips_that_are_there_are_records(kinetics, caplog):
    with caplog.at_level(logging.WARNING, logger="uniperceiver_v2"):
        records = load_dataset("kinetics400_train")
    assert kind_of_dataset("kinetics400_train") is KIND
    assert MetadataCatalog.get("kinetics400_train").thing_classes == ["archery", "juggling"]
    assert [(r["label"], r["image_id"]) for r in records] == [(1, "abc_1_000004_000014"), (0, "-xyz_000000_000010")]
    assert "1 of 3 clips are not in" in caplog.text


def test_frames_are_the_middles_of_equal_parts(kinetics):
    video, folder = (record["video"] for record in load_dataset("kinetics400_train"))
    assert [int(frame.mean()) for frame in read_frames(folder, 5, "RGB")] == [0, 50, 100, 150, 200]
    assert [int(frame.mean()) for frame in read_frames(folder, 2, "RGB")] == [50, 150]
    assert len(read_frames(folder, 8, "RGB")) == 8
    found = [frame.mean() for frame in read_frames(video, 4, "RGB")]  # of 20, with losses of the compression
    assert found == pytest.approx([20, 70, 120, 170], abs=6)
    assert all(frame.shape == (48, 64, 3) and frame.dtype == np.uint8 for frame in read_frames(video, 4, "RGB"))


def test_clips_that_cannot_be_read_are_named(kinetics):
    video, folder = (record["video"] for record in load_dataset("kinetics400_train"))
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(f"{folder}/00002.png")
    with pytest.raises(UnreadableImage, match="frames of several sizes"):
        read_frames(folder, 5, "RGB")
    with open(video, "wb") as file:
        file.write(b"no video")
    with pytest.raises(UnreadableImage, match=r"abc_1_000004_000014.mp4 cannot be read as a video"):
        read_frames(video, 3, "RGB")
    with pytest.raises(UnreadableImage, match="there is no video"):
        read_frames(f"{video}.mp4", 3, "RGB")
    with pytest.raises(UserError, match=r"dataset 'kinetics400_val' is missing: looked for .*annotations/val.csv"):
        load_dataset("kinetics400_val")


def test_what_training_and_evaluation_get(kinetics, tiny_config):
    task = KIND.task_of("clips")
    settings = replace(task.settings, datasets=["kinetics400_train"], frames=3, image_size=32)
    task = replace(task, settings=settings)
    records, mapper = KIND.training_data(tiny_config, task)
    with numpy_draws_from(np.random.default_rng(0)):
        sample = mapper(records[1])
    assert sample["frames"].shape == (3, 3, 32, 32) and sample["frames"].dtype == torch.uint8
    assert sample["candidates"] == ("archery", "juggling") and sample["label"] == 0 and sample["task"] == "clips"
    assert [int(frame.float().mean()) for frame in sample["frames"]] == [0, 100, 200]
    _, mapper = KIND.test_data(tiny_config, "kinetics400_train", task)
    assert mapper(records[1])["frames"].shape == (3, 3, 32, 32)


def test_frames_that_would_become_too_large_are_named(kinetics, tiny_config):
    folder = load_dataset("kinetics400_train")[1]["video"]
    for time in range(5):
        Image.fromarray(np.zeros((1, 4000, 3), np.uint8)).save(f"{folder}/{time:05d}.png")
    task = KIND.task_of("clips")
    settings = replace(task.settings, datasets=["kinetics400_train"], frames=2, image_size=224)
    records, mapper = KIND.test_data(tiny_config, "kinetics400_train", replace(task, settings=settings))
    with pytest.raises(UnreadableImage, match=r"-xyz_000000_000010: of 4000 x 1 pixels it would be resized"):
        mapper(records[1])


def test_frames_are_cropped_and_mirrored_alike(kinetics, tiny_config):
    folder = load_dataset("kinetics400_train")[1]["video"]
    ramp = np.arange(64, dtype=np.uint8)[None, :, None].repeat(48, 0).repeat(3, 2)
    for time in range(5):
        Image.fromarray(ramp * 2 + time).save(f"{folder}/{time:05d}.png")
    settings = replace(KIND.task_of("clips").settings, datasets=["kinetics400_train"], frames=5, image_size=32)
    records, mapper = KIND.training_data(tiny_config, replace(KIND.task_of("clips"), settings=settings))
    firsts = set()
    for seed in range(6):
        with numpy_draws_from(np.random.default_rng(seed)):
            frames = mapper(records[1])["frames"].int()
        for time in range(5):
            assert (frames[time] - frames[0] - time).abs().max() <= 1
        firsts.add(int(frames[0, 0, 0, 0]))
    assert len(firsts) > 3


def test_digit_scenes_have_clips(small_tree, catalogs):
    register_digit_scenes(str(small_tree), prefix="moving_")
    for split, count in (("train", 5), ("test", 2)):
        records = load_dataset(f"moving_digit_clips_{split}")
        assert [record["label"] for record in records] == list(range(count)) and len(CLIP_CLASSES) == 40
        first, *_, last = read_frames(records[0]["video"], 6, "RGB")
        changed = np.abs(first.astype(int) - last.astype(int)).max(2) > 40
        assert changed.any() and changed.mean() < 0.6  # the background stays
