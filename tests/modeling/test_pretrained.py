"""A directory of a model is data: the Python in it is neither run nor asked about."""

import json
import shutil

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.modeling.pretrained import load_tokenizer
from uniperceiver_v2.modeling.text_encoder.text_encoder import load_text_model

CODE = """
import pathlib
pathlib.Path({proof!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
class Config(PretrainedConfig):
    model_type = "of_a_stranger"
class Model(PreTrainedModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoBackbone": "code.Model"}


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """digit_scenes' text encoder, with code beside it that leaves a file when it is run; every question gets a "y"."""
    shutil.copytree(REPOSITORY / "configs/digit_scenes/text_encoder", tmp_path / "model")
    (tmp_path / "model/code.py").write_text(CODE.format(proof=str(tmp_path / "proof")))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))

    def asked(*_):
        (tmp_path / "asked").touch()
        return "y"

    monkeypatch.setattr("builtins.input", asked)
    yield tmp_path / "model"
    assert not (tmp_path / "proof").exists() and not (tmp_path / "asked").exists()


def change(path, **fields) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    content.update(fields)
    path.write_text(json.dumps(content))


def backbone_of(directory):
    node = {
        "BACKBONE": {"PATH": str(directory), "CONFIG": {}, "OUT_FEATURES": ["stage1"], "NORM": "", "DROP_PATH": -1.0}
    }
    model = {"BACKBONE": {"NAME": "build_huggingface_backbone"}, "PIXEL_MEAN": [0.0, 0, 0], "UNIPERCEIVER_V2": node}
    return build_backbone(CfgNode({"MODEL": model}))


@pytest.mark.parametrize("load", [load_tokenizer, load_text_model, backbone_of])
def test_a_model_of_its_own_code_is_refused_with_the_file(directory, load):
    change(directory / "config.json", model_type="of_a_stranger", auto_map=AUTO_MAP)
    change(
        directory / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map={"AutoTokenizer": "code.Tokenizer"}
    )
    with pytest.raises(UserError) as caught:
        load(directory)
    assert str(directory / "config.json") in str(caught.value) and "never run" in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)


def test_of_a_kind_that_is_known_the_code_beside_it_is_left_aside(directory):
    change(directory / "config.json", auto_map=AUTO_MAP)
    model, tokenizer = load_text_model(directory)
    assert type(model).__module__.startswith("transformers.") and len(tokenizer) > 100
