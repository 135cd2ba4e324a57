"""Left-out sets: published choices, ragged sets, and sets that cannot be left out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from whence.data import LeftOutSets
from whence.errors import DataError, InputError, ShapeError

sets_of_positions = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9, unique=True), min_size=1, max_size=6)


# Index lists of the published experiments: arXiv:2412.03906, code of the authors.
def test_evenly_spaced_gives_the_published_energy_list():
    sets = LeftOutSets.evenly_spaced(691, 100)
    assert list(sets) == [(k,) for k in range(0, 687, 7)] + [(690,)]


def test_evenly_spaced_gives_the_published_concrete_list():
    assert list(LeftOutSets.evenly_spaced(927, 100)) == [(k,) for k in range(0, 892, 9)]


@given(st.integers(1, 400), st.data())
def test_evenly_spaced_sets_are_distinct_and_inside(n_train, data):
    count = data.draw(st.integers(1, n_train))
    sets = LeftOutSets.evenly_spaced(n_train, count)
    assert len(set(sets)) == count
    assert sets.indices.tolist() == sorted(sets.indices.tolist())
    if n_train > 1:
        sets.validate(n_train)


def test_evenly_spaced_spreads_where_a_rounded_step_would_run_out():
    # 15 / 10 rounds to 2, and 16 and 18 are outside.
    assert list(LeftOutSets.evenly_spaced(15, 10)) == [(0,), (1,), (3,), (4,), (6,), (7,), (9,), (10,), (12,), (13,)]


@given(sets_of_positions)
def test_groups_come_back_as_they_were(groups):
    sets = LeftOutSets.groups(groups).validate(10)
    assert list(sets) == [tuple(group) for group in groups]
    assert len(sets) == len(groups)
    assert sets.sizes.tolist() == [len(group) for group in groups]
    assert sets.is_single == all(len(group) == 1 for group in groups)
    assert [set(row.nonzero().flatten().tolist()) for row in sets.mask(10)] == [set(group) for group in groups]


@given(sets_of_positions, st.data())
def test_subset_chooses_sets(groups, data):
    positions = data.draw(st.lists(st.integers(0, len(groups) - 1), min_size=1))
    chosen = LeftOutSets.groups(groups).subset(positions)
    assert list(chosen) == [tuple(groups[k]) for k in positions]


def test_random_sets_follow_the_seed_alone():
    torch.manual_seed(5)
    first = LeftOutSets.random(50, 20, seed=1, size=3)
    torch.manual_seed(6)
    assert first == LeftOutSets.random(50, 20, seed=1, size=3)
    assert first != LeftOutSets.random(50, 20, seed=2, size=3)
    assert (len(first), first.sizes.unique().tolist()) == (20, [3])
    first.validate(50)


def test_random_single_examples_are_all_different():
    sets = LeftOutSets.random(30, 30, seed=0)
    assert sorted(sets) == [(k,) for k in range(30)]
    assert list(sets) != sorted(sets)


def test_equal_sets_have_equal_fingerprints_and_hashes():
    one, other = LeftOutSets.singles([3, 1]), LeftOutSets.groups([[3], [1]])
    assert (one, hash(one), one.fingerprint) == (other, hash(other), other.fingerprint)
    assert one.fingerprint != LeftOutSets.groups([[3, 1]]).fingerprint
    assert one != "LeftOutSets"


@pytest.mark.parametrize(
    "groups, error, reason",
    [
        ([[0], [7]], InputError, "set 1 names example 7; positions lie in 0..4"),
        ([[-1]], InputError, "names example -1"),
        ([[0], [1, 2, 1]], DataError, "set 1 lists example 1 more than once"),
        ([[0], []], DataError, "set 1 is empty"),
        ([[0, 1, 2, 3, 4]], InputError, "all 5 examples"),
    ],
)
def test_sets_that_cannot_be_left_out(groups, error, reason):
    with pytest.raises(error, match=reason):
        LeftOutSets.groups(groups).validate(5)


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: LeftOutSets.evenly_spaced(5, 6), "6 different single examples of 5"),
        (lambda: LeftOutSets.random(5, 6, seed=0), "6 different single examples of 5"),
        (lambda: LeftOutSets.random(5, 2, seed=0, size=5), "none to train on"),
        (lambda: LeftOutSets.evenly_spaced(5, 0), "count"),
        (lambda: LeftOutSets.singles([0.5]), "list of integers"),
        (lambda: LeftOutSets.singles(torch.ones(3, dtype=torch.bool)), "list of integers"),
        (lambda: LeftOutSets.singles([1, 2]).subset([2]), "0..1"),
    ],
)
def test_choices_that_cannot_be_made(make, reason):
    with pytest.raises(InputError, match=reason):
        make()


@pytest.mark.parametrize(
    "offsets, indices, error",
    [
        ([0, 2], [1], DataError),
        ([1, 2], [1, 2], DataError),
        ([0], [], DataError),
        ([0, 2, 1, 3], [1, 2, 3], DataError),
        ([0.0, 1.0], [1], ShapeError),
        ([[0, 1]], [1], ShapeError),
    ],
)
def test_offsets_that_describe_no_sets(offsets, indices, error):
    with pytest.raises(error, match="offsets"):
        LeftOutSets(torch.tensor(offsets), torch.tensor(indices, dtype=torch.int64))


def test_no_sets_at_all_are_refused():
    with pytest.raises(DataError, match="one set at least"):
        LeftOutSets.singles([])


def test_repr():
    assert repr(LeftOutSets.groups([[1], [2, 3]])) == "LeftOutSets(2 sets of 1 to 2)"
