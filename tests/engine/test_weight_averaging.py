"""The exponential average of the weights."""

import pytest
import torch
from torch import nn

from uniperceiver_v2.engine import WeightAveraging


def test_follows_the_formula_with_a_decay_that_warms_up():
    model = nn.Linear(3, 2)
    averaging = WeightAveraging(model, decay=0.5)
    averaging.before_train()
    expected = model.weight.detach().clone()
    for t in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        averaging.after_step()
        decay = min(0.5, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    with averaging.applied():
        torch.testing.assert_close(model.weight.detach(), expected)


def test_weights_come_back_and_their_versions_show_both_changes():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    averaging = WeightAveraging(model, decay=0.9)
    averaging.before_train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
        model[1].running_mean.add_(1.0)
    raw = {key: value.clone() for key, value in model.state_dict().items()}
    versions = [model[0].weight._version]
    with averaging.applied(), averaging.applied():
        versions.append(model[0].weight._version)
        assert not torch.equal(model[0].weight, raw["0.weight"])
        assert torch.equal(model[1].running_mean, raw["1.running_mean"])
    versions.append(model[0].weight._version)
    assert versions[0] < versions[1] < versions[2]
    for key, value in model.state_dict().items():
        assert torch.equal(value, raw[key])


def test_weights_come_back_after_an_error():
    model = nn.Linear(2, 2)
    averaging = WeightAveraging(model, decay=0.9)
    averaging.before_train()
    with torch.no_grad():
        model.weight.add_(1.0)
    raw = model.weight.detach().clone()
    with pytest.raises(RuntimeError), averaging.applied():
        raise RuntimeError
    assert torch.equal(model.weight, raw)


def test_the_average_leaves_its_random_start_within_a_few_steps():
    model = nn.Linear(1, 1, bias=False)
    averaging = WeightAveraging(model, decay=0.9999)
    nn.init.constant_(model.weight, 100.0)
    averaging.before_train()
    nn.init.constant_(model.weight, 0.0)
    for _ in range(10):
        averaging.after_step()
    with averaging.applied():
        assert abs(model.weight.item()) < 1e-2


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_a_decay_outside_its_range_is_refused(decay):
    with pytest.raises(ValueError):
        WeightAveraging(nn.Linear(1, 1), decay)
