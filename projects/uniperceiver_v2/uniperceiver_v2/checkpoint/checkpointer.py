"""Detectron2's checkpoints, written atomically and read without unpickling code."""

import contextlib
import glob
import os
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from torch import Tensor, nn

from ..errors import UserError
from ..files import write_atomically
from ..reading import open_file, read_tensors, require_finite, require_no_way_up
from ..shards import divided_like, is_divided, local
from .fitting import as_loaded, difference, require_fit, state_differences, strip_prefix
from .parts import MANIFEST, PartsWriter, agreed, is_checkpoint, is_parts, read_parts, remove_checkpoint
from .states import require_alike
from .writing import BackgroundWriter, on_host, parts_on_host

_LONGEST_NAME = 255  # characters of a file's name


class AtomicCheckpointer(DetectionCheckpointer):
    """A ``DetectionCheckpointer`` with files that are complete or absent, and contain tensors and plain values only.

    - A file is written under a temporary name, synced and renamed. Only then ``last_checkpoint`` is changed. So the
      last checkpoint is readable, whenever the process dies.
    - Files are read with ``weights_only=True``, so that a checkpoint from elsewhere cannot run code. Weights may also
      be a ``.safetensors`` file, in half precision too.
    - Weights must fit the model key by key, and be finite. Otherwise a part would keep its random weights, and only bad
      results would show it. With ``weights_may_differ``, the weights that training starts from may fit in part.

    Args:
        model, save_dir, save_to_disk, checkpointables: as in ``DetectionCheckpointer``.
        averaging: the trainer's :class:`~uniperceiver_v2.engine.WeightAveraging`. Its averages are saved as "model".
            The weights in training are in its own state, which is part of the trainer's.
        weights_may_differ: whether weights without a trainer's state, as fine-tuning starts from, may fit in part. What
            fits is loaded, and the log lists the rest. It never applies to ``--resume``.
        in_background: whether :meth:`save` and :meth:`save_weights` only copy the state to the host, and leave writing
            to a thread. They wait for the checkpoint before, and raise its error. So do :meth:`wait` and what asks for
            the last checkpoint.
        weights_may_be_nan: whether weights that are NaN or infinite are loaded.
        parts: writes checkpoints as directories (:mod:`uniperceiver_v2.checkpoint.parts`) instead of files. All
            processes have to save then. Both are read without it.

    Attributes:
        times_written: how many last checkpoints this process has completed.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        averaging: Any = None,
        weights_may_differ: bool = False,
        in_background: bool = False,
        weights_may_be_nan: bool = False,
        parts: PartsWriter | None = None,
        **checkpointables: Any,
    ):
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self._averaging = averaging
        self._weights_may_differ = weights_may_differ
        self._writer = BackgroundWriter() if in_background else None
        self.times_written = 0
        self._told: str | None = None  # in first_process_decides: the first process's last checkpoint
        self._weights_may_be_nan = weights_may_be_nan
        self._parts = parts
        self._in_part = False  # while a file is loaded: whether its weights may fit in part
        self._resuming = False  # while a file is loaded: whether training goes on from it
        self._with_states = False  # while a file is loaded: whether the checkpointables take their states from it

    def file_name(self, name: str) -> str:
        """The name of the file, or of the directory of parts, that :meth:`save` writes."""
        return f"{name}.pth" if self._parts is None else name

    def save(self, name: str, **kwargs: Any) -> None:
        """Write model, checkpointables and ``kwargs`` to :meth:`file_name` in ``save_dir``, and make it the last
        checkpoint.

        Raises:
            UserError: the file cannot be written. Older checkpoints are not changed.
        """
        self._save_model(name, self.checkpointables, kwargs, is_last=True)

    def save_weights(self, name: str, **kwargs: Any) -> None:
        """Write the model alone, with ``kwargs``, to :meth:`file_name` in ``save_dir``. The last checkpoint stays what
        it is.

        Raises:
            UserError: the file cannot be written.
        """
        self._save_model(name, {}, kwargs, is_last=False)

    def wait(self) -> None:
        """Wait until all checkpoints are written.

        Raises:
            UserError: the last one cannot be written. Older checkpoints are not changed.
        """
        if self._writer is not None:
            self._writer.wait()

    def _save_model(self, name: str, states: Mapping[str, Any], more: Mapping[str, Any], *, is_last: bool) -> None:
        """Write the model with the states of ``states`` and ``more``, if this process writes files. The others help to
        gather what is divided among processes."""
        writes = bool(self.save_dir) and (self.save_to_disk or self._parts is not None)
        divided = any(map(is_divided, self.model.parameters()))
        if not writes and not divided:
            return
        self.wait()
        if self.save_dir and self.save_to_disk:
            self.logger.info("Saving checkpoint to %s", os.path.join(self.save_dir, self.file_name(name)))
        with self._averaging.applied() if self._averaging is not None else contextlib.nullcontext():
            data = {"model": self.model.state_dict()}
            data.update({key: item.state_dict() for key, item in states.items()})
            data.update(more)
            if self._parts is not None:
                data = data if self._writer is None else parts_on_host(data)
            elif divided or self._writer is not None:
                data = on_host(data, keep=writes)
            if writes and self._writer is None:
                self._write_checkpoint(name, data, is_last)
        if writes and self._writer is not None:
            self._writer.start(lambda: self._write_checkpoint(name, data, is_last))

    def _write_checkpoint(self, name: str, data: dict[str, Any], is_last: bool) -> None:
        file, path = self.file_name(name), os.path.join(self.save_dir, self.file_name(name))

        def finish() -> None:
            if is_last:
                self.tag_last_checkpoint(file)
            with contextlib.suppress(OSError):  # what an earlier run has written by this name in the other form
                remove_checkpoint(os.path.join(self.save_dir, name if file != name else f"{name}.pth"))

        if self._parts is not None:
            self._parts.write(path, data, then=finish)
        else:
            self._write(path, lambda opened: torch.save(data, opened))
            finish()

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the checkpoint that ``--resume`` uses."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        self._write(path, lambda file: file.write(last_filename_basename.encode()))
        self.times_written += 1

    def _write(self, path: str, write: Callable[[IO[bytes]], Any]) -> None:
        try:
            write_atomically(path, write)
        # torch.save raises RuntimeError if a write fails.
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot write {path}: {error}; older checkpoints are untouched") from error

    def has_checkpoint(self) -> bool:
        """Whether ``save_dir`` has a file ``last_checkpoint``. :meth:`get_checkpoint_file` checks its content.

        Raises:
            UserError: this cannot be determined, for example without permission to read the folder.
        """
        if self._told is not None:
            return self._told != ""
        self.wait()
        path = self._last_checkpoint()
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise UserError(f"--resume: {path} cannot be looked for: {error.strerror}") from error
        return True

    def get_checkpoint_file(self) -> str:
        """The path of the last checkpoint, or "" if ``save_dir`` has no ``last_checkpoint``.

        fvcore's own method returns "" for a file that cannot be read. Then ``--resume`` would start from random
        weights.

        Raises:
            UserError: ``last_checkpoint`` cannot be read, does not contain a file name, or names a missing file.
        """
        if self._told is not None:
            return self._told
        if not self.has_checkpoint():
            return ""
        path = self._last_checkpoint()
        way_out = (
            f"write the name of a checkpoint beside it into it{self._known_checkpoints()}, or remove it to begin anew"
        )
        try:
            with open_file(path) as file:
                name = file.read(_LONGEST_NAME + 1).decode("utf-8").strip()
        except (OSError, ValueError) as error:
            reason = "it is not a text" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", error)
            raise UserError(f"--resume: {path} cannot be read ({reason}); {way_out}") from error
        # A name with a folder would make a file from elsewhere the last checkpoint of this run.
        if not name or len(name) > _LONGEST_NAME or not name.isprintable() or os.path.basename(name) != name:
            raise UserError(f"--resume: {path} holds {name[:40]!r}, not the name of a checkpoint; {way_out}")
        checkpoint = os.path.join(self.save_dir, name)
        if not is_checkpoint(checkpoint):
            raise UserError(f"--resume: {path} names {name!r}, which is not there; {way_out}")
        return checkpoint

    @contextlib.contextmanager
    def first_process_decides(self) -> Iterator[None]:
        """A context in which the last checkpoint of all processes is the one that the first has found: other machines
        may see an older state of the folder. Every process has to enter it.

        Raises:
            UserError: on all processes, as :meth:`get_checkpoint_file` on the first one. Also if a process does not see
                this checkpoint.
        """
        found, mistake = "", ""
        if comm.is_main_process():
            try:
                found = os.path.basename(self.get_checkpoint_file())
            except UserError as error:
                mistake = str(error)
        found, mistake = comm.all_gather((found, mistake))[0]
        if mistake:
            raise UserError(mistake)
        self._told = os.path.join(self.save_dir, found) if found else ""
        seen = comm.all_gather(not found or is_checkpoint(self._told))
        try:
            if not all(seen):
                raise UserError(
                    f"--resume: process {seen.index(False)} does not see {found}, from which the first one goes on: "
                    f"OUTPUT_DIR ({self.save_dir}) has to be a folder that all of them share"
                )
            yield
        finally:
            self._told = None

    def _last_checkpoint(self) -> str:
        return os.path.abspath(os.path.join(self.save_dir, "last_checkpoint"))

    def _known_checkpoints(self) -> str:
        found = (glob.glob(os.path.join(glob.escape(self.save_dir), x)) for x in ("*.pth", f"*/{MANIFEST}"))
        names = sorted(os.path.basename(p.removesuffix(f"/{MANIFEST}")) for paths in found for p in paths)
        return f" ({', '.join(names[-3:])})" if names else ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As in ``DetectionCheckpointer``.

        Raises:
            UserError: as :meth:`load`. Also if ``resume`` finds weights alone, as training would begin anew.
        """
        self._resuming = resume and self.has_checkpoint()
        try:
            return super().resume_or_load(path, resume=resume)
        finally:
            self._resuming = False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """As in ``DetectionCheckpointer``.

        Raises:
            UserError: the file is missing, truncated or damaged, has more than tensors and plain values, has weights of
                another architecture or weights that are not finite, or does not fit the settings.
        """
        if path:
            path = self._local(path)
        self._in_part = self._weights_may_differ and checkpointables == []
        self._with_states = checkpointables is None
        try:
            # fvcore's method wants a file.
            file = os.path.join(path, MANIFEST) if is_parts(path) else path
            return super().load(file, checkpointables=checkpointables)
        except UserError as error:
            raise error if path in str(error) else UserError(f"{path}: {error}") from error
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a damaged state ends in whatever its first wrong value leads to
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{path} does not fit these settings: {reason}") from error

    def _local(self, path: str) -> str:
        """The file or directory that a path means. Detectron2's ``PathManager`` fetches addresses of kinds it knows."""
        hint = ""
        if "://" in path:
            try:
                require_no_way_up(path)
                path = self.path_manager.get_local_path(path)
            except Exception as error:  # of whatever handler a user has registered
                raise UserError(f"the checkpoint {path} cannot be fetched: {error}") from error
            hint = "; copy the file here, or register a handler for its address with Detectron2's PathManager"
        if not is_checkpoint(path):
            raise UserError(f"checkpoint not found: {path}{hint}")
        return path

    def _load_file(self, filename: str) -> dict[str, Any]:
        directory, name = os.path.split(filename)
        if name == MANIFEST:
            loaded = read_parts(directory, like=next(filter(is_divided, self.model.parameters()), None))
        else:
            loaded = read_tensors(filename, mapped=True)
        lacking = [key for key in self.checkpointables if key not in loaded]
        if self._resuming and lacking:
            raise UserError(
                f"--resume: {filename} has weights, but no state of training ({', '.join(lacking)}), so training would "
                "begin anew; give it as MODEL.WEIGHTS without --resume if that is meant"
            )
        for key in self.checkpointables.keys() & loaded.keys() if self._with_states else ():
            require_alike(self.checkpointables[key].state_dict(), loaded[key], key)
        return loaded if "model" in loaded else {"model": loaded}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        state = checkpoint["model"]
        if not isinstance(state, dict) or not all(
            isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
        ):
            raise UserError("the checkpoint's 'model' is not a dict of tensors by their names")
        strip_prefix(state)
        if self._in_part:
            checkpoint["model"] = self._what_fits(state)
        else:
            require_fit(state, self.model)
        own = self.model.state_dict()
        if not self._weights_may_be_nan:
            own_values = {key: as_loaded(local(value), own.get(key)) for key, value in state.items()}
            agreed(lambda: require_finite(own_values), shared=any(map(is_divided, state.values())))
        checkpoint["model"] = {key: divided_like(value, own[key]) for key, value in checkpoint["model"].items()}
        return super()._load_model(checkpoint)

    def _what_fits(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The model's state with the weights of the checkpoint that fit. The log lists the others."""
        own = self.model.state_dict()
        fitting = {key: value for key, value in state.items() if key in own and not difference(value, own[key])}
        if not fitting:
            raise UserError(f"none of the {len(state)} weights of the checkpoint fits the model")
        if differences := state_differences(state, own):
            self.logger.warning(
                "%d of the model's %d weights are loaded. These differ, and start as without a checkpoint:\n  %s",
                len(fitting),
                len(own),
                "\n  ".join(differences),
            )
        return {**own, **fitting}
