"""MODEL.UNIPERCEIVER_V2.ACTIVATION_CHECKPOINTING on complete models: only memory and time change."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from uniperceiver_v2.config.checks import PARTS
from uniperceiver_v2.errors import UserError

NAMES = ("zero", "one", "seven")
SWIN = {
    "model_type": "swin",
    "embed_dim": 8,
    "depths": [1, 2, 1, 1],
    "num_heads": [1, 1, 2, 2],
    "window_size": 4,
    "drop_path_rate": 0.5,
}
CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1], "drop_path_rate": 0.5}


def batch_of(model, task: str) -> list[dict]:
    """Two images of different sizes, with the fields that the kind of task needs."""
    found = []
    for index, (height, width) in enumerate(((64, 64), (48, 64))):
        masks = torch.zeros(1, height, width, dtype=torch.bool)
        masks[0, 8:30, 10:40] = True
        objects = Instances(
            (height, width), gt_boxes=Boxes([[10.0, 8.0, 40.0, 30.0]]), gt_classes=torch.tensor([index])
        )
        objects.gt_masks = BitMasks(masks)
        captions = [
            model.text_encoder.tokenize([text])[0][0] for text in ("a red seven", "one two three seven"[index:])
        ]
        image = (torch.arange(3 * height * width) * (7 + index) % 251).to(torch.uint8).view(3, height, width)
        phrases = {"phrases": ("red seven", "nothing", "seven"[index:]), "phrase_objects": torch.eye(3, 1).bool()}
        texts = {
            **phrases,
            "candidates": NAMES,
            "caption_token_ids": captions,
            "token_ids": captions[0],
            "file_name": str(index),
        }
        found.append({"task": task, "image": image, "instances": objects, "label": index, **texts})
    return found


def step(model, task: str) -> dict[str, torch.Tensor]:
    """Losses and gradients of a batch, by name."""
    torch.manual_seed(3)
    model.train()
    with EventStorage():
        losses = model(batch_of(model, task))
    model.zero_grad()
    sum(losses.values()).backward()
    return {**losses, **{name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}}


def checkpointed(cfg: CfgNode, weights: dict[str, torch.Tensor], *parts: str):
    cfg.MODEL.UNIPERCEIVER_V2.ACTIVATION_CHECKPOINTING = list(parts)
    model = build_model(cfg)
    assert model.load_state_dict(weights)  # the same names
    return model


@pytest.fixture
def config(tiny_config) -> CfgNode:
    node = tiny_config.MODEL.UNIPERCEIVER_V2
    node.DECODER.LAYERS = node.REGION.ENCODER_LAYERS = 2
    return tiny_config


@pytest.fixture
def plain(config):
    """A model with random weights in every part, as the initial decoder only pools."""
    model = build_model(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def count_runs(model) -> dict[str, list[int]]:
    """Counts the runs of the first layer of every block from now on, by part. A second run may end as soon as all
    requested activations are computed."""
    regions = model.image_encoder.regions
    first = {
        "backbone": [block.layer[0] for block in model.image_encoder.backbone.blocks()],
        "region_network": [
            *(layer.attention for layer in regions.encoder.layers),
            *(layer.self_attention for layer in regions.decoder.layers),
        ],
        "text_encoder": [layer.attention for layer in model.text_encoder.model.encoder.layer],
        "decoder": [layer.ffn_norm for layer in model.decoder.layers],
    }
    runs = {part: [0] * len(modules) for part, modules in first.items()}
    for part, modules in first.items():
        for index, module in enumerate(modules):

            def count(*_, part=part, index=index):
                runs[part][index] += 1

            module.register_forward_pre_hook(count)
    return runs


@pytest.mark.parametrize("task", ["detection", "captioning", "classification", "retrieval", "grounding"])
@pytest.mark.parametrize("parts", [("backbone",), ("region_network",), ("decoder",), PARTS], ids="+".join)
def test_losses_and_gradients_are_the_same_bits(config, plain, task, parts):
    other = checkpointed(config, plain.state_dict(), *parts)
    once, twice = count_runs(plain), count_runs(other)
    expected, found = step(plain, task), step(other, task)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    for part, runs in once.items():
        assert twice[part] == [(2 if part in parts else 1) * n for n in runs]


def kept_bytes(model, task: str) -> int:
    """The bytes that autograd keeps of a step's forward pass, without the weights."""
    storages = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(), x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), EventStorage():
        model.train()(batch_of(model, task))
    weights = {p.data_ptr() for p in model.parameters()}
    return sum(size for pointer, (size, _) in storages.items() if pointer not in weights)


def test_activations_are_freed(config, plain):
    def share(*parts: str) -> float:
        return kept_bytes(checkpointed(config, plain.state_dict(), *parts), "classification") / everything

    everything = kept_bytes(plain, "classification")
    shares = {parts: share(*parts) for parts in (*zip(PARTS), PARTS)}
    assert all(0.3 < value < 0.97 for value in shares.values()), shares
    assert shares[PARTS] < min(shares[(part,)] for part in PARTS) - 0.05


@pytest.mark.parametrize("fields", [SWIN, CONVNEXT], ids=lambda fields: fields["model_type"])
def test_backbones_with_stochastic_depth(config, fields):
    config.MODEL.UNIPERCEIVER_V2.BACKBONE.update({"CONFIG": CfgNode(fields), "NORM": ""})
    plain = build_model(config)
    other = checkpointed(config, plain.state_dict(), "backbone")
    expected, found = step(plain, "classification"), step(other, "classification")
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert len(other.image_encoder.backbone.blocks()) == 5


def test_evaluation_stays_as_it_was(config, plain):
    other = checkpointed(config, plain.state_dict(), *PARTS)
    batch = batch_of(plain, "captioning")
    assert plain.eval()(batch)[0]["log_likelihood"] == other.eval()(batch)[0]["log_likelihood"]


def test_same_bits_under_autocast(config, plain):
    other = checkpointed(config, plain.state_dict(), *PARTS)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = step(plain, "captioning"), step(other, "captioning")
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_batch_normalisation_with_statistics_is_refused(config):
    config.MODEL.UNIPERCEIVER_V2.BACKBONE.NORM = ""
    config.MODEL.UNIPERCEIVER_V2.ACTIVATION_CHECKPOINTING = ["region_network", "backbone"]
    with pytest.raises(UserError, match=r"ACTIVATION_CHECKPOINTING, backbone: ResNetBasicLayer.*running statistics"):
        build_model(config)
