"""On a GPU the model computes, trains and answers as on a CPU. Skipped where there is none."""

import contextlib
from collections.abc import Callable, Iterator
from unittest import mock

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor

from uniperceiver_v2 import Predictor
from uniperceiver_v2.config import load_config
from uniperceiver_v2.data import build_task_train_loader, register_digit_scenes
from uniperceiver_v2.engine.trainer import UniPerceiverTrainer
from uniperceiver_v2.files import TINY_CONFIG

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TASKS = ("scenes", "scene_phrases", "digits", "scene_captions", "scene_pairs", "corpus")
RANDOM = {name: getattr(torch, name) for name in ("rand", "randint")}


@pytest.fixture
def cfg(small_tree, catalogs, tmp_path) -> CfgNode:
    """The tiny configuration over a few scenes, registered in place of the whole tree."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for name in [name for name in DatasetCatalog.list() if name.startswith("digit")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_digit_scenes(str(small_tree))
    settings = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "VIS_PERIOD", "0"]
    return load_config(str(TINY_CONFIG), settings)


@contextlib.contextmanager
def float64_with_numbers_of_the_cpu() -> Iterator[None]:
    """In float64 both devices select the same queries and match them alike, whatever the order of their sums. Random
    numbers are drawn on the CPU and moved."""

    def drawing(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *args, device=None, dtype=None, **settings: draw(*args, **settings).to(device or "cpu", dtype)

    torch.set_default_dtype(torch.float64)
    with (
        mock.patch.object(Tensor, "float", Tensor.double),
        mock.patch.object(torch, "rand", drawing(RANDOM["rand"])),
        mock.patch.object(torch, "randint", drawing(RANDOM["randint"])),
        mock.patch.object(Tensor, "uniform_", lambda x: x.copy_(RANDOM["rand"](x.shape))),
    ):
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def outcome(cfg: CfgNode, device: str, batch: list[dict]) -> tuple[dict[str, Tensor], Tensor]:
    """Losses and the gradient of all parameters as one vector, on the CPU.

    All parameters are moved a little first. A new model samples its maps exactly at the centres and borders of pixels,
    where bilinear sampling has a kink: the last bit of a location then decides between two gradients that differ by a
    percent, on one device as well.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = device
    torch.manual_seed(0)
    model = build_model(cfg).double().train()
    with torch.no_grad():
        for p in model.parameters():
            p += 0.01 * torch.randn(p.shape, dtype=torch.float64).to(device)
    torch.manual_seed(1)
    with EventStorage(), float64_with_numbers_of_the_cpu():
        losses = model(batch)
        sum(losses.values()).backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return {k: x.detach().cpu() for k, x in losses.items()}, torch.cat([g.flatten().cpu() for g in gradients])


@pytest.mark.parametrize("task", TASKS)
def test_losses_and_gradients_are_those_of_the_cpu(cfg, task):
    batch = next(iter(build_task_train_loader(cfg, task)))
    expected_losses, expected = outcome(cfg, "cpu", batch)
    losses, found = outcome(cfg, "cuda", batch)
    for name, loss in expected_losses.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    assert (found - expected).norm() < 1e-6 * expected.norm()


@pytest.mark.slow
def test_compiled_parts_with_channels_last_have_the_same_losses(cfg):
    """In float32, with convolutions in TF32, whose sums another layout rounds in another way."""
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    batch = next(iter(build_task_train_loader(cfg, "digits")))
    plain = build_model(cfg).train()
    cfg.MODEL.UNIPERCEIVER_V2.COMPILE = ["backbone", "region_network", "text_encoder", "decoder"]
    cfg.MODEL.UNIPERCEIVER_V2.CHANNELS_LAST = True
    other = build_model(cfg).train()
    other.load_state_dict(plain.state_dict())
    found = []
    for model in (plain, other):
        torch.manual_seed(0)
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()
        found.append({name: loss.detach() for name, loss in losses.items()})
    torch.testing.assert_close(*found, rtol=2e-2, atol=1e-3)
    assert all(p.grad is None or p.grad.isfinite().all() for p in other.parameters())


@pytest.mark.parametrize("bf16", [False, True])
def test_cuda_graphs_have_the_same_losses_and_gradients(cfg, bf16):
    """While weights change, tasks alternate, and gradients of two batches are added."""
    cfg.defrost()
    cfg.MODEL.DEVICE = "cuda"
    torch.manual_seed(0)
    plain = build_model(cfg).train()
    cfg.MODEL.UNIPERCEIVER_V2.CUDA_GRAPHS = True
    graphed = build_model(cfg).train()
    graphed.load_state_dict(plain.state_dict())
    loaders = {task: iter(build_task_train_loader(cfg, task)) for task in ("digits", "scene_pairs")}
    for step in range(5):
        batches = [next(loaders["digits"]), next(loaders["scene_pairs"])]
        losses, gradients = [], []
        for model in (plain, graphed):
            model.zero_grad()
            torch.manual_seed(step)
            for batch in batches:
                with EventStorage(), torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                    parts = model(batch)
                sum(parts.values()).backward()
                losses.append({name: loss.detach() for name, loss in parts.items()})
            gradients.append({name: p.grad for name, p in model.named_parameters()})
        allowed = {"rtol": 5e-2, "atol": 2e-2} if bf16 else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(losses[2:], losses[:2], **allowed)
        assert [g is None for g in gradients[0].values()] == [g is None for g in gradients[1].values()]
        a, b = (torch.cat([g.flatten() for g in found.values() if g is not None]) for found in gradients)
        assert (a - b).norm() < (0.2 if bf16 else 0.02) * a.norm()
        with torch.no_grad():
            for p, q in zip(plain.parameters(), graphed.parameters(), strict=True):
                if p.grad is not None:
                    p -= 1e-3 * p.grad
                q.copy_(p)
    assert len(graphed.image_encoder._captured._recordings) == 2


@pytest.mark.parametrize("graphs", [False, True])
def test_a_run_trains_every_task_and_evaluates(cfg, graphs):
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.UNIPERCEIVER_V2.CUDA_GRAPHS = "cuda", graphs
    cfg.SOLVER.SAMPLING, cfg.SOLVER.OPTIMIZER = "mixed", "AdamW"  # each iteration has all tasks
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 5, (), 0
    trainer = UniPerceiverTrainer(cfg)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    results = trainer.train()
    assert set(results) == set(cfg.DATASETS.TEST)
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    assert sum(not torch.equal(old, p) for old, p in zip(before, trainer.model.parameters())) > 0.9 * len(before)
    assert next(trainer.model.parameters()).device.type == "cuda"


def test_the_predictor_answers_as_on_the_cpu(small_tree):
    pictures = sorted((small_tree / "images" / "test").iterdir())[:4]
    answers = {}
    for device in ("cpu", "cuda"):
        predictor = Predictor.from_zoo("digit_scenes/small", device=device)
        encoded = predictor.encode(pictures)
        answers[device] = (
            [x.instances.to("cpu") for x in predictor.detect(encoded)],
            [x.text for x in predictor.caption(encoded)],
        )
    for expected, found in zip(answers["cpu"][0], answers["cuda"][0]):
        sure = [x[x.scores > 0.3] for x in (expected, found)]
        assert len(sure[0]) == len(sure[1]) > 0
        torch.testing.assert_close(sure[1].pred_boxes.tensor, sure[0].pred_boxes.tensor, rtol=0, atol=0.05)
    assert answers["cuda"][1] == answers["cpu"][1]
