"""The tiny model trains on image-text pairs in shards. An interrupted run gives the same result as an uninterrupted
one."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import register_image_text_shards
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.files import REPOSITORY

TASK = {"DATASETS": "['web_run_train']", "IMS_PER_BATCH": 4}
TASKS = {"captions": {**TASK, "KIND": "captioning"}, "pairs": {**TASK, "KIND": "retrieval"}}


@pytest.fixture
def shards(tmp_path) -> Path:
    """Two shards of nine pairs. One of the pairs has no valid image."""
    rng = np.random.default_rng(0)
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as tar:
            for number in range(9):
                image = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(image, "jpeg")
                content = {
                    "jpg": image.getvalue() if (shard, number) != (1, 4) else b"?",
                    "txt": f"{'a' * (number + 1)} {shard} seven".encode(),
                }
                for suffix, data in content.items():
                    member = tarfile.TarInfo(f"{shard:05d}{number:04d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return tmp_path


def train(folder: Path, iterations: int, workers: int, resume: bool = False) -> dict[str, torch.Tensor]:
    """The final weights of a run of so many iterations."""
    tasks = [part for name, node in TASKS.items() for key in node for part in (f"TASKS.{name}.{key}", str(node[key]))]
    settings = {
        "TASKS.NAMES": "['captions', 'pairs']",
        "DATASETS.TEST": "()",
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "DATALOADER.NUM_WORKERS": str(workers),
        "DATALOADER.MAX_CORRUPT_SHARE": "0.2",
        "SOLVER.MAX_ITER": "6",
        "SOLVER.WARMUP_ITERS": "2",
        "SOLVER.CHECKPOINT_PERIOD": "3",
        "OUTPUT_DIR": str(folder),
    }
    overrides = tasks + [part for pair in settings.items() for part in pair]
    cfg = load_config(str(REPOSITORY / "configs/digit_scenes/uniperceiver_v2_tiny.yaml"), overrides)
    torch.manual_seed(0)
    trainer = UniPerceiverTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.max_iter = iterations
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.usefixtures("catalogs")
def test_a_run_on_shards_that_was_interrupted_ends_as_one_that_was_not(shards, tmp_path):
    register_image_text_shards("web_run_train", str(shards / "*.tar"))
    whole = train(tmp_path / "whole", 6, workers=0)
    train(tmp_path / "parts", 3, workers=0)
    resumed = train(tmp_path / "parts", 6, workers=1, resume=True)
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.json").read_text().splitlines()]
    losses = {key: value for row in rows for key, value in row.items() if key.endswith("total_loss")}
    assert {"captions/total_loss", "pairs/total_loss"} <= losses.keys()
    assert all(np.isfinite(value) and value > 0 for value in losses.values())
