"""Uni-Perceiver v1's decoder in ours: the same layers, from keys and shapes of its public code."""

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from uniperceiver_v2.checkpoint.adapters import load_pretrained
from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling.decoder import IMAGE_TO_TEXT, Attributes, Segment, UnifiedDecoder

DIM, HEADS, HIDDEN, COUNT = 32, 4, 48, 3
SCALES = ("img_cls", "video_cls", "text_mlm", "text_caption", "caption", "mlm", "retrieve")
SCALES += ("tqa_mlm", "tqa_caption", "tqa_retrieve", "downstream")


class PlainLayer(nn.Module):
    """A layer of v1, of PyTorch's own parts: norms first, and a learned scale on what each part adds."""

    def __init__(self):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(DIM, HIDDEN), nn.Linear(HIDDEN, DIM)
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.gamma_1, self.gamma_2 = nn.Parameter(torch.rand(DIM)), nn.Parameter(torch.rand(DIM))

    def forward(self, x):
        own = self.norm1(x)
        x = x + self.gamma_1 * self.self_attn(own, own, own, need_weights=False)[0]
        return x + self.gamma_2 * self.linear2(nn.functional.gelu(self.linear1(self.norm2(x))))


class PlainV1(nn.Module):
    """The parts of v1's checkpoint, under its keys."""

    def __init__(self):
        super().__init__()
        self.fused_encoder = nn.Module()
        self.fused_encoder.layers = nn.ModuleList(PlainLayer() for _ in range(COUNT))
        self.token_embed, self.video_embed, self.loss_prepare = nn.Module(), nn.Module(), nn.Module()
        for embed in (self.token_embed, self.video_embed):
            embed.embeddings_norm = nn.LayerNorm(DIM)
        self.token_embed.embeddings, self.token_embed.embeddings_pos = nn.Embedding(11, DIM), nn.Module()
        self.token_embed.embeddings_pos.position_embeddings = nn.Embedding(9, DIM)
        self.token_embed.embeddings_token_type = nn.Embedding(2, DIM)
        self.video_embed.embeddings, self.video_embed.embeddings_st_pos = nn.Conv2d(3, DIM, 4), nn.Module()
        self.video_embed.embeddings_st_pos.spatial_pos_embed = nn.Embedding(9, DIM)
        self.video_embed.embeddings_st_pos.temporal_pos_embed = nn.Embedding(8, DIM)
        self.video_embed.embeddings_type = nn.Embedding(1, DIM)
        self.loss_prepare.ln_post, self.loss_prepare.proj = nn.LayerNorm(DIM), nn.Linear(DIM, DIM)
        for name in SCALES:
            setattr(self.loss_prepare, f"logit_scale_{name}", nn.Parameter(torch.rand([])))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3)


def decoder_with(**settings) -> UnifiedDecoder:
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    node = cfg.MODEL.UNIPERCEIVER_V2
    node.EMBED_DIM = DIM
    node.DECODER.update({"LAYERS": COUNT, "HEADS": HEADS, "FFN_DIM": HIDDEN, "EXPERTS": 0, **settings})
    return UnifiedDecoder(cfg).eval()


@pytest.fixture
def published(tmp_path):
    """v1 with random weights, and its file."""
    model = PlainV1().eval()
    torch.save({"model": model.state_dict()}, tmp_path / "v1.pth")
    return model, str(tmp_path / "v1.pth")


