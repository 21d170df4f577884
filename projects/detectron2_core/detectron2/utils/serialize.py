"""Pickling of objects that ``pickle`` does not accept."""

import cloudpickle

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Behaves like the wrapped object, which may be a lambda or closure, and is pickled by cloudpickle.

    Unpickling returns the object itself and not a wrapper.
    """

    def __init__(self, obj):
        while isinstance(obj, PicklableWrapper):
            obj = obj._obj
        self._obj = obj

    def __reduce__(self):
        return cloudpickle.loads, (cloudpickle.dumps(self._obj),)

    def __call__(self, *args, **kwargs):
        return self._obj(*args, **kwargs)

    def __getattr__(self, attr):
        if attr == "_obj":  # read before __init__ has set it
            raise AttributeError(attr)
        return getattr(self._obj, attr)
