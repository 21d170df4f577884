import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniperceiver_v2.data.order import RepeatOrder, SampleOrder, ShapeOrder, ShardOrder, entropy_of, numpy_draws_from
from uniperceiver_v2.engine.schedules import TaskSchedule

RATIOS = {"scenes": 0.5, "digits": 0.3, "captions": 0.2}
both_samplings = pytest.mark.parametrize("even", [False, True])


@both_samplings
def test_draws_before_counts_what_task_at_says(even):
    schedule, fresh = TaskSchedule(RATIOS, 7, even=even), TaskSchedule(RATIOS, 7, even=even)
    counts = Counter()
    checked = 0
    for iteration in range(9000):
        if iteration in (0, 1, 100, 4095, 4096, 4097, 8192, 8999):
            assert fresh.draws_before(iteration) == {name: counts[name] for name in RATIOS}
            checked += 1
        counts[schedule.task_at(iteration)] += 1
    assert checked == 8


@both_samplings
def test_any_iteration_can_be_asked_first(even):
    schedule = TaskSchedule(RATIOS, 7, even=even)
    backwards = [schedule.task_at(t) for t in reversed(range(4000, 4200))][::-1]
    assert backwards == [TaskSchedule(RATIOS, 7, even=even).task_at(t) for t in range(4000, 4200)]


def test_tasks_are_drawn_by_their_ratios():
    n = 100_000
    counts = TaskSchedule({name: 40 * ratio for name, ratio in RATIOS.items()}, 1).draws_before(n)
    for name, ratio in RATIOS.items():
        assert abs(counts[name] - n * ratio) < 4 * np.sqrt(n * ratio * (1 - ratio))


def test_draws_are_independent_of_each_other():
    drawn = np.array([TaskSchedule({"a": 0.5, "b": 0.5}, 3).task_at(t) == "a" for t in range(2000)])
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 4 / np.sqrt(2000)


def test_even_draws_are_those_of_the_plain_formula():
    schedule = TaskSchedule(RATIOS, 5, even=True)
    draws = [schedule.task_at(t) for t in range(9000)]
    parts = {"captions": (Fraction(0), Fraction(1, 5)), "digits": (Fraction(1, 5), Fraction(1, 2))}  # sorted by name
    golden = Fraction(11400714819323198485, 2**64)
    start = Fraction(int(np.random.default_rng([5, entropy_of("tasks")]).integers(2**64, dtype=np.uint64)), 2**64)
    for t in (*range(300), 4095, 4096, 8999):
        place = (start + t * golden) % 1
        wanted = next((name for name, (low, high) in parts.items() if low <= place < high), "scenes")
        assert draws[t] == wanted, t


@given(
    shares=st.lists(st.integers(1, 50), min_size=1, max_size=8),
    seed=st.integers(0, 99),
    begin=st.integers(0, 10_000),
    length=st.integers(1, 5_000),
)
def test_even_draws_keep_to_the_ratios_everywhere(shares, seed, begin, length):
    ratios = {f"task {index}": share / sum(shares) for index, share in enumerate(shares)}
    schedule = TaskSchedule(ratios, seed, even=True)
    before, after = (schedule.draws_before(t) for t in (begin, begin + length))
    for name, ratio in ratios.items():
        # Twice the discrepancy of the golden ratio's sequence, for an interval that may begin anywhere.
        assert abs(after[name] - before[name] - length * ratio) <= 2 * (1 + math.log(length + 1)), name


def test_even_draws_take_most_of_the_noise_from_the_first_moment():
    """The figures of docs/architecture.md: what stands in for a task's part of m, if its gradient is always 1."""

    def deviation(task: str, even: bool) -> int:
        parts = []
        for seed in range(8):
            schedule, m = TaskSchedule(shares, seed, even=even), 0.0
            for t in range(3000):
                m = 0.9 * m + 0.1 * (schedule.task_at(t) == task) / shares[task]
                parts += [m] if t > 100 else []
        assert abs(np.mean(parts) - 1) < 0.05
        return round(100 * np.std(parts))

    shares = {"scenes": 0.32, "phrases": 0.07, "others": 0.61}
    assert (deviation("scenes", False), deviation("phrases", False)) == (34, 83)
    assert (deviation("scenes", True), deviation("phrases", True)) == (13, 49)


def test_an_even_draw_has_the_probabilities_of_the_ratios():
    at_17 = Counter(TaskSchedule(RATIOS, seed, even=True).task_at(17) for seed in range(2000))
    for name, ratio in RATIOS.items():
        assert abs(at_17[name] - 2000 * ratio) < 4 * np.sqrt(2000 * ratio * (1 - ratio))


@both_samplings
def test_the_seed_and_nothing_else_decides(even):
    def first(ratios, seed):
        return [TaskSchedule(ratios, seed, even=even).task_at(t) for t in range(200)]

    assert first(RATIOS, 0) == first(dict(reversed(RATIOS.items())), 0)
    assert first(RATIOS, 0) != first(RATIOS, 1)


def test_the_order_of_a_seed_is_never_changed():
    """Checkpoints save nothing about the order of data. So all versions must have the same order for a seed."""
    schedule = TaskSchedule({"a": 0.5, "b": 0.25, "c": 0.25}, 0)
    assert "".join(schedule.task_at(t) for t in range(24)) == "abbacbaccccacabcabcaaaca"
    even = TaskSchedule({"a": 0.5, "b": 0.25, "c": 0.25}, 0, even=True)
    assert "".join(even.task_at(t) for t in range(24)) == "acacbacaabacbacaabacaaba"
    order = SampleOrder(10, "a", 0)
    assert [order.index_at(p) for p in range(12)] == [0, 9, 2, 7, 8, 1, 4, 6, 3, 5, 9, 8]
    assert order.rng_at(3).integers(1000, size=3).tolist() == [963, 397, 6]


