"""COMPILE and CHANNELS_LAST: the same function and the same names, and few graphs for all sizes of images."""

import copy
import logging

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from transformers import AutoBackbone, SwinConfig

from uniperceiver_v2.config import checks
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.modeling import model as model_module
from uniperceiver_v2.modeling.image_encoder import HuggingFaceBackbone
from uniperceiver_v2.modeling.layers import can_compile, compile_modules

from .graphs import Graphs, fresh  # noqa: F401  (a fixture)

SIZES = ((64, 64), (96, 64), (64, 128), (128, 96), (160, 96), (96, 160))


def batch_of(model, size: tuple[int, int], images: int = 2) -> list[dict]:
    """Images of one size with an object, and a caption."""
    found = []
    for index in range(images):
        masks = torch.zeros(1, *size, dtype=torch.bool)
        masks[0, 8 : 24 + index, 8:40] = True
        objects = Instances(size, gt_boxes=Boxes([[8.0, 8.0, 40.0, 24.0 + index]]), gt_masks=BitMasks(masks))
        objects.gt_classes = torch.tensor([index % 2])
        image = (torch.arange(3 * size[0] * size[1]) * (7 + index) % 251).to(torch.uint8).view(3, *size)
        token_ids = model.text_encoder.tokenize(["a red seven"])[0][0]
        texts = {"candidates": ("zero", "one"), "label": index % 2, "caption_token_ids": [token_ids]}
        found.append({"image": image, "instances": objects, **texts})
    return found


