"""Models as directories in Hugging Face's form, and the zoo.

    config.json          the settings of the run, the names of its classes, and their ids if it trained on own data
    model.safetensors    all weights
    text_encoder/        configuration and tokenizer of the text encoder
    backbone/            configuration of the backbone, if the settings name a directory for it
    README.md            the model card, with the licence

No file holds code, and none is run.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ..checkpoint import AtomicCheckpointer
from ..config import load_config
from ..errors import UserError, nearest
from ..files import shipped, write_json
from ..reading import CHECKSUM, is_id, read_json, require_text, tensors_checksum
from ..tasks import NamingTask

# {name: directory in Hugging Face's form, below the repository}
MODEL_ZOO: dict[str, str] = {"digit_scenes/small": "zoo/digit_scenes_small"}

CONFIG, WEIGHTS = "config.json", "model.safetensors"
MODEL_TYPE = "uniperceiver_v2"
LARGEST_DESCRIPTION = 2**22  # bytes of config.json; that with the 21,841 names of ImageNet-21k has less than a fifth
TEXT_ENCODER, _BACKBONE = "text_encoder", "backbone"

CARD = """---
{{ card_data }}
---

# {{ title }}

A [Uni-Perceiver v2]({{ paper_url }}) of {{ parameters }} parameters: one set of weights for all of its tasks, and no
task heads.

```python
from uniperceiver_v2 import Predictor

predictor = Predictor.from_pretrained("{{ directory }}")
print(predictor.detect("picture.jpg"), predictor.caption("picture.jpg"))
```

- Trained tasks: {{ tasks }}.
- Training data: {{ datasets }}.
{%- for kind, names in labels.items() %}
- Names of {{ kind }}: {{ names }}.
{%- endfor %}

The weights have the licence {{ licence }}. Whoever publishes them checks that the training data allows it.
"""


def zoo_directory(name: str) -> Path:
    """The directory of a model of the zoo.

    Raises:
        UserError: there is no such model. The message lists those that there are.
    """
    if name not in MODEL_ZOO:
        known = nearest(name, MODEL_ZOO) or "; the zoo has no models yet"
        listed = f" (the zoo has {', '.join(sorted(MODEL_ZOO))})" if MODEL_ZOO and "valid" not in known else ""
        raise UserError(f"there is no model {name!r} in the zoo{known}{listed}")
    return shipped(MODEL_ZOO[name])


def settings_for_prediction(config: str | os.PathLike[str] | Mapping[str, Any], device: str | None) -> CfgNode:
    """The settings of a YAML file, or of a complete configuration. The datasets in them need not be known here."""
    if isinstance(config, Mapping):
        content: str | Mapping[str, Any] = yaml.safe_load(config.dump()) if isinstance(config, CfgNode) else config
    else:
        content = os.fspath(config)
    return load_config(content, ["MODEL.DEVICE", device] if device else [], training=False, datasets=False)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load Detectron2's ``.pth`` or ``.safetensors`` into a model.

    Raises:
        UserError: the file is missing, is damaged, or does not fit the model.
    """
    AtomicCheckpointer(model).load(os.path.expanduser(os.fspath(path)))


def save_files(directory: Path, cfg: CfgNode, model: Any) -> None:
    """Write all files but the model card.

    Raises:
        UserError: a file cannot be written.
    """
    settings = yaml.safe_load(cfg.dump())
    settings["MODEL"]["WEIGHTS"] = ""
    settings["DATASETS"]["CUSTOM"] = {}  # paths of this machine
    node = settings["MODEL"]["UNIPERCEIVER_V2"]
    node["TEXT_ENCODER"]["PATH"] = TEXT_ENCODER
    try:
        model.text_encoder.model.config.save_pretrained(directory / TEXT_ENCODER)
        model.text_encoder.tokenizer.save_pretrained(directory / TEXT_ENCODER)
        if node["BACKBONE"]["PATH"]:
            node["BACKBONE"]["PATH"] = _BACKBONE
            model.image_encoder.backbone.model.config.save_pretrained(directory / _BACKBONE)
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        temporary = directory / f".{WEIGHTS}.{os.getpid()}.tmp"  # a directory never has half of its weights
        try:
            save_file(state, temporary, metadata={"format": "pt", CHECKSUM: tensors_checksum(state)})
            os.replace(temporary, directory / WEIGHTS)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        content = {"model_type": MODEL_TYPE, "settings": settings, "labels": labels_of(model)}
        if ids := model.tasks["detection"].category_ids:
            content["category_ids"] = list(ids)
        write_json(str(directory / CONFIG), content)
    except (OSError, AssertionError, SafetensorError) as error:  # transformers asserts that a path is a folder
        raise UserError(f"the model cannot be written to {directory}: {error}") from error


