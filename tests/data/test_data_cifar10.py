"""CIFAR-10: labels and pixels of the source, the constants, and damaged files."""

import os

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from whence.data import cifar10
from whence.data.cifar10 import VERSIONS, load_cifar10
from whence.errors import DataError, InputError, UnknownNameError

needs_data = pytest.mark.skipif(
    not os.environ.get("WHENCE_DATA"), reason="WHENCE_DATA is not set: it names the folder of the larger data sets"
)
ROUNDED = 3e-4  # the constants have 4 decimals: half of one, over a deviation of about a quarter


@needs_data
@pytest.mark.parametrize("version, n_train, n_test", [("lossless", 3_200, 800), ("jpeg", 10_000, 2_000)])
def test_channels_are_standard_on_the_train_part(version, n_train, n_test):
    split = load_cifar10(version=version)
    (x, y), (x_test, y_test) = split.train.all(), split.test.all()
    assert (x.shape, x.dtype) == ((n_train, 3, 32, 32), torch.float32)
    assert (len(x_test), len(y_test), y.dtype) == (n_test, n_test, torch.int64)
    mean, square = (moment.mean((0, 2, 3), dtype=torch.float64) for moment in (x, x.square()))
    assert_close(mean, torch.zeros(3).double(), rtol=0, atol=ROUNDED)
    assert_close((square - mean**2).sqrt(), torch.ones(3).double(), rtol=0, atol=ROUNDED)
    assert ("JPEG" in split.notes) == (version == "jpeg")
    if version == "jpeg":
        assert y.bincount().tolist() == [1_000] * 10


@needs_data
def test_rows_come_in_the_order_of_the_source():
    # The well-known first images of CIFAR-10: frog, truck, truck, deer, automobile; the first pixel is (59, 62, 63). In
    # the test part: cat, ship, ship, airplane, frog.
    lossless = load_cifar10(n_train=5, n_test=1)
    x, y = lossless.train.all()
    assert y.tolist() == [6, 9, 9, 4, 1]
    assert [lossless.train.class_names[k] for k in y.tolist()[:2]] == ["frog", "truck"]
    version = VERSIONS["lossless"]
    pixel = 255 * (x[0, :, 0, 0].double() * torch.tensor(version.deviation) + torch.tensor(version.mean))
    assert_close(pixel, torch.tensor([59.0, 62.0, 63.0], dtype=torch.float64), rtol=0, atol=1e-3)  # float32
    assert lossless.test.ids == (3_200,)
    jpeg = load_cifar10(version="jpeg", n_train=1, n_test=5)
    assert jpeg.test.all()[1].tolist() == [3, 8, 8, 0, 6]


@needs_data
def test_fewer_rows_are_scaled_alike():
    whole, few = load_cifar10(), load_cifar10(n_train=7, n_test=3)
    assert_close(few.train.all()[0], whole.train.all()[0][:7], rtol=0, atol=0)
    assert (few.train.ids, len(few.test)) == (whole.train.ids[:7], 3)


def test_options_are_checked():
    with pytest.raises(UnknownNameError, match="Did you mean 'jpeg'"):
        load_cifar10(version="jpg")
    with pytest.raises(InputError, match="n_train"):
        load_cifar10(n_train=3_201)


def test_an_unset_folder_says_what_to_set(monkeypatch):
    monkeypatch.delenv("WHENCE_DATA", raising=False)
    with pytest.raises(DataError, match="Set WHENCE_DATA to that folder"):
        load_cifar10()


def arrays(n_train, n_test):
    found = {}
    for part, n in (("train", n_train), ("test", n_test)):
        found[f"x_{part}"] = np.zeros((n, 32, 32, 3), np.uint8)
        found[f"y_{part}"], found[f"idx_{part}"] = np.zeros(n, np.uint8), np.arange(n, dtype=np.int32)
    return found


@pytest.mark.parametrize("damage", ["other", "truncated", "lacks a part", "fewer rows", "objects"])
def test_damaged_files_are_named(monkeypatch, tmp_path, damage):
    monkeypatch.setenv("WHENCE_DATA", str(tmp_path))
    path = tmp_path / cifar10.VERSIONS["lossless"].file
    path.parent.mkdir()
    good = arrays(3_200, 800)
    np.savez_compressed(path, **good)
    assert len(load_cifar10().train) == 3_200
    if damage == "other":
        path.write_bytes(b"no archive")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "lacks a part":
        np.savez_compressed(path, **{name: x for name, x in good.items() if name != "y_test"})
    elif damage == "fewer rows":
        np.savez_compressed(path, **arrays(3_200, 799))
    else:
        np.savez_compressed(path, **{**good, "y_test": np.array([None] * 800)})
    with pytest.raises(DataError, match=r"cifar10_first4000_lossless\.npz is damaged"):
        load_cifar10()