def numbers(model, task: str, batch: list[dict]) -> dict[str, torch.Tensor]:
    """Losses and gradients by name."""
    torch.manual_seed(5)
    model.train().zero_grad()
    with EventStorage():
        losses = model([{**x, "task": task} for x in batch])
    sum(losses.values()).backward()
    return losses | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict, expected: dict, **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(
            found[name], expected[name], **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def compiled(model, backend) -> torch.nn.Module:
    other = copy.deepcopy(model)
    compile_modules(other.image_encoder.backbone.blocks(), backend)
    other.image_encoder.regions.compile_layers(backend)
    compile_modules(other.text_encoder.blocks(), backend)
    other.decoder.compile_layers(backend)
    return other


def test_every_part_computes_the_same_in_few_graphs_whatever_the_size_of_images(tiny_model):
    """Graphs run unchanged, so that results are equal to the last bit."""
    graphs = Graphs()
    other = compiled(tiny_model, graphs)
    counts = []
    for number, size in enumerate(SIZES):
        batch = batch_of(tiny_model, size, images=2 + number % 2)
        for task in ("scenes", "captions"):
            assert_close(numbers(other, task, batch), numbers(tiny_model, task, batch), rtol=0, atol=0)
        counts.append(len(graphs))
    # Another graph for the second size: a mask without padding, or a batch of another size, was a constant.
    assert 20 < counts[1] == counts[-1] < 60, counts
    breaks = torch._dynamo.utils.counters["graph_break"]
    assert all("multi_scale_deformable_attention" in reason or "disable" in reason for reason in breaks), breaks


@pytest.mark.slow
def test_blocks_that_recompute_their_activations_are_compiled_too(tiny_config):
    plain = build_model(tiny_config)
    tiny_config.MODEL.UNIPERCEIVER_V2.ACTIVATION_CHECKPOINTING = list(checks.PARTS)
    other = build_model(tiny_config)
    other.load_state_dict(plain.state_dict())
    graphs = Graphs()
    other = compiled(other, graphs)
    batch = batch_of(plain, (64, 96))
    assert_close(numbers(other, "captions", batch), numbers(plain, "captions", batch), rtol=1e-6, atol=1e-8)
    assert len(graphs) > 10


@pytest.mark.slow
def test_blocks_of_swin_in_few_graphs():
    """Windows of two blocks, the second of them shifted. Padding to whole windows takes another graph."""
    config = SwinConfig(embed_dim=8, depths=[2], num_heads=[1], window_size=4, out_features=["stage1"])
    backbone, graphs = HuggingFaceBackbone(AutoBackbone.from_config(config)).eval(), Graphs()
    other = copy.deepcopy(backbone)
    compile_modules(other.blocks(), graphs)
    counts = []
    for size in SIZES:
        images = torch.rand(2, 3, *size)
        with torch.no_grad():
            assert torch.equal(other(images)["stage1"], backbone(images)["stage1"])
        counts.append(len(graphs))
    assert 2 <= counts[0] <= counts[-1] <= 4, counts


@pytest.mark.slow
def test_machine_code_of_backbone_and_regions_computes_the_same(tiny_config):
    if not can_compile("cpu"):
        pytest.skip("torch.compile does not work here: there may be no C++ compiler")
    tiny_config.MODEL.UNIPERCEIVER_V2.BACKBONE.CONFIG.hidden_sizes = [8, 8, 8, 8]  # few graphs, as they take a minute
    plain = build_model(tiny_config)
    tiny_config.MODEL.UNIPERCEIVER_V2.COMPILE = ["backbone", "region_network"]
    tiny_config.MODEL.UNIPERCEIVER_V2.CHANNELS_LAST = True
    other = build_model(tiny_config)
    other.load_state_dict(plain.state_dict())
    batch = batch_of(plain, (64, 96))
    assert_close(numbers(other, "scenes", batch), numbers(plain, "scenes", batch), rtol=1e-3, atol=2e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 6


@pytest.mark.parametrize("task", ["scenes", "captions"])
def test_channels_last_computes_the_same_in_the_other_layout(tiny_config, task):
    plain = build_model(tiny_config)
    tiny_config.MODEL.UNIPERCEIVER_V2.CHANNELS_LAST = True
    other = build_model(tiny_config)
    assert other.state_dict().keys() == plain.state_dict().keys()
    other.load_state_dict(plain.state_dict())
    layouts = []
    for module in other.image_encoder.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda module, inputs, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
            )
    batch = batch_of(plain, (64, 96))
    assert_close(numbers(other, task, batch), numbers(plain, task, batch), rtol=1e-3, atol=1e-4)
    assert layouts and all(layouts)
    again = build_model(tiny_config)
    again.load_state_dict(other.state_dict())
    plain.load_state_dict(again.state_dict())
    weight = "image_encoder.backbone.model.embedder.embedder.convolution.weight"
    assert again.state_dict()[weight].is_contiguous(memory_format=torch.channels_last)
    assert plain.state_dict()[weight].is_contiguous()


def test_names_of_weights_stay(tiny_config):
    plain = build_model(tiny_config)
    tiny_config.MODEL.UNIPERCEIVER_V2.COMPILE = list(checks.PARTS)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model_module, "can_compile", lambda device: True)
        model = build_model(tiny_config)
    compiled_parts = {name.split(".")[0] for name, x in model.named_modules() if x._compiled_call_impl is not None}
    assert compiled_parts == {"image_encoder", "text_encoder", "decoder"}
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_a_machine_that_cannot_compile_says_so_and_goes_on(tiny_config, monkeypatch, caplog):
    def fails(function):
        raise RuntimeError("no working C++ compiler\nfound")

    tiny_config.MODEL.UNIPERCEIVER_V2.DECODER.COMPILE = True
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(torch, "compile", fails)
        model = build_model(tiny_config)
    assert "COMPILE is left out" in caplog.text
    assert "no working C++ compiler" in caplog.text
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_settings_are_checked(tiny_config):
    tiny_config.MODEL.UNIPERCEIVER_V2.COMPILE = ["backbones"]
    with pytest.raises(UserError, match=r"COMPILE: unknown name 'backbones'.*backbone"):
        checks.check_config(tiny_config, training=False, datasets=False)
    tiny_config.MODEL.UNIPERCEIVER_V2.COMPILE = []
    tiny_config.MODEL.UNIPERCEIVER_V2.CHANNELS_LAST = True
    tiny_config.SOLVER.SHARDING = "full"
    with pytest.raises(UserError, match=r"CHANNELS_LAST needs SOLVER\.SHARDING 'none'"):
        checks._check_sharding(tiny_config)
