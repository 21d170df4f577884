"""A directory of a model is data: the Python in it is neither run nor asked about."""

import json
import shutil

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from uniperceiver_v2.data.datasets.texts import encode
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.modeling.pretrained import load_tokenizer, token_ids
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


def backend(name, **fields):
    """A change of a part of tokenizer.json."""
    return lambda directory: change(directory / "tokenizer.json", **{name: fields})


def replaced(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize(
    "harm, text",
    [
        (backend("pre_tokenizer", type="Split", pattern={"Regex": "(a+)+$"}, behavior="Isolated", invert=False), "a!"),
        (backend("model", type="WordLevel", vocab={"a": 0, "b": 1}, unk_token="c"), "d"),
    ],
    ids=["panic", "no token for an unknown word"],
)
def test_a_tokenizer_that_fails_at_a_text_is_told(directory, harm, text):
    harm(directory)
    tokenizer = load_tokenizer(directory)
    for read in (token_ids, encode):
        with pytest.raises(UserError, match="a text cannot be read by the tokenizer from ") as caught:
            read(tokenizer, text.replace("a", "a" * 40))
        assert str(directory) in str(caught.value)


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_a_tokenizer_that_makes_a_text_much_longer_is_refused(directory, part):
    steps = f"{part}s"
    backend(part, type="Sequence", **{steps: [replaced({"String": "a"}, "a" * 1000)] * 2})(directory)
    with pytest.raises(UserError, match=f"its {part} may make 1000000 letters of one") as caught:
        load_tokenizer(directory)
    assert str(directory) in str(caught.value)
    backend(part, type="Sequence", **{steps: [replaced({"Regex": ""}, "a")] * 9})(directory)
    with pytest.raises(UserError, match=f"its {part} may make 512 letters of one"):
        load_tokenizer(directory)
    usual = [{"type": "Prepend", "prepend": "▁"}] * (part == "normalizer") + [replaced({"String": " "}, "▁")]
    backend(part, type="Sequence", **{steps: [*usual, replaced({"Regex": r"\s+"}, " ")]})(directory)
    load_tokenizer(directory)


@pytest.mark.parametrize("length", [-5, 2])
def test_a_tokenizer_of_texts_without_words_is_refused(directory, length):
    change(directory / "tokenizer_config.json", model_max_length=length)
    with pytest.raises(UserError, match=f"reads {length} tokens at most .*: 3 are needed"):
        load_tokenizer(directory)
