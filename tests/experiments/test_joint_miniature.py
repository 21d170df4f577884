"""The joint recipe in miniature: data with a batch for every task, the settings of the recipe, and the table."""

import json
from pathlib import Path

import pytest
import yaml
from detectron2.config import CfgNode

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader
from uniperceiver_v2.files import REPOSITORY

from ..data.miniatures import register_only


@pytest.fixture
def miniature(imported):
    return imported("joint_miniature")


def config_of(miniature, folder: Path) -> CfgNode:
    file = folder / "miniature.yaml"
    file.write_text(yaml.safe_dump(miniature.settings(100, folder)))
    return load_config(str(file))


def test_every_task_has_batches_that_show_what_they_say(miniature, tmp_path, monkeypatch):
    miniature.write_tree(tmp_path / "data", images=4, classes=6, images_of_class=2)
    register_only(tmp_path / "data", monkeypatch)
    cfg = config_of(miniature, tmp_path)
    batches = {name: next(iter(build_task_train_loader(cfg, name))) for name in cfg.TASKS.NAMES}
    assert {name: len(batch) for name, batch in batches.items()} == {
        name: miniature.BATCHES[cfg.TASKS[name].KIND] for name in cfg.TASKS.NAMES
    }
    assert len(batches["imagenet"][0]["candidates"]) == 6
    for sample in batches["coco_captions"]:
        number = int(sample["file_name"][-16:-4])
        assert set(sample["captions"]) <= set(miniature.captions(number))


def test_only_sizes_rates_and_schedule_differ_from_the_recipe(miniature, changed_settings, tmp_path):
    recipe = load_config(str(REPOSITORY / miniature.CONFIG))
    changed = changed_settings(recipe, config_of(miniature, tmp_path))
    solver = {key for key in changed if key.startswith("SOLVER.")}
    assert solver == {
        *("SOLVER.BASE_LR", "SOLVER.BACKBONE_MULTIPLIER", "SOLVER.TEXT_ENCODER_MULTIPLIER"),
        *("SOLVER.TEXT_ENCODER_LAYER_DECAY", "SOLVER.WEIGHT_AVERAGING", "SOLVER.AMP.ENABLED"),
        *("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD"),
    }
    of_tasks = {key.rpartition(".")[2] for key in changed if key.startswith("TASKS.")}
    assert of_tasks == {"IMS_PER_BATCH", "IMAGE_SIZE", "JITTER_SIZE"}


def test_the_table_has_means_by_part_of_the_run(miniature, tmp_path):
    lines = [{"iteration": i, "coco/total_loss": float(i)} for i in range(9, 40, 10)]
    lines.append({"iteration": 39, "texts/total_loss": 2.0, "total_loss": 5.0})
    metrics = tmp_path / "metrics.json"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert miniature.table(metrics, 40, parts=2).splitlines() == [
        "| task | 0 to 20 | 20 to 40 |",
        "|---|---:|---:|",
        "| coco | 14.00 | 34.00 |",
        "| texts |  | 2.00 |",
    ]
