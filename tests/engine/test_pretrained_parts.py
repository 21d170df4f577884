"""When the pre-trained parts are read: at the start of a run, and not where a checkpoint gives the whole model."""

import contextlib
from types import SimpleNamespace

import pytest
from detectron2.config import CfgNode, get_cfg

from uniperceiver_v2.config import add_uniperceiver_v2_config
from uniperceiver_v2.engine import UniPerceiverTrainer, pretrained_parts


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_uniperceiver_v2_config(cfg)
    cfg.MODEL.UNIPERCEIVER_V2.PRETRAINED = ["a.pth", "b"]
    return cfg


@pytest.fixture
def read(monkeypatch) -> list:
    """The calls that read something, as (image encoder, heads, paths, decoder)."""
    calls = []
    monkeypatch.setattr(pretrained_parts, "load_pretrained", lambda *call: calls.append(call))
    return calls


def begin(cfg: CfgNode, resume: bool, has_checkpoint: bool) -> list:
    """What a run's checkpointer is asked for."""
    asked = []
    trainer = object.__new__(UniPerceiverTrainer)
    trainer.cfg, trainer.iter = cfg, 3
    trainer._trainer = SimpleNamespace(model=SimpleNamespace(image_encoder="the encoder", decoder="the decoder"))
    trainer.checkpointer = SimpleNamespace(
        has_checkpoint=lambda: has_checkpoint,
        resume_or_load=lambda path, resume: asked.append((path, resume)),
        first_process_decides=contextlib.nullcontext,
    )
    trainer.resume_or_load(resume)
    return asked


@pytest.mark.parametrize(("resume", "has_checkpoint"), [(False, False), (False, True), (True, False)])
def test_a_run_begins_with_them(cfg, read, resume, has_checkpoint):
    assert begin(cfg, resume, has_checkpoint) == [("", resume)]
    assert read == [("the encoder", 8, ["a.pth", "b"], "the decoder")]


def test_a_resumed_run_does_not_read_them(cfg, read):
    assert begin(cfg, resume=True, has_checkpoint=True) == [("", True)]
    assert not read


def test_weights_of_the_whole_model_replace_them(cfg, read):
    cfg.MODEL.WEIGHTS = "model.pth"
    assert begin(cfg, resume=False, has_checkpoint=False) == [("model.pth", False)]
    assert not read


def test_without_any_nothing_is_read(cfg, read):
    cfg.MODEL.UNIPERCEIVER_V2.PRETRAINED = []
    assert not pretrained_parts.load_pretrained_parts(cfg, None)
    assert not read
