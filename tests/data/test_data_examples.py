"""Examples: what is accepted, what is refused, and that ids stay with their rows."""

import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence
from torch.testing import assert_close
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from whence.data import Examples
from whence.errors import DataError, InputError, NonFiniteError, ShapeError, UnknownNameError


def pair(n: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(n * 3, dtype=torch.float32).reshape(n, 3), torch.arange(n) % 2


@dataclass
class Record:
    x: torch.Tensor
    y: torch.Tensor


Named = namedtuple("Named", ["x", "y"])


class Augmented(Dataset):
    """Item 2 is drawn anew at every reading."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, k: int) -> torch.Tensor:
        return torch.rand(2, generator=self.generator) if k == 2 else torch.full((2,), float(k))


class Stream(IterableDataset):
    def __iter__(self):
        return iter([torch.zeros(1)])


class Failing(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, k: int) -> torch.Tensor:
        if k == 1:
            raise OSError("no such picture")
        return torch.zeros(2)


# What is accepted


@pytest.mark.parametrize(
    "dataset",
    [
        pair(),
        TensorDataset(*pair()),
        [(x, int(y)) for x, y in zip(*pair(), strict=True)],
        DataLoader(TensorDataset(*pair()), batch_size=2),
        Examples(pair()),
    ],
    ids=["batch", "dataset", "list", "loader", "examples"],
)
def test_every_kind_of_data_set_gives_the_same_batch(dataset):
    examples = Examples(dataset)
    assert isinstance(examples.all(), tuple)
    assert_close(examples.all(), pair())
    assert examples.ids == (0, 1, 2, 3, 4)
    assert len(examples) == 5
    assert examples.fingerprint == Examples(pair()).fingerprint


@pytest.mark.parametrize(
    "batch",
    [pair()[0], Named(*pair()), Record(*pair()), dict(zip("xy", pair(), strict=True)), {"in": pair(), "z": pair()[1]}],
    ids=["tensor", "namedtuple", "dataclass", "dict", "nested"],
)
def test_batches_of_tensors_keep_their_structure(batch):
    part = Examples(batch).batch([3, 1])
    assert type(part) is type(batch)


def test_examples_of_examples_take_over_what_is_not_given():
    first = Examples(pair(2), ids=["a", "b"], name="first", feature_names="uvw", class_names=["no", "yes"])
    again = Examples(first, name="again")
    assert (again.ids, again.name) == (("a", "b"), "again")
    assert (again.feature_names, again.class_names) == (("u", "v", "w"), ("no", "yes"))


def test_examples_of_examples_do_not_read_a_batch_as_items():
    examples = Examples(pair()).replace(list(pair()))
    assert_close(Examples(examples).all(), list(pair()))
    with pytest.raises(InputError, match="Drop `collate`"):
        Examples(examples, collate=list)


def test_a_padding_collate_sees_all_items_at_once():
    items = [torch.ones(k) for k in (1, 4, 2)]
    examples = Examples(items, collate=lambda rows: {"tokens": pad_sequence(rows, batch_first=True)})
    assert examples.all()["tokens"].shape == (3, 4)
    assert examples.batch([0])["tokens"].shape == (1, 4)


def test_a_loader_lends_its_collate():
    items = [torch.ones(k) for k in (1, 4, 2)]
    loader = DataLoader(items, batch_size=1, collate_fn=lambda rows: pad_sequence(rows, batch_first=True))
    assert Examples(loader).all().shape == (3, 4)


def test_collated_lists_are_not_mistaken_for_items_later():
    examples = Examples([(torch.zeros(2), 1), (torch.ones(2), 0)])
    assert_close(examples.subset([1]).all(), (torch.ones(1, 2), torch.tensor([0])))


def test_tensors_that_want_gradients_are_detached():
    assert not Examples(torch.ones(2, requires_grad=True)).all().requires_grad


# What is refused


@pytest.mark.parametrize(
    "loader, reason",
    [
        (DataLoader(TensorDataset(*pair()), shuffle=True), "RandomSampler"),
        (DataLoader(TensorDataset(*pair()), sampler=[4, 3, 2, 1, 0]), "list"),
        (DataLoader(TensorDataset(*pair()), batch_size=2, drop_last=True), "drop_last"),
        (DataLoader(TensorDataset(*pair()), batch_size=None), "batch_size=None"),
        (DataLoader(TensorDataset(*pair()), batch_sampler=[[1, 0], [2, 3, 4]]), "batch sampler"),
        (DataLoader(TensorDataset(*pair()), sampler=SequentialSampler(range(3))), "another data set"),
        (DataLoader(Stream()), "IterableDataset"),
    ],
)
def test_a_loader_that_does_not_walk_in_order_is_refused(loader, reason):
    with pytest.raises(DataError, match=reason) as caught:
        Examples(loader)
    assert "loader.dataset" in str(caught.value)
    assert "collate=loader.collate_fn" in str(caught.value)


def test_a_plain_batch_sampler_in_order_is_accepted():
    dataset = TensorDataset(*pair())
    in_order = BatchSampler(SequentialSampler(dataset), 2, drop_last=False)
    assert len(Examples(DataLoader(dataset, batch_sampler=in_order))) == 5


@pytest.mark.parametrize("sampler, drop_last", [(RandomSampler, False), (SequentialSampler, True)])
def test_a_plain_batch_sampler_is_looked_into(sampler, drop_last):
    # The loader itself says SequentialSampler and drop_last=False in both cases.
    dataset = TensorDataset(*pair())
    loader = DataLoader(dataset, batch_sampler=BatchSampler(sampler(dataset), 2, drop_last=drop_last))
    with pytest.raises(DataError, match=f"{sampler.__name__}|drop_last=True"):
        Examples(loader)


@pytest.mark.parametrize("dataset", [Stream(), 3, iter([1]), object()])
def test_what_has_no_positions_is_refused(dataset):
    with pytest.raises(DataError, match="length and items at positions"):
        Examples(dataset)


@pytest.mark.parametrize("dataset", [[], torch.zeros(0, 3), (torch.zeros(0, 3), torch.zeros(0))])
def test_an_empty_data_set_is_refused(dataset):
    with pytest.raises(DataError, match="empty"):
        Examples(dataset)


def test_random_augmentation_is_refused_naming_the_first_item():
    with pytest.raises(DataError, match="read twice; the first to differ is example 2"):
        Examples(Augmented())
    with pytest.raises(DataError, match="first to differ is example 'c'"):
        Examples(Augmented(), ids=list("abcd"))


def test_random_lengths_behind_a_padding_collate_are_refused():
    generator = torch.Generator().manual_seed(0)

    class Cropped(Augmented):
        def __getitem__(self, k: int) -> torch.Tensor:
            return torch.ones(int(torch.randint(1, 50, (), generator=generator)) if k == 1 else 3)

    with pytest.raises(DataError, match="first to differ is example 1"):
        Examples(Cropped(), collate=lambda rows: pad_sequence(rows, batch_first=True))


def test_a_random_collate_is_refused():
    generator = torch.Generator().manual_seed(0)

    def masked(rows: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(rows) * torch.rand(len(rows), 1, generator=generator)

    with pytest.raises(DataError, match="read twice"):
        Examples([torch.ones(2), torch.ones(2)], collate=masked)


def test_an_error_of_the_data_set_says_at_which_item():
    with pytest.raises(OSError, match="no such picture") as caught:
        Examples(Failing())
    assert "item 1" in caught.value.__notes__[0]


def test_rows_with_nan_are_named_by_id():
    x, y = pair(4)
    x[2, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"batch\[0\] .* for example c\."):
        Examples((x, y), ids=list("abcd"))
    with pytest.raises(NonFiniteError, match="for example 2"):
        Examples(TensorDataset(x, y))


def test_duplicate_ids_are_named():
    with pytest.raises(DataError, match="more than once: 'b', 'a'"):
        Examples(pair(5), ids=list("abbca"))


@pytest.mark.parametrize(
    "ids, reason",
    [
        (["a"], "each of the 2 examples"),
        ([1, "a"], "all str or all int"),
        ([1.0, 2.0], "str or an int"),
        ([True, False], "str or an int"),
        ([(1,), (2,)], "str or an int"),
    ],
)
def test_ids_that_are_no_ids_are_refused(ids, reason):
    with pytest.raises(DataError, match=reason):
        Examples(pair(2), ids=ids)


@pytest.mark.parametrize("ids", [torch.tensor([7, 9]), np.array([7, 9]), [np.int64(7), 9]])
def test_ids_may_come_as_numbers_of_numpy_and_torch(ids):
    examples = Examples(pair(2), ids=ids)
    assert examples.ids == (7, 9)
    assert all(type(id) is int for id in examples.ids)


def test_a_collate_that_changes_the_number_of_rows_is_refused():
    with pytest.raises(ShapeError, match="made 1 rows of 3 items"):
        Examples([torch.zeros(2)] * 3, collate=lambda rows: torch.stack(rows)[:1])


def test_leaves_that_are_no_tensors_are_refused():
    with pytest.raises(DataError, match="list"):  # default_collate leaves strings as they are
        Examples([{"text": "a", "y": 1}, {"text": "b", "y": 0}], collate=lambda rows: {"text": [["a"], ["b"]]})
    with pytest.raises(DataError, match=r"batch\['text'\]\[0\] is a str"):
        Examples([{"text": "a"}, {"text": "b"}])


def test_collate_has_no_use_for_a_batch():
    with pytest.raises(InputError, match="Drop `collate`"):
        Examples(pair(), collate=lambda rows: rows)


def test_tensors_of_different_lengths_are_refused():
    with pytest.raises(ShapeError, match=r"\(5, 3\), \(4,\)"):
        Examples((pair(5)[0], pair(4)[1]))


@pytest.mark.parametrize(
    "texts, reason",
    [
        ("abcde", "single str"),
        (["a", "b", "c"], "each of the 5 examples, in order; got 3"),
        (["a", "b", 3, "d", "e"], "text 2 is int"),
        (["a", "b", "c", None, "e"], "text 3 is NoneType"),
        ([b"a"] * 5, "text 0 is bytes"),
    ],
)
@pytest.mark.parametrize(
    "dataset", [pair(), TensorDataset(*pair()), Examples(pair())], ids=["batch", "set", "examples"]
)
def test_texts_that_are_not_one_str_an_example_are_refused(dataset, texts, reason):
    with pytest.raises(DataError, match=reason):
        Examples(dataset, texts=texts)


def test_texts_are_checked_before_items_are_read():
    with pytest.raises(DataError, match="each of the 3 examples"):
        Examples(Failing(), texts=["a"])


# Rows and ids


@given(
    n=st.integers(1, 12),
    order=st.randoms(use_true_random=False),
    size=st.integers(1, 5),
)
def test_ids_stay_with_their_rows(n, order, size):
    ids = [f"id{k}" for k in range(n)]
    examples = Examples((torch.arange(n), torch.arange(n).float() * 2), ids=ids)
    positions = order.sample(range(n), order.randint(1, n))
    part = examples.subset(positions)
    for k, position in enumerate(positions):
        assert part.ids[k] == ids[position]
        assert part.index_of(ids[position]) == k
        assert int(part.display(k)["0"]) == position
    walked = [x for rows, (x, _) in part.batches(size) for x in zip(rows.tolist(), x.tolist(), strict=True)]
    assert walked == list(enumerate(positions))
    assert_close(part.all(), examples.batch(positions))


@given(n=st.integers(1, 9), data=st.data())
def test_a_subset_of_a_subset_is_a_subset(n, data):
    examples = Examples(torch.arange(n))
    outer = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    inner = data.draw(st.lists(st.integers(0, len(outer) - 1), min_size=1, unique=True))
    assert examples.subset(outer).subset(inner).fingerprint == examples.subset([outer[k] for k in inner]).fingerprint


def test_texts_stay_with_their_rows():
    examples = Examples(pair(), texts=list("abcde"))
    assert examples.texts == ("a", "b", "c", "d", "e")
    assert examples.subset([3, 0]).texts == ("d", "a")
    assert examples.subset([3, 0]).subset([1]).texts == ("a",)
    assert examples.replace(pair()).texts == examples.texts
    assert examples.to(dtype=torch.float64).texts == examples.texts
    assert Examples(examples).texts == examples.texts
    assert Examples(examples, texts=list("vwxyz")).texts == ("v", "w", "x", "y", "z")
    assert Examples(TensorDataset(*pair()), texts=list("vwxyz")).texts == ("v", "w", "x", "y", "z")
    assert Examples(pair()).subset([1]).texts is None


def test_batches_of_a_table_of_positions():
    x, y = Examples(pair()).batch(torch.tensor([[0, 1], [2, 2]]))
    assert x.shape == (2, 2, 3)
    assert y.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize(
    "indices, reason",
    [([5], "got 5"), ([-1], "got -1"), ([0.5], "float32"), (torch.ones(5, dtype=torch.bool), "mask.nonzero")],
)
def test_positions_outside_are_refused(indices, reason):
    with pytest.raises(InputError, match=reason):
        Examples(pair()).batch(indices)


def test_subsets_are_not_empty_and_take_no_example_twice():
    with pytest.raises(DataError, match="empty"):
        Examples(pair()).subset([])
    with pytest.raises(DataError, match="more than once: 1"):
        Examples(pair()).subset([1, 1])
    with pytest.raises(ShapeError, match=r"\(1, 2\)"):
        Examples(pair()).subset(torch.tensor([[1, 2]]))


def test_unknown_ids_are_answered_with_the_kind_of_the_known():
    with pytest.raises(UnknownNameError, match=r"'3'.*ids are int, from 0 to 4"):
        Examples(pair()).index_of("3")
    with pytest.raises(UnknownNameError, match="True"):
        Examples(pair()).index_of(True)


def test_replace_keeps_ids_and_checks_the_rows():
    examples = Examples(pair(), ids=list("abcde"), name="letters")
    x, y = examples.all()
    other = examples.replace((x, 1 - y))
    assert (other.ids, other.name) == (examples.ids, "letters")
    assert other.fingerprint != examples.fingerprint
    with pytest.raises(ShapeError, match="2 examples and there are 5 ids"):
        examples.replace((x[:2], y[:2]))


def test_batches_need_a_size():
    with pytest.raises(InputError, match="size"):
        next(Examples(pair()).batches(0))


def test_display_names_tensors_by_place():
    assert set(Examples({"in": pair(), "z": pair()[1]}).display(0)) == {"in.0", "in.1", "z"}
    assert set(Examples(Record(*pair())).display(0)) == {"x", "y"}
    assert_close(Examples(pair()).display(1), {"0": torch.tensor([3.0, 4.0, 5.0]), "1": torch.tensor(1)})


def test_repr_says_what_is_in_it():
    text = repr(Examples(pair(), name="toy"))
    assert text == "Examples('toy', 5 examples of [0]: float32 (3,), [1]: int64 (), on cpu)"


def test_to_changes_floating_tensors_only():
    x, y = Examples(pair()).to(dtype=torch.float64).all()
    assert (x.dtype, y.dtype) == (torch.float64, torch.int64)
    assert Examples(pair()).to("cpu").fingerprint == Examples(pair()).fingerprint


# Fingerprints


def test_fingerprint_depends_on_everything_that_matters():
    x, y = pair()
    same_bytes = x.view(torch.int32)
    prints = [
        Examples(batch, ids=ids).fingerprint
        for batch, ids in [
            ((x, y), None),
            ((x, y), list("abcde")),
            ((x, y), [str(k) for k in range(5)]),
            ((x + 1, y), None),
            ((same_bytes, y), None),
            ((x.reshape(5, 3, 1), y), None),
            ({"x": x, "y": y}, None),
            ({"x": x, "z": y}, None),
            ((x.bfloat16(), y), None),
        ]
    ]
    assert len(set(prints)) == len(prints)


def test_fingerprint_does_not_depend_on_what_does_not_matter():
    x, y = pair()
    assert Examples({"x": x, "y": y}).fingerprint == Examples({"y": y, "x": x}, name="other").fingerprint
    assert Examples((x, y), texts=list("abcde")).fingerprint == Examples((x, y)).fingerprint
    strided = x.t().contiguous().t()
    assert Examples((strided, y)).fingerprint == Examples((x, y)).fingerprint


def test_fingerprint_is_the_same_in_another_process():
    program = (
        "import torch; from whence.data import Examples;"
        "print(Examples((torch.arange(6.).reshape(2, 3), torch.tensor([0, 1])), ids=['a', 'b']).fingerprint)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    here = Examples((torch.arange(6.0).reshape(2, 3), torch.tensor([0, 1])), ids=["a", "b"]).fingerprint
    assert printed.strip() == here


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU; the CPU twin is test_to_changes_floating_tensors_only"
)
def test_fingerprint_is_the_same_on_a_gpu():
    there = Examples(tuple(x.cuda() for x in pair()))
    assert there.fingerprint == Examples(pair()).fingerprint
    assert there.device.type == "cuda"
    assert_close(there.batch([1, 0])[1].cpu(), torch.tensor([1, 0]))
