"""Optimizers, parameter groups and learning rates from a configuration."""

import math

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from torch import nn

from uniperceiver_v2 import add_uniperceiver_v2_config
from uniperceiver_v2.config import load_config, task_defaults
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.files import TINY_CONFIG
from uniperceiver_v2.solver import TaskBalancedAdamW, build_optimizer
from uniperceiver_v2.solver.build import parameter_groups


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.image_encoder = nn.ModuleDict(
            {"backbone": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), "query": nn.Embedding(5, 4)}
        )
        self.text_encoder = nn.Linear(4, 4)
        self.decoder = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.spe_token = nn.Parameter(torch.zeros(1, 4))
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.tied = self.text_encoder
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    cfg.SOLVER.BASE_LR = 1e-3
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1
    cfg.SOLVER.TEXT_ENCODER_MULTIPLIER = 0.5
    cfg.TASKS.NAMES = ["scenes", "digits"]
    cfg.TASKS.scenes = CfgNode({**task_defaults("scenes", "detection"), "SAMPLING_RATIO": 3.0})
    cfg.TASKS.digits = CfgNode({**task_defaults("digits", "classification"), "GRADIENT_WEIGHT": 0.5})
    return cfg


def test_every_trained_parameter_is_in_one_group_with_its_rate_and_decay(cfg):
    model = Toy()
    groups = parameter_groups(cfg, model)
    found = {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(found)
    assert set(found) == {p for p in model.parameters() if p.requires_grad}

    backbone, query = model.image_encoder["backbone"], model.image_encoder["query"]
    assert found[backbone[0].weight] == (1e-4, 0.05)
    assert found[backbone[0].bias] == (1e-4, 0.0)
    assert found[backbone[1].weight] == (1e-4, 0.0)
    assert found[model.text_encoder.weight] == (5e-4, 0.05)
    assert found[model.decoder.in_proj_weight] == (1e-3, 0.05)
    assert found[model.decoder.out_proj.weight] == (1e-3, 0.05)
    for undecayed in (
        query.weight,
        model.decoder.in_proj_bias,
        model.norm.weight,
        model.spe_token,
        model.log_temperature,
    ):
        assert found[undecayed] == (1e-3, 0.0)


# All parameters of the real model that decay would distort: embeddings, tokens, queries, τ.
NEVER_DECAYED = {
    "image_encoder.regions.denoising_content",
    "image_encoder.regions.project.scale_embedding",
    "image_encoder.global_tokens.pools.queries",
    "text_encoder.model.embeddings.word_embeddings.weight",
    "text_encoder.model.embeddings.token_type_embeddings.weight",
    "text_encoder.model.embeddings.position_embeddings.weight",
    "decoder.spe",
    "likelihood.log_scale",
}


def test_every_parameter_of_the_real_model_has_the_rate_and_decay_of_its_part(tiny_config, tiny_model):
    solver = tiny_config.SOLVER
    solver.BASE_LR = 1.0
    solver.update({"BACKBONE_MULTIPLIER": 0.1, "TEXT_ENCODER_MULTIPLIER": 0.5, "DECODER_MULTIPLIER": 0.7})
    solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.WEIGHT_DECAY_BIAS = 0.05, 0.01, 0.02
    parameters = dict(tiny_model.named_parameters())
    names = {p: name for name, p in parameters.items()}

    def expected(name: str) -> tuple[float, float]:
        part, owner = name.split(".")[0], name.rpartition(".")[0]
        rate = {"text_encoder": 0.5, "decoder": 0.7}.get(part, 1.0)
        rate = 0.1 if name.startswith("image_encoder.backbone.") else rate
        matrix = parameters.get(f"{owner}.weight")
        if name in NEVER_DECAYED:
            decay = 0.0
        elif matrix is None:
            decay = 0.02  # the bias of the map of centres, which stands alone
        elif matrix.ndim == 1:
            decay = 0.01  # norms are all that have a weight for each channel
        else:
            decay = 0.05 if parameters[name] is matrix else 0.02
        return pytest.approx(rate), decay

    groups = build_optimizer(tiny_config, tiny_model).param_groups
    members = [names[p] for group in groups for p in group["params"]]
    assert sorted(members) == sorted(parameters)
    assert set(members) > NEVER_DECAYED
    for group in groups:
        for p in group["params"]:
            assert (group["lr"], group["weight_decay"]) == expected(names[p]), names[p]


def test_detectron2s_keys_for_norms_and_biases_are_followed(cfg):
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.02
    model = Toy()
    found = {p: g["weight_decay"] for g in parameter_groups(cfg, model) for p in g["params"]}
    assert found[model.norm.weight] == 0.01
    assert found[model.norm.bias] == 0.01
    assert found[model.text_encoder.bias] == 0.02


def test_task_balanced_adamw_takes_its_tasks_from_the_configuration(cfg):
    cfg.SOLVER.BETAS = [0.8, 0.9]
    optimizer = build_optimizer(cfg, Toy())
    assert isinstance(optimizer, TaskBalancedAdamW)
    assert optimizer.tasks == {"scenes": (0.75, 1.0), "digits": (0.25, 0.5)}
    assert all(group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_plain_adamw_clips_gradients_if_asked(cfg):
    cfg.SOLVER.OPTIMIZER = "AdamW"
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "norm"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    model = nn.Linear(3, 3, bias=False)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    model.weight.grad = torch.full((3, 3), 7.0)
    optimizer.step()
    assert model.weight.grad.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_cosine_with_a_rescaled_interval_is_a_one_cycle_rate(cfg):
    """Linear to BASE_LR, then half a cosine over all remaining iterations. Every group keeps its multiplier."""
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
    cfg.SOLVER.RESCALE_INTERVAL = True
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = 100, 20, 0.01
    cfg.SOLVER.BASE_LR_END = 1e-5
    optimizer = build_optimizer(cfg, Toy())
    scheduler = build_lr_scheduler(cfg, optimizer)
    backbone = next(i for i, g in enumerate(optimizer.param_groups) if g["lr"] < 2e-6)
    rest = next(i for i, g in enumerate(optimizer.param_groups) if g["lr"] == pytest.approx(1e-5))
    for t in range(100):
        if t < 20:
            expected = 1e-3 * (0.01 + 0.99 * t / 20)
        else:
            expected = 1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * (t - 20) / 80))
        assert optimizer.param_groups[rest]["lr"] == pytest.approx(expected, rel=1e-6)
        assert optimizer.param_groups[backbone]["lr"] == pytest.approx(0.1 * expected, rel=1e-6)
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.zeros_like(p)
        optimizer.step(task="scenes")
        scheduler.step()