def load_files(directory: Path, device: str | None) -> tuple[CfgNode, nn.Module]:
    """The settings and the model of a directory that :func:`save_files` wrote. Nothing is looked up in a network.

    Raises:
        UserError: a file is missing, is damaged, or does not fit the others.
    """
    content = read_description(directory)
    overrides = ["MODEL.UNIPERCEIVER_V2.TEXT_ENCODER.PATH", str(directory / TEXT_ENCODER)]
    if _section(content["settings"], "MODEL", "UNIPERCEIVER_V2", "BACKBONE").get("PATH"):
        overrides += ["MODEL.UNIPERCEIVER_V2.BACKBONE.PATH", str(directory / _BACKBONE)]
    overrides += ["MODEL.DEVICE", device] if device else []
    try:
        cfg = load_config(content["settings"], overrides, training=False, datasets=False)
        model = build_model(cfg)
        load_weights(model, directory / WEIGHTS)
    except UserError as error:
        raise error if str(directory) in str(error) else UserError(f"{directory / CONFIG}: {error}") from error
    for kind, names in content.get("labels", {}).items():
        for task in _naming_tasks(model, kind):
            task.labels = tuple(names)
    if "category_ids" in content:
        model.tasks["detection"].category_ids = tuple(content["category_ids"])
    return cfg, model


def _section(settings: Any, *keys: str) -> Mapping[str, Any]:
    """A section in others, empty if it or one of them is none: :func:`load_config` says which."""
    for key in keys:
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings if isinstance(settings, Mapping) else {}


def read_description(directory: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        UserError: there is no such file, or it is not one of :func:`save_files`.
    """
    path = directory / CONFIG
    try:
        if (size := path.stat().st_size) > LARGEST_DESCRIPTION:
            raise UserError(f"{path} has {size} bytes, more than {LARGEST_DESCRIPTION}")
        content = read_json(str(path))
    except FileNotFoundError as error:
        raise UserError(f"{directory} is no directory of a model: it has no {CONFIG}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    known = isinstance(content, dict) and content.get("model_type") == MODEL_TYPE
    if not known or not isinstance(content.get("settings"), dict) or not isinstance(content.get("labels", {}), dict):
        raise UserError(f"{path} does not describe a model of Uni-Perceiver v2")
    _require_names(path, content)
    return content


def _require_names(path: Path, content: Mapping[str, Any]) -> None:
    """
    Raises:
        UserError: "labels" of a kind are no list of texts, or "category_ids" are not as many ids as detection has
            labels. Two classes may share a name, as ImageNet's cranes do.
    """
    labels = content.get("labels", {})
    for kind, names in labels.items():
        if not isinstance(names, list) or not names:
            raise UserError(f"{path}: labels of {kind!r:.80} are a list of texts, not {names!r:.80}")
        for name in names:
            require_text(name, f"{path}: labels of {kind!r:.80}")
    if "category_ids" not in content:
        return
    ids, count = content["category_ids"], len(labels.get("detection", ()))
    if not isinstance(ids, list) or not all(map(is_id, ids)) or len(ids) != count:
        raise UserError(f"{path}: category_ids are a list of {count} ids, one of each label, not {ids!r:.80}")


def labels_of(model: Any) -> dict[str, list[str]]:
    """{kind: the names of its classes} of tasks that know them."""
    found: dict[str, list[str]] = {}
    for kind in ("detection", "classification"):
        for task in _naming_tasks(model, kind):
            with contextlib.suppress(UserError):  # its data is not here
                found[kind] = list(task.labels)
    return found


def _naming_tasks(model: Any, kind: str) -> Iterator[NamingTask]:
    """The task that answers for a kind, if it names things."""
    task = model.tasks.get(kind)
    if isinstance(task, NamingTask):
        yield task
