"""Directories of models: a text encoder with its tokenizer, a backbone with weights, and a model of this project."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from mutations import damaged_bytes, damaged_json
from running import Damaged
from transformers import ResNetBackbone, ResNetConfig

from uniperceiver_v2 import Predictor
from uniperceiver_v2.files import REPOSITORY
from uniperceiver_v2.modeling.text_encoder.text_encoder import load_text_model

TEXT_ENCODER = REPOSITORY / "configs/digit_scenes/text_encoder"
MODEL = REPOSITORY / "zoo/digit_scenes_small"
PICTURE = np.full((32, 32, 3), 200, np.uint8)


class Kind:
    together = 10

    def __init__(self, folder: Path):
        self._folder = folder
        backbone = ResNetBackbone(
            ResNetConfig(
                embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", out_features=["stage1"]
            )
        )
        backbone.save_pretrained(folder / "backbone")
        shutil.copytree(TEXT_ENCODER, folder / "text_encoder")
        (folder / "model").mkdir()
        shutil.copy(MODEL / "config.json", folder / "model")
        self._files = sorted(path for path in folder.rglob("*") if path.is_file())
        self._ask(folder / "model")
        load_text_model(folder / "text_encoder")
        _build_backbone(folder / "backbone")

    def damaged(self, rng: random.Random) -> Damaged:
        file = rng.choice(self._files)
        name = f"{file.parent.name}+{file.name}"
        if file.suffix == ".json":
            return Damaged(name, damaged_json(rng, json.loads(file.read_text())))
        return Damaged(name, damaged_bytes(rng, file.read_bytes()))

    def read(self, path: Path, only_bytes: bool) -> None:
        folder, name = path.name.split("+")
        directory = path.parent / folder
        shutil.copytree(self._folder / folder, directory, symlinks=True)
        (directory / name).unlink()
        (directory / name).hardlink_to(path)
        if folder == "model":
            self._ask(directory)
        elif folder == "backbone":
            _build_backbone(directory)
        else:
            load_text_model(directory)

    def _ask(self, directory: Path) -> None:
        """Load the model of the zoo with another ``config.json``, and ask it for the objects of a small picture."""
        for path in (MODEL / "model.safetensors", MODEL / "text_encoder"):
            if not (directory / path.name).exists():
                (directory / path.name).symlink_to(path)
        Predictor.from_pretrained(directory, device="cpu").detect(PICTURE)

    def is_named(self, path: Path, message: str) -> bool:
        return str(path.parent / path.name.split("+")[0]) in message


def _build_backbone(directory: Path) -> None:
    node = {
        "BACKBONE": {"PATH": str(directory), "CONFIG": {}, "OUT_FEATURES": ["stage1"], "NORM": "", "DROP_PATH": -1.0}
    }
    model = {"BACKBONE": {"NAME": "build_huggingface_backbone"}, "PIXEL_MEAN": [0.0, 0, 0], "UNIPERCEIVER_V2": node}
    build_backbone(CfgNode({"MODEL": model}))
