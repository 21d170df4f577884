"""Reading and checking a run's settings."""

import logging
import re

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from uniperceiver_v2.config import load_config, sampling_ratios
from uniperceiver_v2.errors import UserError, nearest
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.kinds import evaluating_task

if "ConfigTestModel" not in META_ARCH_REGISTRY:

    @META_ARCH_REGISTRY.register()
    class ConfigTestModel(torch.nn.Module):
        """Only its name is needed."""


@pytest.fixture(autouse=True)
def datasets():
    names = ("config_scenes_train", "config_scenes_test", "config_digits_train")
    for name in names:
        DatasetCatalog.register(name, list)
    yield
    for name in names:
        DatasetCatalog.remove(name)


BASE = """
MODEL: {META_ARCHITECTURE: ConfigTestModel}
SOLVER: {MAX_ITER: 10, WARMUP_ITERS: 2}
"""
RUN = """
_BASE_: base.yaml
TASKS:
  NAMES: [scenes, digits]
  scenes: {KIND: detection, DATASETS: [config_scenes_train], IMS_PER_BATCH: 8, SAMPLING_RATIO: 3}
  digits: {KIND: classification, DATASETS: [config_digits_train], IMAGE_SIZE: 32}
DATASETS: {TEST: [config_scenes_test]}
SOLVER: {BASE_LR: 1e-4}
"""


