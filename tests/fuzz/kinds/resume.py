"""What a run goes on from: last_checkpoint, and the state of training in a checkpoint."""

import io
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from mutations import EXTREMES, damaged_bytes, edited
from running import Damaged, SilentDamage

from uniperceiver_v2.config import load_config
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.files import REPOSITORY, TINY_CONFIG

MODEL = "MODEL.UNIPERCEIVER_V2"
SMALL = {
    f"{MODEL}.EMBED_DIM": 8,
    f"{MODEL}.BACKBONE.CONFIG.embedding_size": 8,
    f"{MODEL}.BACKBONE.CONFIG.hidden_sizes": [8, 8, 8, 8],
    f"{MODEL}.BACKBONE.CONFIG.depths": [1, 1, 1, 1],
    **{f"{MODEL}.DECODER.{key}": value for key, value in {"LAYERS": 1, "HEADS": 2, "FFN_DIM": 8, "EXPERTS": 2}.items()},
    **{f"{MODEL}.REGION.{key}": 8 for key in ("DIM", "MASK_DIM", "FFN_DIM", "NUM_QUERIES")},
    **{f"{MODEL}.REGION.{key}": 1 for key in ("ENCODER_LAYERS", "DECODER_LAYERS", "HEADS")},
    "SOLVER.WEIGHT_AVERAGING": 0.9,
    "MODEL.DEVICE": "cpu",
}
TEXT_ENCODER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
VALUES = (*EXTREMES, torch.zeros(0), torch.zeros(3), torch.tensor(7), torch.full((3,), torch.nan))


def settings(folder: Path, text_encoder: Path) -> CfgNode:
    options = [str(part) for pair in SMALL.items() for part in pair]
    options += [f"{MODEL}.TEXT_ENCODER.PATH", str(text_encoder), "OUTPUT_DIR", str(folder)]
    return load_config(str(TINY_CONFIG), options)


def small_text_encoder(folder: Path) -> Path:
    """A directory of digit_scenes' tokenizer and of a text encoder that is as small as the rest of the model, as the
    cost of a case is that of its checkpoint."""
    shutil.copytree(REPOSITORY / "configs/digit_scenes/text_encoder", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **TEXT_ENCODER}))
    return folder


class Kind:
    together = 1  # a trainer takes one state

    def __init__(self, folder: Path):
        text_encoder = small_text_encoder(folder / "text_encoder")
        trainer = UniPerceiverTrainer(settings(folder, text_encoder))
        trainer.iter = 41
        trainer._trainer.iter = 41
        task = trainer.cfg.TASKS.NAMES[0]
        _step(trainer, task)
        trainer.checkpointer.save("model_0000041")
        self._task = task
        self._file = (folder / "model_0000041.pth").read_bytes()
        self._content = torch.load(folder / "model_0000041.pth", weights_only=True)
        # A trainer for the cases: each has it as it was made, in a process of its own.
        self._trainer = UniPerceiverTrainer(settings(folder / "cases", text_encoder))

    def damaged(self, rng: random.Random) -> Damaged:
        action = rng.random()
        if action < 0.2:
            names = (b"model_0000041.pth", b"../x", b"\0", b"", b"/etc/passwd", b"model.pth\n\n", b"x" * 9999, b".")
            return Damaged("last_checkpoint", damaged_bytes(rng, rng.choice(names)))
        if action < 0.3:
            return Damaged("model_0000041.pth", damaged_bytes(rng, self._file), only_bytes=True)
        content = dict(self._content)
        if rng.random() < 0.1:
            content = edited(rng, {**content, "model": None}, VALUES)
            if isinstance(content, dict):  # and not a list or a number in its place
                content = {**content, "model": self._content["model"]}
        else:
            part = content["trainer"]
            content["trainer"] = edited(rng, _without_most(rng, part), VALUES)
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return Damaged("model_0000041.pth", buffer.getvalue())

    def read(self, path: Path, only_bytes: bool) -> None:
        trainer, folder = self._trainer, path.parent / "run"
        folder.mkdir()
        trainer.checkpointer.save_dir = str(folder)
        (folder / path.name).hardlink_to(path)
        if path.name == "last_checkpoint":
            (folder / "model_0000041.pth").write_bytes(self._file)
        else:
            (folder / "last_checkpoint").write_text("model_0000041.pth")
        trainer.resume_or_load(resume=True)
        if only_bytes and trainer.start_iter != 42:
            raise SilentDamage(f"training goes on at iteration {trainer.start_iter}")
        if trainer.start_iter == 0 and path.name == "last_checkpoint":
            raise SilentDamage("training begins anew")
        _step(trainer, self._task)

    def is_named(self, path: Path, message: str) -> bool:
        return str(path.parent / "run") in message


def _step(trainer: UniPerceiverTrainer, task: str) -> None:
    for parameter in trainer.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    trainer._trainer.optimizer.step(task=task)


def _without_most(rng: random.Random, state: Any) -> Any:
    """The state, with a few of the many moments and weights, so that edits find other places, too."""
    moments = state["_trainer"]["optimizer"]["state"]
    if rng.random() < 0.5:
        return state
    kept = dict(list(moments.items())[:2])
    return {**state, "_trainer": {**state["_trainer"], "optimizer": {**state["_trainer"]["optimizer"], "state": kept}}}
