"""Configurations and models by their paths."""

from pathlib import Path

import pytest
import torch

from uniperceiver_v2 import Predictor, model_zoo
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import REPOSITORY

CONFIGS = sorted(str(file.relative_to(REPOSITORY / "configs")) for file in REPOSITORY.glob("configs/*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS)
def test_every_configuration_has_a_path(path):
    file = model_zoo.get_config_file(path)
    assert Path(file) == REPOSITORY / "configs" / path
    cfg = model_zoo.get_config(path)
    cfg.MODEL.DEVICE = "cpu"  # settings may be changed
    assert cfg.MODEL.META_ARCHITECTURE == "UniPerceiverV2"
    assert bool(cfg.MODEL.WEIGHTS) == (path == "digit_scenes/further_kinds.yaml")


def test_a_trained_model_has_the_zoo_s_weights():
    cfg = model_zoo.get_config("digit_scenes/small", trained=True)
    assert Path(cfg.MODEL.WEIGHTS) == REPOSITORY / "zoo/digit_scenes_small/model.safetensors"
    model = model_zoo.get("digit_scenes/small", trained=True, device="cpu")
    expected = Predictor.from_zoo("digit_scenes/small", device="cpu").model.state_dict()
    assert model.training and model.state_dict().keys() == expected.keys()
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_errors_name_the_nearest_path():
    with pytest.raises(UserError, match=r"joint/uniperceiver_v2_r50\.yaml"):
        model_zoo.get_config_file("joint/uniperceiver_v2_r51.yaml")
    with pytest.raises(UserError, match="only of digit_scenes/small"):
        model_zoo.get_config("joint/uniperceiver_v2_r50.yaml", trained=True)
