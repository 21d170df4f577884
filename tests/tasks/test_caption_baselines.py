"""Baselines of captions: features and captions of the training images."""

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

from uniperceiver_v2.config import task_defaults
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.evaluation import CaptionEvaluator
from uniperceiver_v2.tasks.caption_baselines import caption_baselines

NAME = "baseline_captions"


@pytest.fixture
def captioned(tmp_path):
    """Five images, each of one colour, with two captions each."""
    records = []
    for index in range(5):
        path = str(tmp_path / f"{index}.png")
        with PathManager.open(path, "wb") as file:
            Image.new("RGB", (64, 64), (50 * index, 255 - 50 * index, 90)).save(file, "PNG")
        captions = [f"image {index}", f"number {index}"]
        size = {"height": 64, "width": 64}
        records.append({"file_name": path, "image_id": index, "captions": captions, **size})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(evaluator_type="coco_caption")
    yield records
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture
def cfg(tiny_config, captioned, tmp_path):
    tiny_config.TASKS.NAMES = ["captions"]
    tiny_config.TASKS.captions = CfgNode({**task_defaults("captions", "captioning"), "DATASETS": [NAME]})
    tiny_config.DATASETS.TEST = (NAME,)
    tiny_config.OUTPUT_DIR = str(tmp_path / "output")
    tiny_config.DATALOADER.NUM_WORKERS = 0
    return tiny_config


def test_every_training_image_with_its_feature_and_captions(cfg, tiny_model, captioned):
    baselines = caption_baselines(cfg, tiny_model)
    by_caption = {record["captions"][0]: record for record in captioned}
    drawn = [by_caption[captions[0]] for captions in baselines.captions]
    assert sorted(record["image_id"] for record in drawn) == [0, 1, 2, 3, 4]
    for record, feature in zip(drawn, baselines.features, strict=True):
        image = torch.from_numpy(np.array(Image.open(record["file_name"]))).permute(2, 0, 1)
        with torch.no_grad():
            encoding, _ = tiny_model.image_encoder(tiny_model.preprocess([{"image": image}]))
        torch.testing.assert_close(feature, encoding.mean_global_token()[0], atol=1e-5, rtol=1e-4)


def test_without_captioning_there_are_none(cfg, tiny_model):
    cfg.TASKS.NAMES = []
    assert caption_baselines(cfg, tiny_model) is None


def test_no_more_than_so_many_images_are_drawn_by_the_seed_alone(cfg, tiny_model, monkeypatch):
    monkeypatch.setattr("uniperceiver_v2.tasks.caption_baselines.MAX_IMAGES", 3)
    first, again = (caption_baselines(cfg, tiny_model) for _ in range(2))
    assert len(first.captions) == 3 and first.captions == again.captions
    cfg.SEED = 7
    assert caption_baselines(cfg, tiny_model).captions != first.captions


def test_an_unreadable_training_image_is_left_out(cfg, tiny_model, captioned, caplog):
    with open(captioned[2]["file_name"], "wb") as file:
        file.write(b"no image")
    baselines = caption_baselines(cfg, tiny_model)
    assert sorted(captions[0] for captions in baselines.captions) == [f"image {i}" for i in (0, 1, 3, 4)]


def test_without_the_training_set_captions_are_reported_alone(cfg, tiny_model):
    cfg.TASKS.captions.DATASETS = ["digit_scenes_captions_nowhere"]
    assert caption_baselines(cfg, tiny_model) is None


def test_a_model_wrapped_for_several_processes(cfg, tiny_model):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = tiny_model

    assert len(caption_baselines(cfg, Wrapped()).captions) == 5


def test_evaluation_reports_captions_beside_the_baselines(cfg, tiny_model, monkeypatch):
    # The metrics are tested elsewhere. This tests their inputs.
    seen = {}

    def metrics(references, rows, spice_models):
        seen.update(rows)
        return {name: {"CIDEr": 1.0} for name in rows}

    monkeypatch.setattr("uniperceiver_v2.evaluation.captions.caption_metrics", metrics)
    results = UniPerceiverTrainer.test(cfg, tiny_model)[NAME]
    assert set(results) == {"caption", "caption (random training caption)", "caption (nearest training image)"}
    nearest = seen["caption (nearest training image)"]
    assert all(caption in (f"image {i}", f"number {i}") for i, caption in nearest.items())  # each is its own nearest


def test_evaluators_that_are_given_are_taken_as_they_are(cfg, tiny_model, monkeypatch):
    monkeypatch.setattr(
        "uniperceiver_v2.evaluation.captions.caption_metrics", lambda references, rows, spice: {n: {} for n in rows}
    )
    evaluator = CaptionEvaluator(NAME)
    assert set(UniPerceiverTrainer.test(cfg, tiny_model, [evaluator])[NAME]) == {"caption"}
