"""Where a registered dataset's files are, and what is said where they cannot be used."""

import contextlib
import glob
import json
import os
from collections.abc import Iterator

from detectron2.data import MetadataCatalog

from ..errors import UserError

# Metadata that name a dataset's files, ours first, then those of Detectron2's own datasets.
_PATHS = (
    "json_file",
    "source",
    "panoptic_json",
    "gt_dir",
    "sem_seg_root",
    "dirname",
    "image_root",
    "image_dir",
)


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Within, what a user can put right about the files of dataset ``name`` is raised as a :class:`UserError`.

    Its message has the path that was looked for and what makes it: the command that prepares the dataset, if
    its metadata has one as "prepare_command", or where the expected tree is shown.
    """
    source, remedy = source_of(name), _remedy(name)
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        path = os.path.abspath(error.filename or source)
        raise UserError(f"dataset '{name}' is missing: looked for {path}{remedy}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source} of dataset '{name}' is cut short or damaged ({error}){remedy}") from error
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        ImportError,
        LookupError,
        OSError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{source} of dataset '{name}' cannot be used ({reason}){remedy}") from error


def source_of(name: str) -> str:
    """The path that stands for the dataset's files; its name where none is known."""
    metadata = MetadataCatalog.get(name)
    known = (metadata.get(key) for key in _PATHS)
    return os.path.abspath(next((str(path) for path in known if path), name))


def require_source(name: str) -> None:
    """
    Raises:
        FileNotFoundError: the dataset's metadata name its annotations' path, and nothing is there.
    """
    metadata = MetadataCatalog.get(name)
    path = metadata.get("json_file") or metadata.get("source")
    if path and not glob.has_magic(str(path)) and not os.path.exists(path):
        raise FileNotFoundError(None, "no such dataset", str(path))


def _remedy(name: str) -> str:
    command = MetadataCatalog.get(name).get("prepare_command")
    return f"; prepare it with: {command}" if command else "; datasets/README.md shows the expected files"
