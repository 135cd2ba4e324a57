"""The MNIST layout of images: four gzipped idx files, 60,000 train and 10,000 test images of 28 x 28."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whence.checks import require_count
from whence.data.files import read_idx
from whence.data.split import Split
from whence.data.tables import Columns, Rows, classification_split
from whence.errors import InputError

N_TRAIN, N_TEST = 60_000, 10_000


def load_idx_images(
    name: str, class_names: Sequence[str], n_train: int | None, n_test: int | None, notes: str
) -> Split:
    """`x` float32 (n, 1, 28, 28) in [0, 1], `y` (n,); the first `n_train` and `n_test` rows, or all where None."""
    counts = (count_or_all("n_train", n_train, N_TRAIN), count_or_all("n_test", n_test, N_TEST))
    train = _read(name, "train", N_TRAIN, counts[0])
    test = _read(name, "t10k", N_TEST, counts[1])
    return classification_split(
        name,
        (train[0], test[0]),
        (train[1], test[1]),
        (np.arange(counts[0]), np.arange(counts[1])),
        class_names,
        f"{notes}; given split, the first {counts[0]} and {counts[1]} rows; pixels divided by 255",
    )


def count_or_all(option: str, asked: int | None, available: int) -> int:
    if asked is None:
        return available
    require_count(asked, option)
    if asked > available:
        raise InputError(f"`{option}` must be at most {available}; got {asked}.")
    return asked


def _read(name: str, part: str, available: int, count: int) -> tuple[Columns, Rows]:
    images = read_idx(f"{name}/{part}-images-idx3-ubyte.gz", (available, 28, 28))[:count]
    labels = read_idx(f"{name}/{part}-labels-idx1-ubyte.gz", (available,))[:count]
    return images[:, None] / np.float32(255), labels.astype(np.int64)
