"""Checks refuse what they say they refuse; streams depend on their names and on nothing else."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from whence.checks import look_up, require_count, require_finite, require_positive, unknown_name
from whence.errors import InputError, NonFiniteError, UnknownNameError
from whence.rng import derive_seed, numpy_generator, torch_generator

TABLE = {"kfac": 1, "ekfac": 2, "exact": 3}

# Names


def test_look_up():
    assert look_up(TABLE, "ekfac", "curvature") == 2


@pytest.mark.parametrize(
    "name, message",
    [
        ("kfca", "Unknown curvature 'kfca'. Did you mean 'kfac'? Known: ekfac, exact, kfac."),
        ("EXACT", "Unknown curvature 'EXACT'. Did you mean 'exact'? Known: ekfac, exact, kfac."),
        ("zzzz", "Unknown curvature 'zzzz'. Known: ekfac, exact, kfac."),
        (["kfac"], "Unknown curvature ['kfac']."),
        (None, "Unknown curvature None. Known: ekfac, exact, kfac."),
    ],
)
def test_an_unknown_name_is_answered_with_the_known(name, message):
    with pytest.raises(UnknownNameError) as caught:
        look_up(TABLE, name, "curvature")
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, KeyError)


def test_an_empty_table_says_so():
    assert str(unknown_name("method", "a", [])) == "Unknown method 'a'. Known: none."


# Finiteness


@pytest.mark.parametrize(
    "x", [torch.ones(3), torch.zeros(0, 2), torch.arange(3), torch.tensor(1.0), torch.ones(2).bool()]
)
def test_finite_tensors_pass(x):
    require_finite(x, "x", rows="row")


def test_rows_are_named_by_position_or_id():
    x = torch.ones(9, 2)
    x[[1, 4], 0] = float("inf")
    with pytest.raises(NonFiniteError, match=r"^x has NaN or infinite values for example 1, 4\. "):
        require_finite(x, "x", rows="example")
    with pytest.raises(NonFiniteError, match="for example b, e"):
        require_finite(x, "x", rows="example", ids=tuple("abcdefghi"))
    x[:8] = float("nan")
    with pytest.raises(NonFiniteError, match="0, 1, 2, 3, 4 and 3 more"):
        require_finite(x, "x", rows="example")


@pytest.mark.parametrize(
    "x", [torch.tensor(float("nan")), torch.tensor([1 + 1j, complex("nan")]), torch.full((2,), -torch.inf)]
)
def test_non_finite_tensors_are_refused(x):
    with pytest.raises(NonFiniteError, match=r"weights has NaN or infinite values\. Repair"):
        require_finite(x, "weights")


# Numbers


@pytest.mark.parametrize("value", [1, 0.5, 1e-300, np.float32(2), torch.tensor(3.0)])
def test_positive_numbers_pass(value):
    require_positive(value, "lr")


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), None, "1", True])
def test_what_is_not_positive_is_refused(value):
    with pytest.raises(InputError, match="`lr` must be a positive finite number"):
        require_positive(value, "lr")


@pytest.mark.parametrize("value", [1, 7, np.int64(3)])
def test_counts_pass(value):
    require_count(value, "k")


@pytest.mark.parametrize("value", [0, -1, 1.0, "1", None, True])
def test_what_is_no_count_is_refused(value):
    with pytest.raises(InputError, match="`k` must be an integer of at least 1"):
        require_count(value, "k")
    require_count(0, "k", minimum=0)


# Streams

names = st.lists(st.text(max_size=4), max_size=3).map(tuple)


@given(st.integers(), names, st.integers(), names)
def test_different_streams_have_different_seeds(root, parts, other_root, other_parts):
    same = (root, parts) == (other_root, other_parts)
    assert (derive_seed(root, *parts) == derive_seed(other_root, *other_parts)) == same


@given(names)
def test_the_separator_in_a_name_makes_no_two_names(parts):
    joined = "\x1f".join(parts)
    if len(parts) > 1:
        assert derive_seed(0, *parts) != derive_seed(0, joined)


def test_seeds_fit_every_generator():
    seeds = [derive_seed(root, "a") for root in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 200


def test_a_root_that_is_no_integer_is_refused():
    with pytest.raises(TypeError):
        derive_seed(0.5, "a")
    assert derive_seed(np.int64(3), "a") == derive_seed(3, "a")


def test_streams_do_not_touch_or_follow_the_global_state():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = torch.rand(2, generator=torch_generator(7, "noise"))
    assert_close(torch.rand(3), expected)
    assert_close(torch.rand(2, generator=torch_generator(7, "noise")), first)
    assert numpy_generator(7, "noise").random() == numpy_generator(7, "noise").random()
    assert numpy_generator(7, "noise").random() != numpy_generator(7, "order").random()


def test_seeds_are_the_same_in_another_process():
    program = "from whence.rng import derive_seed; print(derive_seed(3, 'split', 1))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert int(printed) == derive_seed(3, "split", 1)
