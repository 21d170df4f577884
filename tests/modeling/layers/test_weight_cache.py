"""Values that are computed from weights are kept exactly until a weight changes."""

import copy

import pytest
import torch
from torch import nn

from uniperceiver_v2.modeling.layers import WeightCache


@pytest.fixture
def encoder() -> nn.Linear:
    return nn.Linear(1, 4)


@pytest.fixture
def calls() -> list:
    return []


class Names:
    """Encodes names, with a cache of two sets. ``calls`` lists the names that were encoded."""

    def __init__(self, encoder: nn.Linear, calls: list):
        self.cache, self.encoder, self.calls = WeightCache([encoder], capacity=2), encoder, calls

    def get(self, names: tuple[str, ...]) -> torch.Tensor:
        return self.cache.get(names, lambda: self.encode(names))

    def encode(self, names: tuple[str, ...]) -> torch.Tensor:
        self.calls.append(names)
        return self.encoder(torch.tensor([[float(len(name))] for name in names]))


@pytest.fixture
def cache(encoder, calls) -> Names:
    return Names(encoder, calls)


NAMES, OTHERS = ("seven", "two"), ("one",)


@torch.no_grad()
def test_sets_are_encoded_once(cache, calls, encoder):
    first = cache.get(NAMES)
    assert cache.get(tuple(NAMES)) is first
    assert cache.get(OTHERS).shape == (1, 4)
    assert cache.get(NAMES) is first
    assert calls == [NAMES, OTHERS]
    torch.testing.assert_close(first, encoder(torch.tensor([[5.0], [3.0]])))


def test_with_gradients_sets_are_encoded_each_time(cache, calls):
    assert cache.get(NAMES).requires_grad
    cache.get(NAMES)
    assert len(calls) == 2
    with torch.no_grad():
        assert not cache.get(NAMES).requires_grad
    assert len(calls) == 3


def step(encoder: nn.Linear) -> None:
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1)
    with torch.enable_grad():
        encoder(torch.ones(1, 1)).sum().backward()
    optimizer.step()


def load(encoder: nn.Linear) -> None:
    encoder.load_state_dict(nn.Linear(1, 4).state_dict())


def average(encoder: nn.Linear) -> None:
    """Replaces weights and restores them, as weight averaging does."""
    torch._foreach_copy_(
        [p.detach() for p in encoder.parameters()], [torch.randn_like(p) for p in encoder.parameters()]
    )


def replace(encoder: nn.Linear) -> None:
    encoder.weight = nn.Parameter(torch.randn(4, 1))


def one_number(encoder: nn.Linear) -> None:
    encoder.bias[2] += 1


@pytest.mark.parametrize("change", [step, load, average, replace, one_number])
@torch.no_grad()
def test_a_change_of_any_weight_empties_the_cache(cache, calls, encoder, change):
    before = cache.get(NAMES).clone()
    cache.get(OTHERS)
    change(encoder)
    after = cache.get(NAMES)
    torch.testing.assert_close(after, encoder(torch.tensor([[5.0], [3.0]])))
    assert not torch.equal(after, before)
    cache.get(OTHERS)
    assert calls == [NAMES, OTHERS, NAMES, OTHERS]
    cache.get(NAMES)
    assert len(calls) == 4


@torch.no_grad()
def test_reading_weights_keeps_the_cache(cache, calls, encoder):
    cache.get(NAMES)
    copy.deepcopy(encoder.state_dict())
    encoder.weight.sum()
    cache.get(NAMES)
    assert len(calls) == 1


@torch.no_grad()
def test_another_mode_may_encode_otherwise(cache, calls, encoder):
    cache.get(NAMES)
    encoder.eval()
    cache.get(NAMES)
    assert len(calls) == 2


@torch.no_grad()
def test_the_oldest_set_makes_room(cache, calls):
    for names in (NAMES, OTHERS, ("three",), OTHERS):
        cache.get(names)
    assert calls == [NAMES, OTHERS, ("three",)]
    cache.get(NAMES)
    assert calls[-1] == NAMES


@torch.no_grad()
def test_a_cleared_cache_holds_nothing(cache, calls):
    cache.get(NAMES)
    assert len(cache.cache) == 1
    cache.cache.clear()
    assert len(cache.cache) == 0
    cache.get(NAMES)
    assert calls == [NAMES, NAMES]


@torch.no_grad()
def test_a_change_in_any_of_several_modules_counts(calls):
    first, second = nn.Linear(1, 1), nn.Sequential(nn.Linear(1, 1))
    cache = WeightCache([first, second])

    def get() -> None:
        cache.get("x", lambda: calls.append(1))

    get()
    get()
    assert len(calls) == 1
    second[0].bias += 1
    get()
    assert len(calls) == 2
    second[0] = nn.Linear(1, 1)
    get()
    assert len(calls) == 3
    first.double()
    get()
    assert len(calls) == 4


@torch.no_grad()
def test_a_copied_model_has_a_cache_of_its_own():
    """Weight averaging and tests copy models. A copy caches values of its own weights."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1)
            self.cache = WeightCache([self.linear])

        def total(self) -> torch.Tensor:
            return self.cache.get("sum", self.linear.weight.sum)

    model = Model()
    kept = model.total()
    other = copy.deepcopy(model)
    other.linear.weight += 1
    torch.testing.assert_close(other.total(), kept + 2)
    assert model.total() is kept


@torch.no_grad()
def test_the_oldest_value_goes_when_there_is_no_room_for_another(encoder):
    cache, made = WeightCache([encoder], capacity=1), []
    for key in ("float32", "bfloat16", "bfloat16", "float32"):
        cache.get(key, lambda key=key: made.append(key))
    assert made == ["float32", "bfloat16", "float32"]
