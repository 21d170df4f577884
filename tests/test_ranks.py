"""Sums, divisors and gathered rows of a single rank. tests/test_two_ranks.py tests two ranks."""

import pytest
import torch

from uniperceiver_v2.ranks import gather_from_ranks, mean_divisor, mean_over_ranks, sum_over_ranks


def test_one_rank_gathers_its_own_rows():
    rows = torch.randn(3, 2)
    assert gather_from_ranks(rows) is rows


def test_the_mean_of_rows_has_their_gradients():
    rows = torch.randn(4, 3, requires_grad=True)
    torch.testing.assert_close(mean_over_ranks(rows), rows.mean(0))
    (gradient,) = torch.autograd.grad(mean_over_ranks(rows) @ torch.tensor([1.0, 2.0, 4.0]), rows)
    assert gradient.tolist() == [[0.25, 0.5, 1.0]] * 4
    assert mean_over_ranks(torch.zeros(0, 3)).tolist() == [0, 0, 0]


def test_sums_are_numbers_without_a_way_back():
    value = torch.tensor(2.5, requires_grad=True)
    sums = sum_over_ranks(value, torch.tensor(7), torch.tensor(True))
    assert sums.tolist() == [2.5, 7, 1]
    assert not sums.requires_grad


@pytest.mark.parametrize(("count", "divisor"), [(0.0, 1.0), (0.25, 1.0), (3.0, 3.0)])
def test_a_mean_over_nothing_divides_by_one(count, divisor):
    assert mean_divisor(torch.tensor(count)).item() == divisor