@pytest.mark.parametrize("ratios", [{}, {"a": 0.0}, {"a": 1.0, "b": -1.0}])
def test_ratios_that_make_no_sense(ratios):
    with pytest.raises(ValueError, match="above 0"):
        TaskSchedule(ratios, 0)


def test_every_epoch_shows_each_record_once_in_another_order():
    order = SampleOrder(23, "scenes", 0)
    epochs = [[order.index_at(23 * e + i) for i in range(23)] for e in range(3)]
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert order.index_at(5) == epochs[0][5]  # also after later ones


def test_tasks_and_seeds_have_orders_and_chance_of_their_own():
    def start(task, seed):
        order = SampleOrder(1000, task, seed)
        return [order.index_at(p) for p in range(5)], order.rng_at(0).random(), order.rng_at(1).random()

    starts = [start("scenes", 0), start("digits", 0), start("scenes", 1)]
    assert start("scenes", 0) == starts[0]
    assert len({str(indices) for indices, _, _ in starts}) == 3
    assert len({number for _, *numbers in starts for number in numbers}) == 6


def test_numpys_functions_draw_from_the_generator_and_go_on_afterwards():
    np.random.seed(4)
    expected = np.random.uniform(size=4)
    np.random.seed(4)
    before = np.random.uniform(size=2)
    drawn = []
    for _ in range(2):
        with pytest.raises(KeyError), numpy_draws_from(np.random.default_rng(9)):
            drawn.append((np.random.uniform(), np.random.randint(100), np.random.choice(5)))
            raise KeyError
    np.testing.assert_array_equal(np.concatenate([before, np.random.uniform(size=2)]), expected)
    assert drawn[0] == drawn[1]


def test_records_come_as_often_as_their_factors_in_every_epoch_and_on_average():
    factors = [1.0, 1.0, 2.5, 1.0, 1.2, 3.0, 0.25]
    order = RepeatOrder(factors, "lvis", seed=3)
    length, epochs = 10, 400  # the sum of the factors is 9.95
    counts = np.zeros((epochs, len(factors)))
    for position in range(epochs * length):
        counts[position // length, order.index_at(position)] += 1
    scaled = np.array(factors) * length / sum(factors)
    assert (counts >= np.floor(scaled)).all() and (counts <= np.ceil(scaled)).all()
    assert np.allclose(counts.mean(0), scaled, atol=0.1)
    fresh = RepeatOrder(factors, "lvis", seed=3)
    assert [fresh.index_at(p) for p in (3999, 7, 7, 2041)] == [order.index_at(p) for p in (3999, 7, 7, 2041)]
    assert any(RepeatOrder(factors, "lvis", 4).index_at(p) != order.index_at(p) for p in range(length))


def test_factors_of_one_are_permutations():
    order = RepeatOrder([1.0] * 9, "lvis", seed=0)
    for epoch in range(3):
        assert sorted(order.index_at(9 * epoch + n) for n in range(9)) == list(range(9))


ASPECTS = np.random.default_rng(0).choice([4 / 3, 3 / 4, 1.5, 2 / 3, 1.0], size=100)


@pytest.mark.parametrize(
    "order",
    [SampleOrder(100, "scenes", 0), RepeatOrder([0.5, 1.5] * 50, "scenes", 0), ShardOrder([60, 40], "scenes", 0)],
)
def test_batches_by_shape_have_the_records_of_their_window(order):
    by_shape = ShapeOrder(order, ASPECTS, batch_size=8, window=4)
    for window in range(5):  # the fourth has the end of one epoch and the beginning of the next
        positions = range(32 * window, 32 * window + 32)
        records = [by_shape.index_at(position) for position in positions]
        assert Counter(records) == Counter(map(order.index_at, positions))
        bounds = sorted((min(batch), max(batch)) for batch in ASPECTS[records].reshape(4, 8))
        assert all(before[1] <= behind[0] for before, behind in itertools.pairwise(bounds)), "a batch mixes shapes"


def test_batches_by_shape_follow_from_the_seed_and_their_place_alone():
    def order(seed: int) -> ShapeOrder:
        return ShapeOrder(SampleOrder(100, "scenes", seed), ASPECTS, batch_size=8, window=4)

    whole, resumed = order(0), order(0)
    records = [whole.index_at(position) for position in range(200)]
    assert [resumed.index_at(position) for position in reversed(range(77, 200))][::-1] == records[77:]
    assert [order(1).index_at(position) for position in range(200)] != records
    assert whole.rng_at(5).random() == SampleOrder(100, "scenes", 0).rng_at(5).random()
    shapes = [ASPECTS[records[first]] for first in range(0, 200, 8)]
    assert shapes != sorted(shapes), "shapes come one after the other"


def test_batches_by_shape_are_padded_less():
    sizes = np.stack([np.where(ASPECTS > 1, 640, 640 * ASPECTS), np.where(ASPECTS < 1, 640, 640 / ASPECTS)], axis=1)
    plain = SampleOrder(100, "scenes", 0)

    def padded(order: SampleOrder) -> float:
        batches = sizes[[order.index_at(position) for position in range(1280)]].reshape(-1, 8, 2)
        return 8 * batches.max(1).prod(1).sum() / batches.prod(2).sum()

    assert padded(plain) > 1.3
    assert padded(ShapeOrder(plain, ASPECTS, batch_size=8, window=16)) < 1.1
