"""Kept sets: random, of one size, the same for the same seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whence.data import random_kept_sets
from whence.errors import InputError


@given(st.integers(2, 60), st.integers(1, 8), st.floats(0.02, 0.98), st.integers(0, 10))
def test_sets_are_distinct_sorted_positions_of_one_size(n_train, count, share, seed):
    size = round(share * n_train)
    if not 0 < size < n_train:
        with pytest.raises(InputError, match="`share` must keep some"):
            random_kept_sets(n_train, count, share=share, seed=seed)
        return
    sets = random_kept_sets(n_train, count, share=share, seed=seed)
    assert len(sets) == count
    for kept in sets:
        assert isinstance(kept, tuple)
        assert all(type(i) is int for i in kept)
        assert list(kept) == sorted(set(kept))
        assert len(kept) == size
        assert kept[0] >= 0
        assert kept[-1] < n_train


def test_half_of_the_data_is_the_default():
    assert {len(kept) for kept in random_kept_sets(11, 5)} == {6}  # round(5.5): to the even number
    assert {len(kept) for kept in random_kept_sets(10, 5)} == {5}


def test_sets_repeat_with_their_seed_whatever_was_drawn_before():
    torch.manual_seed(0)
    first = random_kept_sets(40, 6, seed=3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert random_kept_sets(40, 6, seed=3) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert random_kept_sets(40, 6, seed=4) != first
    assert len(set(first)) == 6
    # More sets go on where fewer stopped: a run can be extended.
    assert random_kept_sets(40, 9, seed=3)[:6] == first


def test_every_example_is_kept_as_often_as_its_share():
    sets = random_kept_sets(20, 3000, share=0.25, seed=0)
    counts = torch.tensor([i for kept in sets for i in kept]).bincount(minlength=20) / 3000
    assert float((counts - 0.25).abs().max()) < 0.04  # five standard errors of 3000 draws


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, 0.01, 0.99, float("nan")])
def test_shares_that_keep_nothing_or_everything_are_refused(share):
    with pytest.raises(InputError, match="`share` must keep some of the 10 train examples and leave out others"):
        random_kept_sets(10, 3, share=share)


@pytest.mark.parametrize("n_train, count, name", [(0, 3, "n_train"), (10, 0, "count"), (10, 2.5, "count")])
def test_counts_must_be_counts(n_train, count, name):
    with pytest.raises(InputError, match=f"`{name}` must be an integer"):
        random_kept_sets(n_train, count)
