"""Opens all files of the package, so that a user can register handlers for other kinds of paths."""

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as PathManagerBase

__all__ = ["PathHandler", "PathManager"]

PathManager = PathManagerBase()
"""Detectron2's own iopath manager: local paths and http(s) URLs, which are downloaded once and cached."""

PathManager.register_handler(HTTPURLHandler())
