"""Configurations and models by their paths, as Detectron2's own `model_zoo` finds them.

A path is relative to ``configs/``, such as "joint/uniperceiver_v2_r50.yaml", or the name of a model of the zoo, such as
"digit_scenes/small", whose weights come with this code.
"""

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from .checkpoint import AtomicCheckpointer
from .config import load_config
from .engine import load_pretrained_parts
from .errors import UserError, nearest
from .files import shipped
from .predictor.pretrained import MODEL_ZOO, WEIGHTS, zoo_directory

__all__ = ["get", "get_config", "get_config_file"]


def get_config_file(config_path: str) -> str:
    """The file of a configuration.

    Raises:
        UserError: there is none. The message has the nearest path.
    """
    if config_path in MODEL_ZOO:
        return str(zoo_directory(config_path) / "config.yaml")
    folder = shipped("configs")
    if not (folder / config_path).is_file():
        known = [str(file.relative_to(folder)) for file in sorted(folder.glob("*/*.yaml"))]
        raise UserError(f"there is no configuration {config_path!r}{nearest(config_path, [*known, *MODEL_ZOO])}")
    return str(folder / config_path)


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """The settings of a configuration, which may be changed.

    Args:
        config_path: see this module.
        trained: whether ``MODEL.WEIGHTS`` names the zoo's weights.

    Raises:
        UserError: there is no such configuration, or no weights of it.
    """
    if trained and config_path not in MODEL_ZOO:
        raise UserError(f"there are no trained weights of {config_path!r}, only of {', '.join(sorted(MODEL_ZOO))}")
    cfg = load_config(get_config_file(config_path), training=False, datasets=False)
    cfg.defrost()
    if trained:
        cfg.MODEL.WEIGHTS = str(zoo_directory(config_path) / WEIGHTS)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model, in training mode as Detectron2's.

    Args:
        config_path, trained: see :func:`get_config`. Without trained weights, the model begins with what the settings
            name: ``MODEL.WEIGHTS``, or the pre-trained parts.
        device: "cpu" or "cuda"; by default that of the settings.

    Raises:
        UserError: see :func:`get_config`; or the model's parts cannot be read.
    """
    cfg = get_config(config_path, trained)
    cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
    model = build_model(cfg)
    load_pretrained_parts(cfg, model)
    AtomicCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
