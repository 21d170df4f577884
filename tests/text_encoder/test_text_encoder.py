"""The text encoder against Hugging Face's RoBERTa run directly."""

import json
import shutil

import pytest
import torch
from detectron2.config import get_cfg
from transformers import AutoConfig, AutoTokenizer, RobertaConfig, RobertaForMaskedLM, RobertaModel

from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.pretrained import REPOSITORY, resolve_directory
from uniperceiver_v2.text_encoder import TextEncoder

TOKENIZER = REPOSITORY / "configs/digit_scenes/text_encoder"
WIDTH, LONGEST = 16, 12
TEXTS = ("seven", "a red seven to the left of two blue threes", "")


@pytest.fixture
def directory(tmp_path):
    """A small RoBERTa without weights: twelve tokens are its longest text."""
    for file in TOKENIZER.glob("tokenizer*.json"):
        shutil.copy(file, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=LONGEST + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    ).save_pretrained(tmp_path)
    return tmp_path


def text_cfg(path, dim: int = WIDTH):
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    cfg.MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH = str(path)
    cfg.MODEL.UNIPERCEIVER_V2.EMBED_DIM = dim
    return cfg


def test_tokens_equal_robertas(directory):
    RobertaModel(AutoConfig.from_pretrained(directory)).save_pretrained(directory)
    encoder = TextEncoder(text_cfg(directory)).eval()
    token_ids, valid = encoder.tokenize(TEXTS[:1] + TEXTS[2:])
    inputs = AutoTokenizer.from_pretrained(directory)(list(TEXTS[:1] + TEXTS[2:]), padding=True, return_tensors="pt")
    assert torch.equal(token_ids, inputs["input_ids"])
    assert torch.equal(valid, inputs["attention_mask"].bool())
    expected = RobertaModel.from_pretrained(directory).eval()(**inputs).last_hidden_state
    assert expected.std() > 0.1
    torch.testing.assert_close(encoder(token_ids, valid), expected, atol=1e-5, rtol=1e-5)


def test_weights_of_a_language_model_serve(directory):
    """As roberta-base is published: with a head for masked words, below a prefix."""
    saved = RobertaForMaskedLM(AutoConfig.from_pretrained(directory)).eval()
    saved.save_pretrained(directory)
    encoder = TextEncoder(text_cfg(directory)).eval()
    token_ids, valid = encoder.tokenize(["three"])
    expected = saved.roberta(input_ids=token_ids, attention_mask=valid.long()).last_hidden_state
    torch.testing.assert_close(encoder(token_ids, valid), expected, atol=1e-5, rtol=1e-5)


def test_other_width_is_projected(directory):
    encoder = TextEncoder(text_cfg(directory, dim=10)).eval()
    token_ids, valid = encoder.tokenize(TEXTS)
    hidden = encoder.model(input_ids=token_ids, attention_mask=valid.long()).last_hidden_state
    found = encoder(token_ids, valid)
    assert found.shape == (3, token_ids.shape[1], 10)
    torch.testing.assert_close(found, hidden @ encoder.project.weight.T + encoder.project.bias)


def test_a_text_does_not_depend_on_the_length_of_others(directory):
    encoder = TextEncoder(text_cfg(directory)).eval()
    alone_ids, alone_valid = encoder.tokenize(TEXTS[:1])
    ids, valid = encoder.tokenize(TEXTS)
    length = alone_ids.shape[1]
    assert ids.shape[1] > length
    assert valid.sum(1)[0] == length
    alone, together = encoder(alone_ids, alone_valid), encoder(ids, valid)
    torch.testing.assert_close(together[0, :length], alone[0], atol=1e-5, rtol=1e-5)


def test_long_texts_are_cut(directory):
    encoder = TextEncoder(text_cfg(directory)).eval()
    assert encoder.max_length == LONGEST
    long = "three " * 50
    ids, valid = encoder.tokenize([long, "two"])
    assert ids.shape == (2, LONGEST)
    assert ids[0, 0] == encoder.tokenizer.bos_token_id
    assert ids[0, -1] == encoder.tokenizer.eos_token_id
    assert encoder(ids, valid).isfinite().all()  # the longest position has an embedding


def test_committed_text_encoder_of_digit_scenes():
    width = AutoConfig.from_pretrained(TOKENIZER).hidden_size
    encoder = TextEncoder(text_cfg("configs/digit_scenes/text_encoder", dim=width)).eval()
    ids, valid = encoder.tokenize(TEXTS)
    assert encoder(ids, valid).shape == (3, ids.shape[1], width)
    assert encoder.tokenizer.decode(ids[1], skip_special_tokens=True).strip() == TEXTS[1]
    assert ids.max() < encoder.model.config.vocab_size
    assert isinstance(encoder.project, torch.nn.Identity)


def test_gradients_reach_the_whole_encoder(directory):
    encoder = TextEncoder(text_cfg(directory, dim=10))
    encoder(*encoder.tokenize(TEXTS)).square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_directories_are_looked_for_here_and_in_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_directory("configs/digit_scenes", "KEY") == REPOSITORY / "configs/digit_scenes"
    (tmp_path / "configs/digit_scenes").mkdir(parents=True)
    assert resolve_directory("configs/digit_scenes", "KEY").resolve() == (tmp_path / "configs/digit_scenes").resolve()


def message(path) -> str:
    with pytest.raises(UserError) as info:
        TextEncoder(text_cfg(path))
    return str(info.value)


def test_missing_and_empty_directories(tmp_path):
    found = message(tmp_path / "nowhere")
    assert "TEXT_ENCODER.PATH" in found
    assert str(tmp_path / "nowhere") in found
    assert str(tmp_path) in message(tmp_path)


def test_directory_of_something_else(directory):
    AutoConfig.for_model("resnet").save_pretrained(directory)
    assert "no text encoder" in message(directory)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_files_cut_short(directory, file):
    text = (directory / file).read_text()
    (directory / file).write_text(text[: len(text) // 2])
    assert str(directory) in message(directory)


def test_field_of_a_wrong_type(directory):
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**fields, "hidden_size": "wide"}))
    assert "hidden_size" in message(directory)


def test_weights_cut_short(directory):
    RobertaModel(AutoConfig.from_pretrained(directory)).save_pretrained(directory)
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    assert str(directory) in message(directory)


def test_weights_of_other_shapes(directory):
    RobertaModel(AutoConfig.from_pretrained(directory)).save_pretrained(directory)
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**fields, "intermediate_size": 20}))
    found = message(directory)
    assert "another architecture" in found
    assert "[24, 16] in the file, [20, 16] in the model" in found
