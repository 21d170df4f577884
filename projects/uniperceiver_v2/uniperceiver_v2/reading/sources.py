"""The files of registered datasets, and messages for files that cannot be used."""

import contextlib
import glob
import json
import os
from collections.abc import Iterator

from detectron2.data import MetadataCatalog

from ..errors import UnreadableImage, UserError
from .disk import DiskFault, patiently, require_file
from .remote import is_remote

# Keys of metadata with a path of the dataset's files: ours first, then those of Detectron2's own datasets.
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
_PROGRAM = "python datasets/"  # the beginning of a command that makes files of a dataset


@contextlib.contextmanager
def while_reading(path: str, *, or_folder: bool = False) -> Iterator[None]:
    """A context whose errors are about one file, or folder, of a dataset that has several. :func:`explained` names this
    one in place of the dataset's first."""
    try:
        patiently(lambda: require_file(path, or_folder=or_folder), path)
        yield
    except UserError:
        raise
    except Exception as error:
        if not hasattr(error, "while_reading"):
            error.while_reading = os.path.abspath(path)  # type: ignore[attr-defined]
        raise


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """A context that turns errors about the files of dataset ``name`` into a :class:`UserError`.

    Its message has the path and a remedy: the command that prepares the dataset, if its metadata has one as
    "prepare_command"; or the form of its files, if its metadata has it as "expected_form"; or the place where the
    expected files are described. A UserError of a reader gets the remedy as well, unless it names a program of
    ``datasets``, or the disk is at fault.
    """
    remedy = remedy_of(name)
    try:
        for path in _paths_of(name):
            with while_reading(path, or_folder=True):
                pass
        yield
    except DiskFault:
        raise
    except UserError as error:
        if remedy in str(error) or _PROGRAM in str(error):
            raise
        raise UserError(f"{error}{remedy}") from error
    except UnreadableImage as error:
        raise UserError(f"an image of dataset '{name}' cannot be read: {error}{remedy}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        source = getattr(error, "while_reading", None)
        path = os.path.abspath(error.filename or source or source_of(name))
        named = f", which {source} names" if source and path != source and os.path.isfile(source) else ""
        raise UserError(f"dataset '{name}' is missing: looked for {path}{named}{remedy}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        source = _read_at(error, name)
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
        source = _read_at(error, name)
        raise UserError(f"{source} of dataset '{name}' cannot be used ({reason}){remedy}") from error


def _read_at(error: Exception, name: str) -> str:
    """The file of dataset ``name`` that was read when there was an error."""
    return getattr(error, "while_reading", None) or source_of(name)


def source_of(name: str) -> str:
    """A path of the dataset's files, or the dataset's name if no path is known."""
    return os.path.abspath(next(iter(_paths_of(name)), name))


def _paths_of(name: str) -> list[str]:
    metadata = MetadataCatalog.get(name)
    return [str(path) for path in (metadata.get(key) for key in _PATHS) if path]


def require_source(name: str) -> None:
    """Check that the annotations of a dataset exist.

    Raises:
        FileNotFoundError: the dataset's metadata has the path of its annotations, and there is no such file.
    """
    metadata = MetadataCatalog.get(name)
    keys = ("json_file", "source", "panoptic_json", "sem_seg_root")  # the last two are upstream's of segmentation
    path = next((metadata.get(key) for key in keys if metadata.get(key)), None)
    if path and not is_remote(str(path)) and not glob.has_magic(str(path)) and not os.path.exists(path):
        raise FileNotFoundError(None, "no such dataset", str(path))


def remedy_of(name: str) -> str:
    """The end of a message about a dataset's files: how to get them right."""
    metadata = MetadataCatalog.get(name)
    if command := metadata.get("prepare_command"):
        return f"; prepare it with: {command} (datasets/README.md shows the expected files)"
    if form := metadata.get("expected_form"):
        return f"; expected: {form}"
    return "; datasets/README.md shows the expected files"