@torch.no_grad()
def test_all_layers_compute_what_v1s_do(published):
    original, path = published
    decoder = decoder_with()
    load_pretrained(nn.Module(), HEADS, [path], decoder)
    image, text = torch.randn(2, 5, DIM), torch.randn(2, 4, DIM)
    attributes = [Attributes(modality, "input", IMAGE_TO_TEXT) for modality in ("image", "text")]
    found = decoder([Segment(tokens, None, a) for tokens, a in zip((image, text), attributes)])
    entering = [original.video_embed.embeddings_norm(image), original.token_embed.embeddings_norm(text)]
    hidden = torch.cat([decoder.spe.expand(2, 1, -1), *entering], dim=1)
    for layer in original.fused_encoder.layers:
        hidden = layer(hidden)
    expected = original.loss_prepare.ln_post(hidden)
    torch.testing.assert_close(found.spe, expected[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(found.segments, dim=1), expected[:, 1:], rtol=1e-4, atol=1e-5)


def test_every_key_is_accounted_for(published):
    original, path = published
    (table,) = load_pretrained(nn.Module(), HEADS, [path], decoder_with())
    named = {source for entries in (table.loaded, table.converted, table.skipped) for source, _, _ in entries}
    assert named == set(original.state_dict())
    assert len(table.loaded) == 6 * COUNT + 6 and len(table.converted) == (6 + 4) * COUNT
    assert [key for _, key, _ in table.kept] == ["spe"] and not table.supplied
    assert "LAYERS: 3, FFN_DIM: 48, EXPERTS: 0" in str(table)


@torch.no_grad()
def test_a_shorter_decoder_takes_the_first_layers(published):
    original, path = published
    decoder = decoder_with(LAYERS=2)
    (table,) = load_pretrained(nn.Module(), HEADS, [path], decoder)
    left_out = [key for key, _, how in table.skipped if how == "our decoder has 2 layers"]
    assert len(left_out) == 14 and all(key.startswith("fused_encoder.layers.2.") for key in left_out)
    second = original.fused_encoder.layers[1]
    torch.testing.assert_close(decoder.layers[1].ffn.linear2.weight, second.linear2.weight * second.gamma_2[:, None])


@pytest.mark.parametrize("settings", [{"EXPERTS": 3, "ACTIVE_EXPERTS": 2}, {"FFN_DIM": 64}, {"LAYERS": 4}])
def test_another_decoder_is_refused_with_the_settings_that_fit(published, settings):
    decoder = decoder_with(**settings)
    before = {key: value.clone() for key, value in decoder.state_dict().items()}
    with pytest.raises(UserError, match=r"keys do not fit(.|\n)*LAYERS: 3, FFN_DIM: 48, EXPERTS: 0"):
        load_pretrained(nn.Module(), HEADS, [published[1]], decoder)
    assert all(torch.equal(value, before[key]) for key, value in decoder.state_dict().items())


def test_an_unknown_key_is_named(published, tmp_path):
    state = published[0].state_dict() | {"cls_token.weight": torch.zeros(1, DIM)}
    torch.save({"model": state}, tmp_path / "more.pth")
    with pytest.raises(UserError, match=r"cls_token.weight .* left over"):
        load_pretrained(nn.Module(), HEADS, [str(tmp_path / "more.pth")], decoder_with())
    with pytest.raises(UserError, match="weights of a decoder"):
        load_pretrained(nn.Module(), HEADS, [published[1]])


def test_the_published_sizes_fit_a_dense_decoder_of_twelve_layers():
    """By shapes alone: the base model of the public repository in a decoder of the paper's width."""
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    cfg.MODEL.UNIPERCEIVER_V2.DECODER.update({"LAYERS": 12, "HEADS": 12, "FFN_DIM": 3072, "EXPERTS": 0})
    with torch.device("meta"):
        own = UnifiedDecoder(cfg).state_dict()
    shapes = {"norm1.weight": (768,), "norm1.bias": (768,), "norm2.weight": (768,), "norm2.bias": (768,)}
    shapes |= {"self_attn.in_proj_weight": (2304, 768), "self_attn.in_proj_bias": (2304,)}
    shapes |= {"self_attn.out_proj.weight": (768, 768), "self_attn.out_proj.bias": (768,)}
    shapes |= {"linear1.weight": (3072, 768), "linear1.bias": (3072,), "gamma_1": (768,), "gamma_2": (768,)}
    shapes |= {"linear2.weight": (768, 3072), "linear2.bias": (768,)}
    state = {
        f"fused_encoder.layers.{n}.{k}": torch.empty(s, device="meta") for n in range(12) for k, s in shapes.items()
    }
    for part in ("token_embed.embeddings_norm", "video_embed.embeddings_norm", "loss_prepare.ln_post"):
        state |= {f"{part}.{kind}": torch.empty(768, device="meta") for kind in ("weight", "bias")}
    from uniperceiver_v2.checkpoint.adapters import convert, uniperceiver_v1

    values, _ = convert(state, own, uniperceiver_v1.plan(state, own, 12))
    assert {key: value.shape for key, value in values.items()} == {k: v.shape for k, v in own.items() if k != "spe"}
