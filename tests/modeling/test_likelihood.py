"""Likelihoods compared with the plain formula."""

import math

import pytest
import torch

from uniperceiver_v2.modeling.likelihood import Likelihood, directions


def test_equals_the_plain_formula():
    likelihood, inputs, candidates = Likelihood(0.2), torch.randn(2, 3, 5), torch.randn(4, 5)
    found = likelihood(inputs, candidates)
    assert found.shape == (2, 3, 4)
    for i in range(2):
        for j in range(3):
            for c in range(4):
                x, y = inputs[i, j].double().tolist(), candidates[c].double().tolist()
                product = sum(a * b for a, b in zip(x, y, strict=True))
                cosine = product / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
                assert found[i, j, c].item() == pytest.approx(cosine / 0.2, abs=1e-5)


def test_lengths_do_not_matter():
    likelihood, inputs, candidates = Likelihood(), torch.randn(3, 5), torch.randn(4, 5)
    lengths = torch.tensor([[1e-3], [1.0], [1e3], [7.0]])
    torch.testing.assert_close(likelihood(inputs * 100, candidates * lengths), likelihood(inputs, candidates))


def test_zero_vectors_give_no_nan():
    found = Likelihood()(torch.zeros(1, 5), torch.randn(3, 5))
    torch.testing.assert_close(found, torch.zeros(1, 3))


def test_is_float32_whatever_comes_in():
    inputs, candidates = torch.randn(3, 5).bfloat16(), torch.randn(4, 5).bfloat16()
    found = Likelihood()(inputs, candidates)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Likelihood()(inputs.float(), candidates.float()))


def test_gradients_equal_the_formulas():
    """d/dx cos(x,y)/τ = (y/|y| - cos·x/|x|)/(|x|τ), and with s = -log τ, d/ds = the value itself."""
    likelihood = Likelihood(0.5)
    x, y = torch.randn(6, requires_grad=True), torch.randn(6, requires_grad=True)
    value = likelihood(x, y[None])[0]
    value.backward()
    unit_x, unit_y = (z.detach() / z.detach().norm() for z in (x, y))
    cosine = unit_x @ unit_y
    torch.testing.assert_close(x.grad, (unit_y - cosine * unit_x) / (x.detach().norm() * 0.5))
    torch.testing.assert_close(y.grad, (unit_x - cosine * unit_y) / (y.detach().norm() * 0.5))
    torch.testing.assert_close(likelihood.log_scale.grad, value.detach())


def test_temperature_starts_as_given_and_has_a_floor():
    likelihood = Likelihood(0.07)
    assert likelihood.temperature.item() == pytest.approx(0.07)
    with torch.no_grad():
        likelihood.log_scale.fill_(50.0)
    assert likelihood.temperature.item() == pytest.approx(Likelihood.MIN_TEMPERATURE)
    x = torch.randn(2, 4)
    assert likelihood(x, x).max().item() == pytest.approx(1 / Likelihood.MIN_TEMPERATURE, rel=1e-4)
    likelihood(x, x)[0, 1].backward()
    assert likelihood.log_scale.grad.abs() > 0  # from the floor it can come back


def test_float32_under_autocast():
    likelihood, inputs, candidates = Likelihood(0.07), torch.randn(4, 64), torch.randn(5, 64)
    expected = likelihood(inputs, candidates)
    with torch.autocast("cpu", torch.bfloat16):
        found = likelihood(inputs, candidates)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_candidates_for_many_steps():
    likelihood, inputs, words = Likelihood(0.3), torch.randn(2, 5), directions(torch.randn(7, 5))
    found = likelihood.against(words)
    torch.testing.assert_close(found(inputs), likelihood.of_directions(inputs, words))
    with torch.autocast("cpu", torch.bfloat16):
        assert found(inputs.bfloat16()).dtype == torch.float32
    assert not found(inputs).requires_grad
