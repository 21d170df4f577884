"""Pickling of what pickle refuses."""

import cloudpickle

__all__ = ["PicklableWrapper"]


class PicklableWrapper:
    """Behaves as the wrapped object, which may be a lambda or closure, and is pickled through cloudpickle.

    Pickling turns it back into the object itself: what comes out is no wrapper.
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
        if attr == "_obj":  # asked for before __init__ has run: there is nothing to look it up in
            raise AttributeError(attr)
        return getattr(self._obj, attr)
