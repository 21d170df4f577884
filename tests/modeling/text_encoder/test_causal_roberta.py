"""Reading word by word, as in generation, compared with Hugging Face's model and its own cache."""

import pytest
import torch
from transformers import AutoConfig, AutoModel

from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.modeling.pretrained import load_tokenizer
from uniperceiver_v2.modeling.text_encoder import TextEncoder

TOKENIZER = REPOSITORY / "configs/digit_scenes/text_encoder"
WIDTH, LONGEST = 16, 12


def encoder_of(kind: str = "roberta", **fields) -> TextEncoder:
    """An encoder with random weights in every part, as initial biases and norms have no effect."""
    tokenizer = load_tokenizer(TOKENIZER)
    fields |= {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": LONGEST + 2,
        "pad_token_id": tokenizer.pad_token_id,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    model = AutoModel.from_config(AutoConfig.for_model(kind, **fields), add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return TextEncoder(model=model, tokenizer=tokenizer, dim=WIDTH).eval()


def prepared(encoder: TextEncoder) -> bool:
    return encoder.begin().causal is not None


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "roberta-prelayernorm", "bert"])
@torch.no_grad()
def test_words_read_one_by_one_equal_hugging_faces_own_cache(kind):
    """The prepared layers are compared with the same model run by Hugging Face, which training mode uses."""
    encoder = encoder_of(kind, hidden_act="silu").double()
    ids, found = torch.randint(3, encoder.vocab_size, (3, LONGEST)), []
    for mode in (False, True):
        assert prepared(encoder.train(mode)) is not mode
        cache = encoder.begin()
        found.append(torch.cat([encoder.extend(cache, part) for part in ids.split(1, dim=1)], dim=1))
    assert found[1].std() > 0.1
    torch.testing.assert_close(*found)


def test_generation_is_prepared_once_and_again_when_a_weight_changes():
    encoder, ids = encoder_of(), torch.tensor([[5, 6, 7]])
    assert not prepared(encoder)  # with gradients
    with torch.no_grad():
        first = encoder.begin().causal
        assert encoder.begin().causal is first
        encoder.model.encoder.layer[1].attention.self.key.weight.mul_(2)
        found = encoder.extend(encoder.begin(), ids)
        torch.testing.assert_close(found, encoder(ids, None, causal=True), atol=1e-5, rtol=1e-5)
        assert len(encoder._causal) == 1
        encoder.train().eval()
        assert len(encoder._causal) == 0


@torch.no_grad()
def test_generation_under_autocast_keeps_its_weights_in_half_precision():
    encoder, ids = encoder_of(), torch.tensor([[5, 6, 7]])
    exact = encoder.extend(encoder.begin(), ids)
    with torch.autocast("cpu", torch.bfloat16):
        cache = encoder.begin()
        found = encoder.extend(cache, ids)
        assert cache.past._buffer.dtype == cache.causal.layers[0]._inputs[0].dtype == torch.bfloat16
        torch.testing.assert_close(found, encoder(ids, None, causal=True), atol=0.05, rtol=0.05)
    torch.testing.assert_close(found.float(), exact, atol=0.1, rtol=0.1)
