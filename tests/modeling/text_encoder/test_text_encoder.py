"""The text encoder compared with Hugging Face's RoBERTa run directly."""

import json
import shutil

import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel, AutoTokenizer, RobertaConfig, RobertaForMaskedLM, RobertaModel

from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.modeling.pretrained import load_tokenizer, resolve_directory
from uniperceiver_v2.modeling.text_encoder import TextEncoder

TOKENIZER = REPOSITORY / "configs/digit_scenes/text_encoder"
WIDTH, LONGEST = 16, 12
TEXTS = ("seven", "a red seven to the left of two blue threes", "")


@pytest.fixture
def directory(tmp_path):
    """A small RoBERTa without weights. Its longest text has twelve tokens."""
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
    """In the form of the published roberta-base: with a head for masked words, and with a prefix in the names."""
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
    name = "configs/digit_scenes/text_encoder"
    assert resolve_directory(name, "KEY") == REPOSITORY / name
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "config.json").write_text("{}")
    assert resolve_directory(name, "KEY").resolve() == (tmp_path / name).resolve()


@pytest.mark.parametrize("path", ["", "configs"])
def test_a_setting_that_names_no_model_is_told(path):
    with pytest.raises(UserError, match=f"KEY: '{path}' is no directory of a Hugging Face model"):
        resolve_directory(path, "KEY")


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


@torch.no_grad()
def test_causal_tokens_equal_robertas_as_a_decoder(directory):
    RobertaModel(AutoConfig.from_pretrained(directory)).save_pretrained(directory)
    encoder = TextEncoder(text_cfg(directory)).eval()
    ids, valid = encoder.tokenize(TEXTS)
    assert not valid.all()
    expected = RobertaModel.from_pretrained(directory, is_decoder=True).eval()(ids, valid.long()).last_hidden_state
    found = encoder(ids, valid, causal=True)
    torch.testing.assert_close(found[valid], expected[valid], atol=1e-5, rtol=1e-5)
    assert (found - encoder(ids, valid))[valid].abs().max() > 0.1


@torch.no_grad()
def test_weights_saved_as_a_decoder_read_whole_texts(directory):
    whole = RobertaModel(AutoConfig.from_pretrained(directory)).eval()
    whole.config.is_decoder = True
    whole.save_pretrained(directory)
    encoder = TextEncoder(text_cfg(directory)).eval()
    ids, valid = encoder.tokenize(TEXTS[1:2])
    whole.config.is_decoder = False
    torch.testing.assert_close(encoder(ids, valid), whole(ids).last_hidden_state, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def small_encoder():
    encoder = TextEncoder(text_cfg(TOKENIZER, dim=10))
    encoder.model = RobertaModel(
        RobertaConfig(
            vocab_size=encoder.vocab_size,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=LONGEST + 2,
            initializer_range=0.3,
        ),
        add_pooling_layer=False,
    )
    encoder.project = torch.nn.Linear(WIDTH, 10)
    return encoder.eval()


@settings(max_examples=25, deadline=None)
@given(chunks=st.lists(st.integers(1, 4), min_size=1, max_size=4), data=st.data())
@torch.no_grad()
def test_cache_gives_the_causal_tokens(small_encoder, chunks, data):
    """Texts are read in pieces of any length, and reordered, copied and dropped in between."""
    chunks = [size for i, size in enumerate(chunks) if sum(chunks[: i + 1]) <= LONGEST]
    ids = torch.randint(3, small_encoder.vocab_size, (3, sum(chunks)))
    cache, found = small_encoder.begin(), torch.empty(3, 0, 10)
    for start, size in zip([sum(chunks[:i]) for i in range(len(chunks))], chunks, strict=True):
        found = torch.cat([found, small_encoder.extend(cache, ids[:, start : start + size])], dim=1)
        assert cache.length == start + size
        indices = torch.tensor(data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=5)))
        ids, found, cache = ids[indices], found[indices], cache.select(indices)
    expected = small_encoder(ids, torch.ones_like(ids, dtype=torch.bool), causal=True)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_cache_ends_with_the_encoders_positions(small_encoder):
    cache = small_encoder.begin()
    small_encoder.extend(cache, torch.full((1, LONGEST), 7))
    with pytest.raises(ValueError, match="12 tokens cannot be followed by 1"):
        small_encoder.extend(cache, torch.full((1, 1), 7))


@torch.no_grad()
def test_nothing_is_seen_of_later_tokens(small_encoder):
    ids = torch.randint(3, small_encoder.vocab_size, (1, LONGEST))
    valid = torch.ones_like(ids, dtype=torch.bool)
    before = small_encoder(ids, valid, causal=True)
    for position in range(LONGEST):
        changed = ids.clone()
        changed[0, position] = (ids[0, position] + 7) % small_encoder.vocab_size
        different = (small_encoder(changed, valid, causal=True) - before).abs().amax(-1)[0]
        assert different[:position].max() == 0 if position else True
        assert (different[position:] > 1e-4).all()


