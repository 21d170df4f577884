"""Pickles of others take memory and time in proportion to their size."""

import io
import pickle
import resource
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uniperceiver_v2.checkpoint import AtomicCheckpointer
from uniperceiver_v2.errors import UserError
from uniperceiver_v2.reading import Unpickler, read_tensors
from uniperceiver_v2.reading.extent import require_bounded
from uniperceiver_v2.reading.pickled_arrays import load_pickled_arrays

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


def bomb(levels: int = 60) -> list:
    """A few hundred bytes that stand for 2**levels values."""
    value: list = [1]
    for _ in range(levels):
        value = [value, value]
    return value


@given(PLAIN, st.integers(4, 5))
def test_plain_values_come_back(value, protocol):
    assert Unpickler(io.BytesIO(pickle.dumps(value, protocol))).load() == value


@pytest.mark.parametrize("load", [lambda file: Unpickler(file).load(), load_pickled_arrays])
def test_a_number_of_a_value_takes_no_memory(load):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    content = b"\x80\x02]r\x00\x00\x00\x10."  # an empty list, which gets the number 2**28: 4 GiB of a table
    assert load(io.BytesIO(content)) == []
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


@pytest.mark.parametrize("load", [lambda file: Unpickler(file).load(), load_pickled_arrays])
def test_what_stands_for_too_much_is_refused(load):
    started = time.process_time()
    with pytest.raises(ValueError, match="stands for more than"):
        load(io.BytesIO(pickle.dumps({"a": bomb()})))
    assert time.process_time() - started < 1


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_that_stands_for_too_much_is_refused(tmp_path, zipped):
    path = str(tmp_path / "a.pth")
    model = torch.nn.Linear(2, 2)
    content = {"model": model.state_dict(), "rest": bomb()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    for read in (read_tensors, AtomicCheckpointer(model).load):
        with pytest.raises(UserError, match="stands for more than") as caught:
            read(path)
        assert path in str(caught.value)


def deep(levels: int) -> list:
    value: list = []
    for _ in range(levels):
        value = [value]
    return value


def in_itself() -> dict:
    value: dict = {}
    value["a"] = [value]
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (deep(11), "deeper than 10"),
        (deep(100_000), "deeper than 10"),
        ([deep(6), deep(11)], "deeper than 10"),
        (in_itself(), "deeper than 10"),
        ([0] * 100, "more than 100 values"),
        ({"a": [0] * 60, "b": ([0] * 60,)}, "more than 100 values"),
        (bomb(7), "more than 100 values"),
    ],
    ids=["deep", "very deep", "second", "in itself", "long", "together", "shared"],
)
def test_size_and_depth(value, reason):
    with pytest.raises(ValueError, match=reason):
        require_bounded(value, 100, 10)


def test_a_shared_part_that_is_deep_in_one_place_only():
    shared = deep(5)
    require_bounded([shared, [[shared]]], 100, 10)
    with pytest.raises(ValueError, match="deeper"):
        require_bounded([shared, [[[[[[shared]]]]]]], 100, 10)


@pytest.mark.parametrize(
    ("value", "count", "depth"),
    [([0] * 98, 99, 1), (deep(9), 10, 10), ({"a": (1, {2}), 3: "text"}, 8, 3), (bomb(3), 23, 4)],
    ids=["long", "deep", "of all kinds", "shared"],
)
def test_the_bounds_are_exact(value, count, depth):
    assert require_bounded(value, count, depth) is None
    with pytest.raises(ValueError, match=f"more than {count - 1} values"):
        require_bounded(value, count - 1, depth)
    with pytest.raises(ValueError, match=f"deeper than {depth - 1} levels"):
        require_bounded(value, count, depth - 1)
