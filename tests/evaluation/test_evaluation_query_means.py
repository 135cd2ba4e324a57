"""Means over queries: intervals of known width, paired differences, and undefined queries."""

import math

import pytest
import torch
from torch.testing import assert_close

from whence.errors import InputError, UnknownNameError
from whence.evaluation.query_means import SUMMARY, QueryDraws

NAN = math.nan


def normal(n, seed=0):
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_interval_has_the_width_of_a_mean():
    values = 3 + 2 * normal(100)
    value, low, high = QueryDraws.of(100, 2000, 0.9, 0).mean(values)
    assert value == pytest.approx(float(values.mean()))
    assert high - low == pytest.approx(2 * 1.645 * float(values.std()) / 10, rel=0.1)


def test_intervals_cover_as_often_as_they_say():
    draws = QueryDraws.of(40, 300, 0.9, 0)
    inside = [low <= 0 <= high for _, low, high in (draws.mean(normal(40, seed)) for seed in range(300))]
    assert 0.84 < sum(inside) / 300 < 0.94  # percentiles of 40 are a little narrow


def test_undefined_queries_are_left_out():
    draws = QueryDraws.of(5, 200, 0.95, 0)
    values = torch.tensor([1.0, NAN, 3.0, 5.0, NAN], dtype=torch.float64)
    value, low, high = draws.mean(values)
    assert value == 3.0
    assert 1 <= low <= 3 <= high <= 5
    row = draws.summary(values, torch.ones(5, dtype=torch.float64), "why")
    assert tuple(row) == SUMMARY
    assert (row["n_query"], row["n_undefined"], row["note"]) == (3, 2, "")
    assert [row["over_random"], row["over_random_low"]] == [2.0, low - 1]


def test_one_query_has_no_interval_and_none_has_no_value():
    draws = QueryDraws.of(2, 10, 0.95, 0)
    assert_close(draws.mean(torch.tensor([4.0, NAN])), [4.0, NAN, NAN], equal_nan=True)
    none = draws.summary(torch.tensor([NAN, NAN]), None, "why")
    assert (none["n_query"], none["note"]) == (0, "why")
    assert all(math.isnan(none[column]) for column in SUMMARY[:6])


def test_differences_use_the_queries_that_both_have():
    draws = QueryDraws.of(4, 100, 0.95, 0)
    a = torch.tensor([1.0, 2.0, NAN, 4.0], dtype=torch.float64)
    b = torch.tensor([0.0, 1.0, 7.0, NAN], dtype=torch.float64)
    assert draws.difference({"a": a, "b": b}, "a", "b") == [1.0, 1.0, 1.0]
    with pytest.raises(UnknownNameError, match=r"'c'.*a, b"):
        draws.difference({"a": a, "b": b}, "a", "c")


def test_settings_without_meaning_are_refused():
    with pytest.raises(InputError, match="n_bootstrap"):
        QueryDraws.of(4, 0, 0.95, 0)
    with pytest.raises(InputError, match="confidence"):
        QueryDraws.of(4, 10, 0.0, 0)
