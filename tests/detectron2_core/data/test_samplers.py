import itertools

import pytest
import torch
from detectron2.data.samplers import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm


def take(sampler, count):
    return list(itertools.islice(sampler, count))


def on_each_rank(monkeypatch, world_size, make):
    samplers = []
    for rank in range(world_size):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
        samplers.append(make())
    return samplers


def test_training_sampler_gives_permutations():
    stream = take(TrainingSampler(10, seed=4), 30)
    epochs = [stream[:10], stream[10:20], stream[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert stream == take(TrainingSampler(10, seed=4), 30)
    assert stream != take(TrainingSampler(10, seed=5), 30)


def test_training_sampler_in_order():
    assert take(TrainingSampler(3, shuffle=False, seed=0), 7) == [0, 1, 2, 0, 1, 2, 0]


def test_training_sampler_splits_one_stream_among_ranks(monkeypatch):
    alone = take(TrainingSampler(7, seed=1), 21)
    ranks = on_each_rank(monkeypatch, 3, lambda: TrainingSampler(7, seed=1))
    assert [list(triple) for triple in zip(*(take(r, 7) for r in ranks))] == [alone[i : i + 3] for i in range(0, 21, 3)]


@pytest.mark.parametrize("size, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError)])
def test_training_sampler_needs_a_positive_size(size, error):
    with pytest.raises(error):
        TrainingSampler(size)


def annotated(*categories_of_images):
    return [{"annotations": [{"category_id": c} for c in cs]} for cs in categories_of_images]


def test_repeat_factors():
    records = annotated([0, 0], [0, 1], [0, 2], [])  # f = 3/4, 1/4, 1/4
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.5)
    root = (0.5 / 0.25) ** 0.5
    torch.testing.assert_close(factors, torch.tensor([1.0, root, root, 1.0]))
    linear = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.5, sqrt=False)
    torch.testing.assert_close(linear, torch.tensor([1.0, 2.0, 2.0, 1.0]))


def test_repeat_factor_sampler_repeats():
    stream = take(RepeatFactorTrainingSampler(torch.tensor([1.0, 3.0, 2.0]), seed=0), 12)
    for epoch in (stream[:6], stream[6:]):
        assert sorted(epoch) == [0, 1, 1, 1, 2, 2]
    assert take(RepeatFactorTrainingSampler(torch.tensor([2.0, 1.0]), shuffle=False, seed=0), 4) == [
        0,
        0,
        1,
        0,
    ]


def test_repeat_factor_fractions_hold_on_average():
    stream = take(RepeatFactorTrainingSampler(torch.tensor([1.0, 1.25]), seed=0), 4500)
    assert stream.count(1) / stream.count(0) == pytest.approx(1.25, abs=0.05)


@pytest.mark.parametrize("size, world_size", [(10, 1), (10, 3), (2, 4)])
def test_inference_sampler_gives_each_index_once(monkeypatch, size, world_size):
    samplers = on_each_rank(monkeypatch, world_size, lambda: InferenceSampler(size))
    shares = [list(sampler) for sampler in samplers]
    assert list(itertools.chain(*shares)) == list(range(size))
    assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
