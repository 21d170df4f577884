"""A trained model with its settings: built, read from a directory or the zoo, and saved."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download

from ..errors import UserError, nearest
from ..kinds import KINDS, configured_task
from ..meta_arch import UniPerceiverV2
from ..tasks import NamingTask
from .asking import Asker
from .encoding import Views
from .pretrained import (
    CARD,
    load_files,
    load_weights,
    read_description,
    save_files,
    settings_for_prediction,
    zoo_directory,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class TrainedModel(
    ModelHubMixin,
    library_name="uniperceiver_v2",
    license="apache-2.0",
    tags=["object-detection", "image-segmentation", "image-to-text", "uniperceiver_v2"],
    paper_url="https://doi.org/10.1109/CVPR52729.2023.00264",
    model_card_template=CARD,
):
    """What a :class:`~.api.Predictor` asks: the model, its tasks and its settings. Arguments are the predictor's."""

    def __init__(
        self,
        config: str | os.PathLike[str] | CfgNode,
        weights: str | os.PathLike[str] | None = None,
        *,
        device: str | None = None,
        autocast: str | None = None,
        tasks: Sequence[str] = (),
        batch_size: int | None = None,
    ):
        cfg = settings_for_prediction(config, device)
        path = weights or cfg.MODEL.WEIGHTS
        if not path:
            raise UserError("a predictor needs weights: name a checkpoint, or set MODEL.WEIGHTS")
        model = build_model(cfg)
        load_weights(model, path)
        self._set_up(cfg, model, autocast, tasks, batch_size)

    def _set_up(
        self,
        cfg: CfgNode,
        model: Any,
        autocast: str | None = None,
        tasks: Sequence[str] = (),
        batch_size: int | None = None,
    ) -> None:
        if not isinstance(model, UniPerceiverV2):
            raise UserError(f"a predictor needs a UniPerceiverV2, not a {type(model).__name__}")
        self.cfg, self.model = cfg, model.eval()
        self._tasks: dict[str, Any] = {kind: model.tasks[kind] for kind in KINDS}
        for name in tasks:
            if name not in cfg.TASKS or name == "NAMES":
                raise UserError(
                    f"no task {name!r} in the settings{nearest(name, [x for x in cfg.TASKS if x != 'NAMES'])}"
                )
            self._tasks[configured_task(cfg, name).kind.name] = model.tasks[name]
        views = Views.of(cfg, {kind: task.settings for kind, task in self._tasks.items()})
        size = cfg.TEST.IMS_PER_BATCH if batch_size is None else batch_size
        self._asker = Asker(self.model, views, autocast, size)

    @classmethod
    def from_model(cls, model: Any, cfg: CfgNode, **options: Any) -> Self:
        """A predictor around a model that is built already. Options are those of the class but ``device``."""
        predictor = cls.__new__(cls)
        predictor._set_up(cfg, model, **options)
        return predictor

    @classmethod
    def from_zoo(cls, name: str, **options: Any) -> Self:
        """A model of the zoo, by its name. Options are those of the class.

        Raises:
            UserError: there is no such model. The message lists those that there are.
        """
        return cls.from_pretrained(zoo_directory(name), **options)

    @classmethod
    def from_pretrained(  # type: ignore[override]  # mypy knows no **options of the mixin
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> Self:
        """A model that :meth:`save_pretrained` wrote: a directory, for which no network is asked, or else a repository
        of the Hugging Face Hub.

        Options are those of the class, and huggingface_hub's own (``revision``, ``token``, ...).

        Raises:
            UserError: there is no such model, or it cannot be used.
        """
        name = os.path.expanduser(os.fspath(pretrained_model_name_or_path))
        if os.path.isdir(name):
            read_description(Path(name))
        elif os.path.isabs(name) or name.startswith(".") or name.count("/") != 1:
            raise UserError(f"there is no directory {name}")
        try:
            return super().from_pretrained(name, **options)
        except (OSError, ValueError) as error:  # huggingface_hub's
            reason = " ".join(str(error).split())
            raise UserError(f"{name} is no directory, and cannot be fetched from the Hub: {reason}") from error

    @classmethod
    def _from_pretrained(cls, *, model_id: str, device: str | None = None, **options: Any) -> Self:
        fetching = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        asked = {key: options.pop(key, None) for key in fetching}
        directory = model_id if os.path.isdir(model_id) else snapshot_download(model_id, **asked)
        kept = {key: value for key, value in options.items() if key in ("autocast", "tasks", "batch_size")}
        return cls.from_model(*reversed(load_files(Path(directory), device)), **kept)

    def _save_pretrained(self, save_directory: Path) -> None:
        save_files(save_directory, self.cfg, self.model)

    def generate_model_card(self, **kwargs: Any) -> ModelCard:
        """The model card. Keywords replace what it says: ``title``, ``directory``, ``tasks``, ``datasets``."""
        trained = [configured_task(self.cfg, name) for name in self.cfg.TASKS.NAMES]
        names = sorted({name for task in trained for name in task.settings.datasets})
        told = {
            "title": "Uni-Perceiver v2",
            "directory": "path/to/this/directory",
            "parameters": f"{sum(p.numel() for p in self.model.parameters()):,}",
            "tasks": ", ".join(task.kind.name for task in trained) or "none are named",
            "datasets": ", ".join(names) or "none are named",
            "labels": {kind: ", ".join(task.labels) for kind, task in self._naming_tasks()},
            "licence": self._hub_mixin_info.model_card_data.license,
        }
        return super().generate_model_card(**{**told, **kwargs})

    def _naming_tasks(self) -> Iterator[tuple[str, NamingTask]]:
        for kind, task in self._tasks.items():
            with contextlib.suppress(UserError):  # its data is not here
                if isinstance(task, NamingTask) and task.labels:
                    yield kind, task

    def labels(self, kind: str = "detection") -> tuple[str, ...]:
        """The names that the model was trained with, for "detection" or "classification".

        Raises:
            UserError: they are not known here.
        """
        names: tuple[str, ...] = self._tasks[kind].labels
        return names

    def task(self, kind: str) -> Any:
        """The task that answers for a kind, such as "captioning". It has the task's ``settings``."""
        return self._tasks[kind]
