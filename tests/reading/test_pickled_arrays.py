"""Pickles of arrays, as NumPy writes them, are read by code of ours."""

import io
import pickle
from collections import OrderedDict

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniperceiver_v2.reading.pickled_arrays import load_pickled_arrays

NUMBERS = [f"{order}{kind}{size}" for order in "<>" for kind in "iuf" for size in (2, 4, 8)] + ["i1", "u1", "b1"]
ARRAYS = st.sampled_from(NUMBERS).flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, min_side=0)))


@given(ARRAYS, st.sampled_from("CF"), st.integers(0, 5))
def test_arrays_come_back(array, order, protocol):
    array = np.asarray(array, order=order)
    content = {"model": OrderedDict(a=array, b="text"), "number": 1.5}
    found = load_pickled_arrays(io.BytesIO(pickle.dumps(content, protocol)))
    assert found["number"] == 1.5 and found["model"]["b"] == "text"
    value = found["model"]["a"]
    assert value.dtype == array.dtype.newbyteorder("=") and value.shape == array.shape
    np.testing.assert_array_equal(value, array)


def test_numbers_of_numpy_come_back():
    found = load_pickled_arrays(io.BytesIO(pickle.dumps([np.float32(1.5), np.int64(-7)])))
    assert found == [1.5, -7] and isinstance(found[0], np.float32)


class Damaged:
    """Pickled as an array whose parts are chosen freely."""

    def __init__(self, state, kind=("f4", False, True), kind_state=(3, "<", None, None, None, -1, -1, 0)):
        self.state, self.kind, self.kind_state = state, kind, kind_state

    def __reduce__(self):
        made = np.zeros(0).__reduce__()
        state = tuple(DamagedType(self.kind, self.kind_state) if part == "type" else part for part in self.state)
        return made[0], made[1], state


class DamagedType:
    def __init__(self, arguments, state):
        self.arguments, self.state = arguments, state

    def __reduce__(self):
        return np.dtype, self.arguments, self.state


@pytest.mark.parametrize(
    "damaged",
    [
        Damaged((1, (2,), "type", False, b"\0" * 8), kind_state=(3, "<", None, -1, -1, 0)),  # crashed NumPy 2
        Damaged((1, (2,), "type", False, b"\0" * 8), kind_state=(3, 7)),
        Damaged((1, (2,), "type", False, b"\0" * 8), kind_state=None),
        Damaged((1, (2,), "type", False, b"\0" * 8), kind=("O8", False, True)),
        Damaged((1, (2,), "type", False, b"\0" * 8), kind=("V8", False, True)),
        Damaged((1, (2**62,), "type", False, b"\0" * 8)),
        Damaged((1, (-1,), "type", False, b"\0" * 8)),
        Damaged((1, [2], "type", False, b"\0" * 8)),
        Damaged((1, (2,), "f4", False, b"\0" * 8)),
        Damaged((1, (2,), "type", False, b"\0" * 7)),
        Damaged((1, (2,), "type", False, [1.0, 2.0])),
        Damaged((1, (2,), "type")),
    ],
)
def test_damage_is_no_crash(damaged):
    content = pickle.dumps({"model": {"a": damaged}}, 4)
    try:
        found = load_pickled_arrays(io.BytesIO(content))["model"]["a"]
    except Exception as error:
        assert str(error)
    else:  # the order of bytes alone tells what the state is for
        np.testing.assert_array_equal(found, np.zeros(2, np.float32))


class Code:
    def __reduce__(self):
        return open, ("proof", "w")


@pytest.mark.parametrize("content", [Code(), {"a": Code()}, np.array([1, None]), np.array([1], "datetime64[s]")])
def test_what_is_no_number_is_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((pickle.UnpicklingError, ValueError), match=r"code|none of numbers"):
        load_pickled_arrays(io.BytesIO(pickle.dumps(content)))
    assert not (tmp_path / "proof").exists()