def test_layer_decay_slows_early_blocks(tiny_config, tiny_model):
    tiny_config.SOLVER.update({"BASE_LR": 1.0, "BACKBONE_MULTIPLIER": 0.5, "TEXT_ENCODER_MULTIPLIER": 0.8})
    plain = rates(tiny_config, tiny_model)
    tiny_config.SOLVER.update({"BACKBONE_LAYER_DECAY": 0.9, "TEXT_ENCODER_LAYER_DECAY": 0.7})
    found = rates(tiny_config, tiny_model)
    blocks = tiny_model.image_encoder.backbone.blocks()
    layers = tiny_model.text_encoder.model.encoder.layer
    for modules, rate, decay in ((blocks, 0.5, 0.9), (layers, 0.8, 0.7)):
        for behind, module in enumerate(reversed(modules)):
            assert list({found[p] for p in module.parameters()}) == [pytest.approx(rate * decay**behind)]
    backbone, text = tiny_model.image_encoder.backbone.model, tiny_model.text_encoder.model
    first = (0.5 * 0.9 ** (len(blocks) - 1), 0.8 * 0.7 ** (len(layers) - 1))
    for module, rate in ((backbone.embedder, first[0]), (text.embeddings, first[1])):
        assert list({found[p] for p in module.parameters()}) == [pytest.approx(rate)], "as the first block"
    slowed = {*backbone.parameters(), *text.parameters()}
    assert {p for p in plain if found[p] != plain[p]} < slowed and len(found) == len(plain)


def rates(cfg: CfgNode, model: nn.Module) -> dict[nn.Parameter, float]:
    return {p: group["lr"] for group in parameter_groups(cfg, model) for p in group["params"]}


def test_what_stands_between_blocks_learns_as_the_next_one(tiny_config):
    fields = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    tiny_config.MODEL.UNIPERCEIVER_V2.BACKBONE.update({"CONFIG": CfgNode(fields), "NORM": ""})
    tiny_config.SOLVER.update({"BASE_LR": 1.0, "BACKBONE_MULTIPLIER": 1.0, "BACKBONE_LAYER_DECAY": 0.5})
    model = build_model(tiny_config)
    found = {
        name: rate for p, rate in rates(tiny_config, model).items() for name, q in model.named_parameters() if p is q
    }
    swin = "image_encoder.backbone.model.swin"
    assert found[f"{swin}.encoder.layers.2.blocks.0.layernorm_before.weight"] == 0.5
    assert found[f"{swin}.encoder.layers.1.downsample.reduction.weight"] == 0.5
    assert found[f"{swin}.embeddings.patch_embeddings.projection.weight"] == 0.125
    assert found["image_encoder.backbone.model.hidden_states_norms.stage1.weight"] == 1


def test_layer_decay_needs_known_blocks(cfg):
    cfg.SOLVER.BACKBONE_LAYER_DECAY = 0.9
    with pytest.raises(UserError, match=r"SOLVER\.BACKBONE_LAYER_DECAY: the blocks of the backbone are not known"):
        parameter_groups(cfg, Toy())


def test_a_schedule_that_cannot_be_made_is_told_by_its_key():
    cfg = load_config(str(TINY_CONFIG), ["SOLVER.LR_SCHEDULER_NAME", "Other"])  # a subclass may have it
    with pytest.raises(UserError, match=r"SOLVER\.LR_SCHEDULER_NAME 'Other': Unknown LR scheduler"):
        UniPerceiverTrainer.build_lr_scheduler(cfg, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1))
