"""A run's YAML: damaged bytes, and settings with values that nobody expects. Of what is accepted, the model, its
optimizer with the rate's schedule, and the augmentations of images are built."""

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from detectron2.modeling import build_model
from mutations import EXTREMES, damaged_bytes, edited
from running import Damaged

from uniperceiver_v2.config import load_config
from uniperceiver_v2.data.mappers.images import DetectionMapper
from uniperceiver_v2.engine import UniPerceiverTrainer
from uniperceiver_v2.errors import UnreadableImage
from uniperceiver_v2.files import REPOSITORY

# Sizes that are allowed, and take longer to build than a case may.
_BUILT_BELOW = 2000
SMALL = {
    "EMBED_DIM": 32,
    "BACKBONE": {
        "CONFIG": {
            "model_type": "resnet",
            "layer_type": "basic",
            "embedding_size": 8,
            "hidden_sizes": [8, 12, 16, 24],
            "depths": [1, 1, 1, 1],
        }
    },
    "TEXT_ENCODER": {"PATH": "configs/digit_scenes/text_encoder"},
    "DECODER": {"LAYERS": 1, "HEADS": 4, "FFN_DIM": 32, "EXPERTS": 3, "ACTIVE_EXPERTS": 2},
    "REGION": {
        "DIM": 32,
        "MASK_DIM": 16,
        "HEADS": 4,
        "FFN_DIM": 48,
        "DECODER_LAYERS": 2,
        "NUM_QUERIES": 12,
        "FINE_DIM": 8,
    },
    "CRITERION": {"NUM_POINTS": 64, "WEIGHTS": {"BOX": 5.0}},
}
PLAUSIBLE = (0, 1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 0.1, 0.5, 1.0, True, False, [1, 2], [4, 8, 8, 12], "GN", "basic")
TEXTS = (
    *("2001-01-01", "!!set {a, b}", "&a [*a]", "!!binary aGk=", "0x" + "f" * 300, "1:30:00", "<<: 3", "*nowhere"),
    *("!!python/object/apply:os.abort []", '"\\ud800"', "[" * 3000, "{a: " * 300, "? [1]", "'", "|", "~"),
)


class Kind:
    together = 10

    def __init__(self, folder: Path):
        base = yaml.safe_load((REPOSITORY / "configs/digit_scenes/uniperceiver_v2_tiny.yaml").read_text())
        base.pop("_BASE_")
        base["MODEL"] = {
            "META_ARCHITECTURE": "UniPerceiverV2",
            "DEVICE": "cpu",
            "MASK_ON": True,
            "BACKBONE": {"NAME": "build_huggingface_backbone"},
            "UNIPERCEIVER_V2": SMALL,
        }
        base["INPUT"] = {
            "FORMAT": "RGB",
            "MIN_SIZE_TRAIN": [64, 96],
            "MIN_SIZE_TRAIN_SAMPLING": "range",
            "MAX_SIZE_TRAIN": 96,
            "RANDOM_FLIP": "horizontal",
            "CROP": {"ENABLED": True, "TYPE": "relative_range", "SIZE": [0.5, 0.8]},
        }
        base["DATASETS"] = {
            "TEST": ["digit_scenes_test"],
            "CUSTOM": {"boats": {"FORMAT": "coco", "JSON": "a.json", "IMAGES": "images"}},
        }
        base.setdefault("SOLVER", {}).update(
            BASE_LR=1e-3, MAX_ITER=100, WARMUP_ITERS=10, STEPS=[50, 80], GAMMA=0.1, EPS=1e-8, BETAS=[0.9, 0.99]
        )
        base["DATALOADER"] = {"NUM_WORKERS": 2, "MAX_CORRUPT_SHARE": 0.1}
        self._base = base
        (folder / "whole.yaml").write_text(yaml.safe_dump(base))
        load_config(str(folder / "whole.yaml"))

    def damaged(self, rng: random.Random) -> Damaged:
        if rng.random() < 0.25:
            return Damaged("run.yaml", damaged_bytes(rng, yaml.safe_dump(self._base).encode()))
        content = yaml.safe_dump(
            edited(rng, self._base, EXTREMES if rng.random() < 0.5 else PLAUSIBLE), allow_unicode=False
        )
        if rng.random() < 0.3:
            lines = content.splitlines()
            place = rng.randrange(len(lines))
            lines[place] = f"{lines[place].partition(':')[0]}: {rng.choice(TEXTS)}"
            content = "\n".join(lines)
        if rng.random() < 0.1:
            content += f"\n_BASE_: {rng.choice(('run.yaml', '[run.yaml]', '3', 'nowhere.yaml', '~', '/', '{}'))}\n"
        return Damaged("run.yaml", content.encode("utf-8", "surrogatepass"))

    def read(self, path: Path, only_bytes: bool) -> None:
        cfg = load_config(str(path))
        if all(size < _BUILT_BELOW for size in _numbers(cfg.MODEL.UNIPERCEIVER_V2)):
            model = build_model(cfg)
            optimizer = UniPerceiverTrainer.build_optimizer(cfg, model)
            UniPerceiverTrainer.build_lr_scheduler(cfg, optimizer)
            mapper = DetectionMapper(cfg, "scenes", ("a",), is_train=True)
            with contextlib.suppress(UnreadableImage):  # a size that is allowed may be too large for this image
                mapper.view(np.zeros((40, 60, 3), np.uint8))

    def is_named(self, path: Path, message: str) -> bool:
        """By its path, or the key."""
        return (
            str(path) in message
            or any(f"{part}." in message for part in ("MODEL", "SOLVER", "TASKS"))
            or any(
                key in message
                for key in ("DATASETS.", "DATALOADER.", "INPUT.", "TEST.", "SEED", "OUTPUT_DIR", "VIS_PERIOD", "TASKS")
            )
        )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [number for part in value.values() for number in _numbers(part)]
    if isinstance(value, list | tuple):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int | float) else []