@pytest.fixture
def config_file(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return str(path)


def message(*overrides: str, config_file: str = "", **kwargs) -> str:
    with pytest.raises(UserError) as info:
        load_config(config_file, list(overrides), **kwargs)
    return str(info.value)


def test_file_base_and_command_line_are_merged_and_tasks_filled_up(config_file):
    cfg = load_config(config_file, ["SOLVER.MAX_ITER", "20", "TASKS.digits.IMAGE_SIZE", "48"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (20, 1e-4)
    assert cfg.MODEL.META_ARCHITECTURE == "ConfigTestModel"
    assert cfg.DATASETS.TEST == ("config_scenes_test",)
    assert (cfg.TASKS.digits.IMAGE_SIZE, cfg.TASKS.digits.PROMPT) == (48, "{}")
    assert cfg.TASKS.scenes.GRADIENT_WEIGHT == 1.0
    assert "IMAGE_SIZE" not in cfg.TASKS.scenes
    assert sampling_ratios(cfg) == {"scenes": 0.75, "digits": 0.25}
    assert cfg.is_frozen()


def test_a_task_can_be_added_on_the_command_line(config_file):
    task = ["TASKS.more.KIND", "detection", "TASKS.more.DATASETS", "['config_scenes_train']"]
    cfg = load_config(config_file, [*task, "TASKS.NAMES", "['more']"])
    assert cfg.TASKS.more.DATASETS == ["config_scenes_train"]
    assert sampling_ratios(cfg) == {"more": 1.0}


def test_two_configurations_share_no_defaults(config_file):
    first = load_config(config_file)
    first.defrost()
    first.TASKS.digits.CROP_SCALE.append(7)
    assert load_config(config_file).TASKS.digits.CROP_SCALE == [0.08, 1.0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["SOLVER.BASE_LRR", "1"],
            ["'SOLVER.BASE_LRR'", "on the command line", "did you mean 'SOLVER.BASE_LR'"],
        ),
        (["SOLVR.BASE_LR", "1"], ["'SOLVR'", "did you mean 'SOLVER'"]),
        (["BASE_LR", "1"], ["'BASE_LR'", "did you mean 'SOLVER.BASE_LR'"]),
        (["TASKS.scenes.IMS_PER_BACH", "1"], ["did you mean 'TASKS.scenes.IMS_PER_BATCH'"]),
        (
            ["TASKS.digits.CROP_SCALE", "[0.9, 0.1]"],
            ["TASKS.digits.CROP_SCALE is a smallest and a largest number, not"],
        ),
        (["TASKS.scenes.JITTER_SCALE", "[0.5]"], ["TASKS.scenes.JITTER_SCALE is a smallest and a largest number, not"]),
        (["TASKS.scenes.IMAGE_SIZE", "32"], ["unknown configuration key 'TASKS.scenes.IMAGE_SIZE'"]),
        (["TASKS.scens.IMS_PER_BATCH", "1"], ["'TASKS.scens' has no KIND", "did you mean 'scenes'"]),
        (["TASKS.scenes.KIND", "detektion"], ["TASKS.scenes.KIND", "did you mean 'detection'"]),
        (["TASKS.NAMES", "['scene']"], ["TASKS.NAMES", "'scene'", "did you mean 'scenes'"]),
        (["TASKS.NAMES", "['scenes', 'scenes']"], ["more than once"]),
        (["TASKS.NAMES", "[]"], ["no task to train"]),
        (["TASKS.scenes.DATASETS", "['config_scenes_trian']"], ["did you mean 'config_scenes_train'"]),
        (["TASKS.scenes.DATASETS", "[]"], ["TASKS.scenes.DATASETS is empty"]),
        (["TASKS.scenes.SAMPLING_RATIO", "0"], ["TASKS.scenes.SAMPLING_RATIO must be above 0"]),
        (["TASKS.scenes.LOSS_WEIGHT", "-1"], ["TASKS.scenes.LOSS_WEIGHT must be above 0"]),
        (["TASKS.scenes.IMS_PER_BATCH", "0"], ["TASKS.scenes.IMS_PER_BATCH must be above 0"]),
        (["DATASETS.TEST", "('config_scenes_tst',)"], ["DATASETS.TEST", "did you mean 'config_scenes_test'"]),
        (["DATASETS.TEST", "config_scenes_test"], ["DATASETS.TEST", "expects tuple"]),
        (["MODEL.META_ARCHITECTURE", "ConfigTestModl"], ["did you mean 'ConfigTestModel'"]),
        (
            ["MODEL.UNIPERCEIVER_V2.ACTIVATION_CHECKPOINTING", "['decodr']"],
            ["ACTIVATION_CHECKPOINTING", "'decodr'", "decoder"],
        ),
        (["MODEL.UNIPERCEIVER_V2.DECODER.EXPERTS", "-1"], ["DECODER.EXPERTS", "0 for dense networks, not -1"]),
        (["MODEL.UNIPERCEIVER_V2.DECODER.ACTIVE_EXPERTS", "0"], ["ACTIVE_EXPERTS must be between 1", "not 0"]),
        (["MODEL.UNIPERCEIVER_V2.DECODER.EXPERTS", "1"], ["ACTIVE_EXPERTS must be between 1 and", "(1), not 2"]),
        (["SOLVER.OPTIMIZER", "TaskBalancedAdam"], ["did you mean 'TaskBalancedAdamW'"]),
        (["SOLVER.BASE_LR", "fast"], ["SOLVER.BASE_LR", "expects float", "'fast'"]),
        (["SOLVER.MAX_ITER", "2.5"], ["SOLVER.MAX_ITER", "expects int"]),
        (["SOLVER.MAX_ITER", "True"], ["SOLVER.MAX_ITER", "expects int"]),
        (["SOLVER.MAX_ITER", "0"], ["SOLVER.MAX_ITER must be above 0"]),
        (["SOLVER.WARMUP_ITERS", "10"], ["SOLVER.WARMUP_ITERS (10) must be below SOLVER.MAX_ITER (10)"]),
        (["SOLVER.BASE_LR_END", "0.1"], ["SOLVER.BASE_LR_END"]),
        (["SOLVER.WEIGHT_AVERAGING", "1.0"], ["SOLVER.WEIGHT_AVERAGING"]),
        (["SOLVER.REFERENCE_WORLD_SIZE", "8"], ["SOLVER.REFERENCE_WORLD_SIZE is given, but nothing reads it"]),
        (["SOLVER", "1"], ["'SOLVER'", "expects a section of keys"]),
        (["SOLVER.MAX_ITER.NOW", "1"], ["'SOLVER.MAX_ITER'", "expects a value"]),
        (["SOLVER.MAX_ITER"], ["'SOLVER.MAX_ITER' has no value"]),
        (["SOLVER.MAX_ITER", "5", "--resume"], ["--resume must stand before"]),
        (["SOLVER.MAX_ITER", "5", "SOLVER.MAX_ITER.NOW", "1"], ["SOLVER.MAX_ITER.NOW"]),
    ],
)
def test_a_mistake_is_named_with_what_was_meant(config_file, overrides, expected):
    text = message(*overrides, config_file=config_file)
    for part in expected:
        assert part in text


def test_a_mistake_in_the_file_names_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("SOLVER: {MAX_ITR: 5}")
    assert message(config_file=str(path)) == (
        f"unknown configuration key 'SOLVER.MAX_ITR' in {path}; did you mean 'SOLVER.MAX_ITER'?"
    )


@pytest.mark.parametrize("text", ["SOLVER: {MAX_ITER: 5", "just words", "- a\n- b", "_BASE_: nowhere.yaml"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert f"{path} cannot be read as a configuration" in message(config_file=str(path))


def test_a_missing_file_is_named():
    assert message(config_file="nowhere.yaml") == "configuration file not found: nowhere.yaml"


def test_a_configuration_cannot_run_code(tmp_path):
    proof = tmp_path / "proof"
    path = tmp_path / "run.yaml"
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:builtins.open ['{proof}', 'w']")
    assert "cannot be read" in message(config_file=str(path))
    assert not proof.exists()


def test_a_batch_must_divide_among_the_processes(config_file):
    assert "3 processes cannot share 8 equally" in message(config_file=config_file, world_size=3)
    load_config(config_file, world_size=4)


def test_evaluation_needs_no_tasks(config_file):
    cfg = load_config(config_file, ["TASKS.NAMES", "[]"], training=False)
    assert cfg.DATASETS.TEST


def test_without_cuda_the_cpu_is_used_and_said(config_file, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with caplog.at_level(logging.INFO, "uniperceiver_v2"):
        assert load_config(config_file, ["MODEL.DEVICE", "cuda:0"]).MODEL.DEVICE == "cpu"
    assert "MODEL.DEVICE is set to cpu" in caplog.text


def test_nearest_lists_what_is_valid_where_nothing_is_close():
    assert nearest("zzz", ["b", "a"]) == "; valid: a, b"
    assert nearest("Scenes", ["scenes", "digits"]) == "; did you mean 'scenes'?"
    assert nearest("x", []) == ""


@pytest.mark.parametrize(
    ("kind", "key", "value", "expected"),
    [
        ("language_modelling", "MASKED_SHARE", "0.0", "above 0 and at most 1, not 0.0"),
        ("language_modelling", "MASKED_SHARE", "1.5", "above 0 and at most 1, not 1.5"),
        ("language_modelling", "VOCABULARY_SAMPLE", "-1", "must be at least 0, not -1"),
        ("captioning", "CAPTIONS_PER_IMAGE", "0", "must be at least 1, not 0"),
        ("captioning", "BEAM_SIZE", "0", "must be at least 1, not 0"),
        ("captioning", "MAX_LENGTH", "0", "must be at least 1, not 0"),
        ("captioning", "DRAWN_CAPTIONS", "1", "must be at least 2, not 1"),
        ("retrieval", "RERANK", "24", "no task of TASKS.NAMES is of KIND captioning"),
        ("captioning", "RERANK", "True", "no task of TASKS.NAMES is of KIND retrieval"),
    ],
)
def test_settings_of_texts_are_checked(config_file, kind, key, value, expected):
    task = ["TASKS.texts.KIND", kind, "TASKS.texts.DATASETS", "['config_scenes_train']", "TASKS.NAMES", "['texts']"]
    assert kind == load_config(config_file, task).TASKS.texts.KIND
    found = message(*task, f"TASKS.texts.{key}", value, config_file=config_file)
    assert f"TASKS.texts.{key}" in found and expected in found


@pytest.mark.parametrize("name", ["r50", "swin_base", "swin_large"])
def test_the_papers_joint_configurations_are_valid(name):
    import uniperceiver_v2  # noqa: F401  (registers datasets and model)

    cfg = load_config(str(REPOSITORY / f"configs/joint/uniperceiver_v2_{name}.yaml"))
    kinds = {cfg.TASKS[task].KIND for task in cfg.TASKS.NAMES}
    assert kinds == {"detection", "classification", "captioning", "retrieval", "language_modelling"}
    node = cfg.MODEL.UNIPERCEIVER_V2
    assert (node.EMBED_DIM, node.DECODER.LAYERS, node.DECODER.HEADS) == (768, 6, 12)
    assert node.DECODER.FFN_DIM * node.DECODER.ACTIVE_EXPERTS == 3072  # BERT-base's width, for a token


@pytest.mark.parametrize("name", ["r50", "swin_base", "swin_large"])
def test_no_task_of_the_joint_training_takes_much_longer_steps_than_another(name):
    """A draw of task k moves a parameter by about ω_k/s_k times the rate."""
    cfg = load_config(str(REPOSITORY / f"configs/joint/uniperceiver_v2_{name}.yaml"))
    ratios = sampling_ratios(cfg)
    steps = {task: cfg.TASKS[task].GRADIENT_WEIGHT / ratio for task, ratio in ratios.items()}
    assert steps.pop("coco") == pytest.approx(12)
    assert steps == {task: pytest.approx(6) for task in ratios if task != "coco"}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("SOLVER.BACKBONE_LAYER_DECAY", "1.1", "above 0 and at most 1, not 1.1"),
        ("SOLVER.TEXT_ENCODER_LAYER_DECAY", "0", "above 0 and at most 1, not 0"),
        ("MODEL.UNIPERCEIVER_V2.BACKBONE.DROP_PATH", "1.0", "in [0, 1), or below 0 to keep the model's, not 1.0"),
    ],
)
def test_factors_of_the_recipe_are_checked(config_file, key, value, expected):
    found = message(key, value, config_file=config_file)
    assert key in found and expected in found


def test_detection_and_captions_of_coco_are_one_command():
    """The command of docs/reproduction.md."""
    import uniperceiver_v2  # noqa: F401  (registers datasets and model)

    document = (REPOSITORY / "docs/reproduction.md").read_text()
    (path,) = re.findall(
        r"^python \S+/train_net\.py --config-file (\S+_coco\.yaml) --num-gpus 8$", document, re.MULTILINE
    )
    cfg = load_config(str(REPOSITORY / path), world_size=8)
    assert sampling_ratios(cfg) == {"coco": pytest.approx(0.75), "coco_captions": pytest.approx(0.25)}
    assert [evaluating_task(cfg, name).name for name in cfg.DATASETS.TEST] == cfg.TASKS.NAMES
    # The number of iterations of detection is that of the joint training.
    assert round(0.75 * cfg.SOLVER.MAX_ITER) == 50_000