@pytest.mark.parametrize("kind", ["xlm-roberta", "roberta-prelayernorm", "bert"])
@torch.no_grad()
def test_relatives_read_causally_too(small_encoder, kind):
    fields = {k: v for k, v in small_encoder.model.config.to_dict().items() if k != "model_type"}
    encoder = TextEncoder(
        model=AutoModel.from_config(AutoConfig.for_model(kind, **fields), add_pooling_layer=False),
        tokenizer=small_encoder.tokenizer,
        dim=WIDTH,
    ).eval()
    ids = torch.randint(3, encoder.vocab_size, (2, 6))
    expected = encoder(ids, torch.ones_like(ids, dtype=torch.bool), causal=True)
    torch.testing.assert_close(encoder(ids[:, :3], torch.ones(2, 3).bool(), causal=True), expected[:, :3])
    cache = encoder.begin()
    found = torch.cat([encoder.extend(cache, part) for part in ids.split(2, dim=1)], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_attention_kernel_takes_the_mask(small_encoder):
    ids, valid = small_encoder.tokenize(TEXTS)
    expected = small_encoder(ids, valid, causal=True)[valid]
    small_encoder.model.set_attn_implementation("eager")
    torch.testing.assert_close(small_encoder(ids, valid, causal=True)[valid], expected, atol=1e-5, rtol=1e-5)
    small_encoder.model.set_attn_implementation("sdpa")
    with torch.autocast("cpu", torch.bfloat16):
        half = small_encoder(ids, valid, causal=True)[valid]
    torch.testing.assert_close(half.float(), expected, atol=0.1, rtol=0.1)


def test_special_tokens_and_texts_of_tokens(small_encoder):
    tokenizer = small_encoder.tokenizer
    names = ("bos", "eos", "pad", "mask")
    ids = [getattr(small_encoder, f"{name}_id") for name in names]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "</s>", "<pad>", "<mask>"]
    texts = [*TEXTS, "für 数"]
    token_ids, _ = small_encoder.tokenize(texts)
    assert small_encoder.decode(token_ids) == texts
    assert small_encoder.decode([token_ids[0], token_ids[2, :1]]) == [texts[0], ""]


def test_tokenizer_alone():
    tokenizer = load_tokenizer(TOKENIZER)
    assert tokenizer("seven").input_ids == AutoTokenizer.from_pretrained(TOKENIZER)("seven").input_ids


def tokenizer_message(path) -> str:
    with pytest.raises(UserError) as info:
        load_tokenizer(path)
    return str(info.value)


def test_no_tokenizer_beside_a_configuration(directory):
    """From such a directory transformers makes a tokenizer that knows no word."""
    for file in directory.glob("tokenizer*.json"):
        file.unlink()
    found = tokenizer_message(directory)
    assert "no tokenizer can be loaded" in found
    assert str(directory) in found


@pytest.mark.parametrize(
    "change", [lambda fields: fields.pop("mask_token"), lambda fields: fields.update(pad_token=None)]
)
def test_tokenizer_without_masking_or_padding(directory, change):
    file = directory / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))
    found = tokenizer_message(directory)
    assert str(directory) in found
    assert "None" in found


def test_tokenizer_that_marks_no_ends(directory):
    file = directory / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": None}))
    assert "frames a text with [] " in tokenizer_message(directory)


def test_tokenizer_of_a_larger_model(directory):
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**fields, "vocab_size": 99}))
    assert "509 tokens, more than the text encoder's 99" in message(directory)


def test_tokens_of_the_last_sets_are_kept(directory, monkeypatch):
    encoder, calls = TextEncoder(text_cfg(directory)), []
    tokenize = encoder._tokenize
    monkeypatch.setattr(encoder, "_tokenize", lambda texts, device: (calls.append(texts), tokenize(texts, device))[1])
    monkeypatch.setattr("uniperceiver_v2.modeling.text_encoder.text_encoder.TOKENIZED_SETS", 2)
    first = encoder.tokenize(["seven", "two"])
    assert encoder.tokenize(("seven", "two")) is first
    assert calls == [("seven", "two")]
    for text in ("one", "two", "two", "seven two"):
        ids, valid = encoder.tokenize((text,))
        assert encoder.decode(ids) == [text]
        assert valid.all()
    assert len(calls) == 4
    encoder.tokenize(("seven", "two"))  # the oldest was forgotten
    assert len(calls) == 5


@pytest.mark.parametrize("causal", [False, True])
def test_texts_without_padding_need_no_validity(directory, causal):
    encoder = TextEncoder(text_cfg(directory)).eval()
    token_ids, valid = encoder.tokenize(TEXTS[:1])
    assert valid.all()
    torch.testing.assert_close(encoder(token_ids, None, causal), encoder(token_ids, valid, causal))
