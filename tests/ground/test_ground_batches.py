"""Nested batches: structure survives, rows are taken alike everywhere, and misfits are named."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from whence import batches
from whence.errors import DataError, ShapeError

Named = namedtuple("Named", ["x", "y"])


@dataclass(frozen=True)
class Record:
    x: torch.Tensor
    more: dict


@dataclass
class Scaled:
    """Changes its tensor when it is made: rebuilding must not run that again."""

    x: torch.Tensor
    y: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.y = self.x + 1
        self.x = self.x / 2


def nested(depth: int = 2):
    """Batches of any shape, all with four rows."""
    leaf = st.integers(1, 3).map(lambda width: torch.arange(4 * width).reshape(4, width))
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.tuples(inner, inner),
            st.lists(inner, min_size=1, max_size=2),
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2),
            st.builds(Named, inner, inner),
        ),
        max_leaves=5,
    )


def structure(batch):
    if isinstance(batch, torch.Tensor):
        return tuple(batch.shape[1:])
    if isinstance(batch, dict):
        return {key: structure(value) for key, value in batch.items()}
    return type(batch), [structure(value) for value in batch]


@given(nested())
def test_flatten_and_rebuild_give_the_batch_back(batch):
    leaves, rebuild = batches.flatten(batch)
    again = rebuild(leaves)
    assert structure(again) == structure(batch)
    assert all(a is b for a, b in zip(batches.flatten(again)[0], leaves, strict=True))
    assert all(a is b for (_, a), b in zip(batches.named_leaves(batch), leaves, strict=True))


@given(nested(), st.lists(st.integers(0, 3), min_size=1, max_size=6))
def test_take_takes_the_same_rows_everywhere(batch, rows):
    part = batches.take(batch, torch.tensor(rows))
    assert structure(part) == structure(batch)
    assert batches.batch_size(part) == len(rows)
    for new, old in zip(batches.flatten(part)[0], batches.flatten(batch)[0], strict=True):
        assert_close(new, torch.stack([old[k] for k in rows]))


@given(nested(), st.permutations(range(4)))
def test_taking_a_permutation_and_its_inverse_changes_nothing(batch, order):
    order = torch.tensor(order)
    back = batches.take(batches.take(batch, order), order.argsort())
    assert_close(batches.flatten(back)[0], batches.flatten(batch)[0])


def test_take_with_a_table_of_rows_adds_a_dimension():
    x, y = batches.take((torch.arange(8).reshape(4, 2), torch.arange(4)), torch.tensor([[0, 1, 2], [3, 3, 3]]))
    assert (x.shape, y.tolist()) == ((2, 3, 2), [[0, 1, 2], [3, 3, 3]])


def test_dataclasses_are_rebuilt_without_their_constructor():
    record = batches.map_tensors(lambda x: x + 1, Record(torch.zeros(2), {"k": torch.ones(2)}))
    assert isinstance(record, Record)
    assert_close((record.x, record.more["k"]), (torch.ones(2), torch.full((2,), 2.0)))
    scaled = Scaled(torch.full((2,), 8.0))
    again = batches.map_tensors(torch.clone, scaled)
    assert_close((again.x, again.y), (torch.full((2,), 4.0), torch.full((2,), 9.0)))


@pytest.mark.parametrize("mapping", [UserDict(a=torch.zeros(2)), OrderedDict(a=torch.zeros(2))])
def test_other_mappings_become_dicts(mapping):
    assert type(batches.take(mapping, torch.tensor([0]))) is dict


def test_places_are_named():
    batch = {"in": (torch.zeros(1), Record(torch.zeros(1), {"k": torch.zeros(1)}))}
    places = [place for place, _ in batches.named_leaves(batch)]
    assert places == ["batch['in'][0]", "batch['in'][1].x", "batch['in'][1].more['k']"]


@pytest.mark.parametrize(
    "batch, place",
    [
        ({"x": torch.zeros(2), "text": ["a", "b"]}, r"batch\['text'\]\[0\] is a str"),
        ((torch.zeros(2), None), r"batch\[1\] is a NoneType"),
        (Record(torch.zeros(2), {"n": 3}), r"batch\.more\['n'\] is a int"),
        (Record, "batch is a type"),
    ],
)
def test_leaves_that_are_no_tensors_are_named(batch, place):
    with pytest.raises(DataError, match=place):
        batches.flatten(batch)


@pytest.mark.parametrize(
    "batch, reason",
    [
        ((torch.zeros(2, 1), torch.zeros(3)), r"\(2, 1\), \(3,\)"),
        ((torch.zeros(2), torch.tensor(1.0)), r"\(2,\), \(\)"),
        (torch.tensor(1.0), "first dimension"),
        ({}, "no tensor"),
        (((), []), "no tensor"),
    ],
)
def test_batches_without_a_size_are_refused(batch, reason):
    with pytest.raises(ShapeError, match=reason):
        batches.batch_size(batch)


@pytest.mark.parametrize("count", [1, 3])
def test_rebuild_needs_one_tensor_for_each_place(count):
    _, rebuild = batches.flatten((torch.zeros(1), torch.zeros(1)))
    with pytest.raises(ShapeError, match=f"2 tensors; got {count}"):
        rebuild([torch.zeros(1)] * count)


def test_single_and_to_device():
    x, y = batches.to_device(batches.single((torch.zeros(3), torch.tensor(1))), "cpu")
    assert (x.shape, y.shape) == ((1, 3), (1,))
