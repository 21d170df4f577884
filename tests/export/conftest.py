"""The smallest model with random weights, exported once for all tests and workers."""

import fcntl
import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from uniperceiver_v2 import Predictor
from uniperceiver_v2.export import Exported
from uniperceiver_v2.export.__main__ import main

LABELS = ("zero", "a red seven", "two")


class Deployed(NamedTuple):
    """A model, the directory with its files, and the files themselves."""

    predictor: Predictor
    directory: Path
    exported: Exported


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items) -> None:
    """What needs the files is slow: to trace the image part takes more than a minute."""
    for item in items:
        if "deployed" in item.fixturenames:
            item.add_marker("slow")


@pytest.fixture(scope="session", autouse=True)
def packages() -> None:
    """All tests of this folder need the packages of the extra ``export``."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f'{name} is not installed (pip install ".[export]")')


@pytest.fixture(scope="session")
def predictor(make_tiny_config) -> Predictor:
    """Random weights, none of them 0; images are made 64 pixels high, or the square 32."""
    from detectron2.modeling import build_model

    cfg = make_tiny_config()
    cfg.INPUT.MAX_SIZE_TEST = 128
    cfg.TASKS.captions.MAX_LENGTH = 6
    cfg.TASKS.digits.FURTHER_PROMPTS = ["the digit {}"]
    cfg.TASKS.scenes.TEMPERATURE, cfg.TASKS.digits.TEMPERATURE = 0.6, 1.5
    cfg.MODEL.UNIPERCEIVER_V2.REGION.update({"MASKS_IN_BOXES": True, "BOXES_AROUND_MASKS": True})
    cfg.MODEL.UNIPERCEIVER_V2.BACKBONE.OUT_FEATURES = ["stage1", "stage4"]  # one scale less to trace for each map less
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.tasks["detection"].labels = model.tasks["classification"].labels = LABELS
    return Predictor.from_model(model, cfg)


@pytest.fixture(scope="session")
def deployed(predictor, tmp_path_factory) -> Deployed:
    """The program writes all precisions. Tracing takes long, so that parallel workers share the files."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "exported"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            predictor.save_pretrained(folder / "model")
            assert main(["--zoo", str(folder / "model"), "--output", str(folder / "onnx"), "--check", "2"]) == 0
            (folder / "done").touch()
    return Deployed(predictor, folder / "onnx", Exported(folder / "onnx", threads=1))
