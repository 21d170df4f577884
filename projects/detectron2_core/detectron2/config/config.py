"""``CfgNode``, the default configuration, and ``configurable``, which lets a configuration replace arguments."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any

from detectron2.utils.file_io import PathManager
from fvcore.common.config import CfgNode as _CfgNode

logger = logging.getLogger(__name__)


class CfgNode(_CfgNode):
    """A yacs node. Its YAML files may inherit from others through ``_BASE_`` and may have a ``VERSION``.

    Source: ``detectron2.config.CfgNode``. Files of an older version than the node are refused here. Upstream converts
    them.
    """

    @classmethod
    def _open_cfg(cls, filename: str):
        return PathManager.open(filename, "r")

    def merge_from_file(self, cfg_filename: str, allow_unsafe: bool = True) -> None:
        """Overwrites this node's values with those of a YAML file and its bases.

        Args:
            cfg_filename: path of the YAML file. The paths of its bases are relative to it.
            allow_unsafe: whether YAML tags that construct Python objects are accepted. They run code, so accept them in
                trusted files only.

        Raises:
            AssertionError: the file is missing, or has another version of the keys.
            KeyError: the file has a key that this node lacks.
        """
        assert PathManager.isfile(cfg_filename), f"Config file '{cfg_filename}' does not exist!"
        loaded = type(self)(self.load_yaml_with_base(cfg_filename, allow_unsafe=allow_unsafe))
        version = loaded.get("VERSION", None)
        if version is None:
            logger.warning("Config '%s' has no VERSION. Assuming it to be %s.", cfg_filename, self.VERSION)
            version = self.VERSION
        assert version <= self.VERSION, f"Cannot merge a v{version} config into a v{self.VERSION} config."
        assert version == self.VERSION, (
            f"Config file '{cfg_filename}' is of version {version}; only version {self.VERSION} is supported."
        )
        self.merge_from_other_cfg(loaded)


global_cfg = CfgNode()


def get_cfg() -> CfgNode:
    """A new, unfrozen copy of the default configuration."""
    from .defaults import _C

    return _C.clone()


def set_global_cfg(cfg: CfgNode) -> None:
    """Copy the entries of ``cfg`` into ``global_cfg``, for code that gets no configuration as an argument."""
    global_cfg.clear()
    global_cfg.update(cfg)


def configurable(init_func: Callable | None = None, *, from_config: Callable | None = None) -> Callable:
    """Lets a class or function be called with a ``CfgNode`` where it expects explicit arguments.

    Two uses::

        class Head(nn.Module):
            @configurable
            def __init__(self, width, depth=2): ...

            @classmethod
            def from_config(cls, cfg):  # the first argument must be called cfg
                return {"width": cfg.MODEL.WIDTH}


        @configurable(from_config=lambda cfg: {"width": cfg.MODEL.WIDTH})
        def build_head(width, depth=2): ...

    After that ``Head(cfg)``, ``Head(cfg, depth=3)`` and ``Head(width=8)`` are all valid. An argument beside ``cfg``
    goes to ``from_config`` if its signature has the argument's name. Otherwise it goes directly to the callee.

    Raises:
        AssertionError: the decorated object is not an ``__init__``, or ``from_config`` is not a function.
        AttributeError, TypeError: at the call, if ``from_config`` is missing, is not a classmethod, or has another
            first argument than ``cfg``.
    """
    if init_func is not None:
        is_init = inspect.isfunction(init_func) and init_func.__name__ == "__init__"
        assert is_init and from_config is None, "@configurable without arguments decorates __init__ only"
        return _configurable_init(init_func)
    if from_config is None:
        return configurable  # written as @configurable()
    assert inspect.isfunction(from_config), "from_config must be a function"
    return functools.partial(_configurable_function, from_config)


def _configurable_init(init_func: Callable) -> Callable:
    @functools.wraps(init_func)
    def wrapped(self, *args, **kwargs):
        owner = type(self)
        if not hasattr(owner, "from_config"):
            raise AttributeError(f"{owner.__name__} uses @configurable but has no 'from_config' classmethod")
        if not inspect.ismethod(owner.from_config):
            raise TypeError(f"{owner.__name__}.from_config must be a classmethod")
        if _called_with_cfg(args, kwargs):
            init_func(self, **_explicit_arguments(owner.from_config, args, kwargs))
        else:
            init_func(self, *args, **kwargs)

    return wrapped


def _configurable_function(from_config: Callable, function: Callable) -> Callable:
    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        if _called_with_cfg(args, kwargs):
            return function(**_explicit_arguments(from_config, args, kwargs))
        return function(*args, **kwargs)

    wrapped.from_config = from_config
    return wrapped


def _called_with_cfg(args: tuple, kwargs: dict[str, Any]) -> bool:
    first = args[0] if args else kwargs.get("cfg")
    return isinstance(first, _CfgNode) or isinstance(kwargs.get("cfg"), _CfgNode)


def _explicit_arguments(from_config: Callable, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(from_config).parameters
    if next(iter(parameters), None) != "cfg":
        raise TypeError(f"{from_config.__qualname__} must take 'cfg' as its first argument")
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values()):
        return from_config(*args, **kwargs)
    known = {name: value for name, value in kwargs.items() if name in parameters}
    passed_on = {name: value for name, value in kwargs.items() if name not in parameters}
    return {**from_config(*args, **known), **passed_on}
