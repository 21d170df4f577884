"""Each joint configuration from its data to all of its figures: small models, miniatures in the real formats."""

import json
import sys

import detectron2
import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog

import train_net
from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import load_dataset
from uniperceiver_v2.evaluation.caption_tokens import has_java
from uniperceiver_v2.files import REPOSITORY

from .data import miniatures
from .data.joint_miniatures import write_all
from .evaluation import official

CONFIGS = [
    *("joint/uniperceiver_v2_r50", "joint/uniperceiver_v2_swin_base", "joint/uniperceiver_v2_swin_large"),
    *("joint/uniperceiver_v2_r50_mask_dino", "joint/uniperceiver_v2_swin_large_mask_dino", "lvis/uniperceiver_v2_r50"),
    "joint/uniperceiver_v2_r50_coco",
]
BACKBONES = {
    "r50": {"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 12, 16, 24]},
    "swin": {"model_type": "swin", "embed_dim": 8, "num_heads": [1, 2, 2, 4], "window_size": 4, "image_size": 32},
}
REGION = {"DIM": 32, "MASK_DIM": 16, "HEADS": 4, "POINTS": 2, "FFN_DIM": 48, "ENCODER_LAYERS": 1, "DECODER_LAYERS": 2}
REGION |= {"NUM_QUERIES": 12, "DENOISING_QUERIES": 4}
SEED, ITERATIONS = 31, 18  # the first half has each of nine tasks once


def small(path: str, folder) -> str:
    """The configuration at a path of ``configs``, with all sizes small, as a file. What is learned and how stays."""
    source = str(REPOSITORY / "configs" / f"{path}.yaml")
    given = load_config(source)
    # At least 33 pixels, so that no map has one pixel: there PyTorch's bf16 convolution on CPUs has random gradients.
    sizes = {"JITTER_SIZE": 96, "JITTER_SCALE": [0.6, 2.0], "IMAGE_SIZE": 64, "VOCABULARY_SAMPLE": 16, "MAX_LENGTH": 6}
    tasks = {
        name: {"IMS_PER_BATCH": 2, "SAMPLING_RATIO": 1.0}
        | {key: value for key, value in sizes.items() if given.TASKS[name].get(key)}
        for name in given.TASKS.NAMES
    }
    backbone = {"PATH": "", "CONFIG": BACKBONES["swin" if "swin" in path else "r50"] | {"depths": [1, 1, 1, 1]}}
    model = {"EMBED_DIM": 32, "ATTENTION_POOLS": 2, "PRETRAINED": [], "BACKBONE": backbone, "REGION": REGION}
    model |= {"TEXT_ENCODER": {"PATH": str(REPOSITORY / "configs/digit_scenes/text_encoder")}}
    model |= {"DECODER": {"LAYERS": 1, "HEADS": 4, "FFN_DIM": 32, "EXPERTS": 3}, "CRITERION": {"NUM_POINTS": 64}}
    content = {
        "_BASE_": source,
        "MODEL": {"DEVICE": "cpu", "UNIPERCEIVER_V2": model},
        "INPUT": {"MIN_SIZE_TRAIN": [48], "MIN_SIZE_TEST": 48},
        "TASKS": tasks,
        "SOLVER": {"MAX_ITER": ITERATIONS, "WARMUP_ITERS": 2, "CHECKPOINT_PERIOD": 1000},
        "DATALOADER": {"NUM_WORKERS": 0},
        "TEST": {"IMS_PER_BATCH": 2},
        "SEED": SEED,
    }
    (folder / "small.yaml").write_text(yaml.safe_dump(content))
    return str(folder / "small.yaml")


@pytest.fixture
def run(monkeypatch):
    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["train_net.py", "--config-file", *arguments])
        assert train_net.run() == 0

    return call


@pytest.mark.slow
@pytest.mark.skipif("detectron2_core" not in detectron2.__file__, reason="upstream knows all names of LVIS")
@pytest.mark.parametrize("path", CONFIGS)
def test_training_a_checkpoint_resuming_and_every_figure(path, run, tmp_path, monkeypatch, few_paraphrases):
    miniatures.register_only(tmp_path, monkeypatch)
    write_all(tmp_path)
    config, output = small(path, tmp_path), tmp_path / "out"
    train = [config, "OUTPUT_DIR", str(output), "DATASETS.TEST", "()"]
    run(*train, "SOLVER.MAX_ITER", str(ITERATIONS // 2))
    halfway = torch.load(output / "model_final.pth", weights_only=True)
    assert halfway["iteration"] == ITERATIONS // 2 - 1
    run(config, "--resume", *train[1:])
    final = torch.load(output / "model_final.pth", weights_only=True)
    assert final["iteration"] == ITERATIONS - 1
    assert any(not torch.equal(w, halfway["model"][name]) for name, w in final["model"].items())
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    for task in load_config(config).TASKS.NAMES:
        assert any(f"{task}/total_loss" in row for row in rows), f"{task} was never trained"
    assert not any("skipped_steps" in key for row in rows for key in row)

    table6 = str(REPOSITORY / "configs/joint/uniperceiver_v2_r50_table6.yaml")
    tested = dict.fromkeys([*load_config(table6, training=False).DATASETS.TEST, *load_config(config).DATASETS.TEST])
    run(config, "--eval-only", "MODEL.WEIGHTS", str(output / "model_final.pth"), "OUTPUT_DIR", str(output),
        "DATASETS.TEST", str(tuple(tested)))  # fmt: skip
    results = json.loads((output / "results.json").read_text())
    assert list(results) == list(tested)
    for name in tested:
        check_figures(name, results[name], output / "inference" / name)


def check_figures(name: str, results: dict, folder) -> None:
    """The printed figures of objects, classes and phrases are the official scripts' on the written files. Of captions
    and retrieval only their presence is checked: every image has a caption, and every metric is there."""
    metadata = MetadataCatalog.get(name)
    if metadata.evaluator_type in ("coco", "lvis"):
        figures = official.coco_figures if metadata.evaluator_type == "coco" else official.lvis_figures
        written = folder / f"{metadata.evaluator_type}_instances_results.json"
        assert {r["image_id"] for r in official.read(written)} == {r["image_id"] for r in load_dataset(name)}
        for kind in ("bbox", "segm"):
            assert official.differences(results[kind], figures(metadata.json_file, written, kind)) == {}
    elif metadata.evaluator_type == "coco_caption":
        captions = official.read(folder / "coco_captions_results.json")
        assert [c["image_id"] for c in captions] == sorted(r["image_id"] for r in load_dataset(name))
        known = {"Bleu_4", "CIDEr"} | ({"METEOR"} if has_java() else set())
        assert all(results["caption"][metric] is not None for metric in known)
    elif metadata.evaluator_type == "retrieval":
        for way, expected in official.retrieval_figures(folder / "predictions.json").items():
            assert results[way].keys() == expected.keys()
    elif metadata.evaluator_type == "imagenet":
        assert (
            official.differences(
                results["classification"], official.classification_figures(folder / "predictions.json")
            )
            == {}
        )
    else:
        assert official.differences(results["grounding"], official.refcoco_figures(folder / "predictions.json")) == {}
