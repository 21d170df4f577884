"""Settings of Detectron2 that nothing reads are refused, with a message that names what to use instead."""

import pytest
from detectron2.config import CfgNode, get_cfg

from uniperceiver_v2.config import load_config
from uniperceiver_v2.config.unused import UNUSED
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import REPOSITORY

CONFIG = str(REPOSITORY / "configs/digit_scenes/uniperceiver_v2_tiny.yaml")


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("DATASETS.TRAIN", "('coco_2017_train',)", "TASKS.<name>.DATASETS"),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "SEED"),
        ("DATALOADER.ASPECT_RATIO_GROUPING", "False", "BATCHES_BY_SHAPE groups by shape"),
        ("MODEL.BACKBONE.FREEZE_AT", "0", "SOLVER.BACKBONE_MULTIPLIER"),
        ("MODEL.KEYPOINT_ON", "True", "keypoints"),
        ("TEST.AUG.ENABLED", "True", "INPUT.MIN_SIZE_TEST"),
        ("TEST.PRECISE_BN.ENABLED", "True", "BACKBONE.NORM"),
        ("TEST.EXPECTED_RESULTS", "[['bbox', 'AP', 40.0, 1.0]]", "results.json"),
        ("SOLVER.IMS_PER_BATCH", "32", "TASKS.<name>.IMS_PER_BATCH"),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", "True", "TaskBalancedAdamW"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(key, value, instead):
    with pytest.raises(UserError) as refused:
        load_config(CONFIG, [key, value])
    assert str(refused.value).startswith(f"{key} is given, but nothing reads it: ")
    assert instead in str(refused.value)


def test_what_is_read_under_other_settings_is_not_refused():
    cfg = load_config(CONFIG, ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.OPTIMIZER", "AdamW"])
    assert cfg.SOLVER.CLIP_GRADIENTS.ENABLED
    cfg = load_config(CONFIG, ["MODEL.BACKBONE.FREEZE_AT", "0", "MODEL.BACKBONE.NAME", "build_resnet_backbone"])
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 0


def test_a_runs_own_settings_can_be_given_as_a_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(load_config(CONFIG, ["SOLVER.MAX_ITER", "2000"]).dump())
    assert load_config(str(path)).SOLVER.MAX_ITER == 2000
    path.write_text(path.read_text().replace("SAMPLER_TRAIN: TrainingSampler", "SAMPLER_TRAIN: Other"))
    with pytest.raises(UserError, match=r"DATALOADER\.SAMPLER_TRAIN is given"):
        load_config(str(path))


def test_the_table_names_settings_that_exist():
    """Settings that only upstream has are left out."""

    def find(key: str):
        node = get_cfg()
        for name in key.split("."):
            node = node[name] if isinstance(node, CfgNode) and name in node else None
        return node

    assert {key for key in UNUSED if find(key) is None} <= {"DATALOADER.RANDOM_SUBSET_RATIO"}
