"""CIFAR-10 photographs: 4,000 with their true pixels, or 12,000 that were once saved as JPEG."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from whence.checks import look_up
from whence.data.files import damaged, data_file
from whence.data.images import count_or_all
from whence.data.split import Split
from whence.data.tables import Columns, Rows, classification_split

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Channels = tuple[float, float, float]  # red, green, blue


@dataclass(frozen=True)
class _Version:
    """One file, and the mean and (population) deviation of each channel of its train part, pixels in [0, 1]."""

    file: str
    n_train: int
    n_test: int
    mean: Channels
    deviation: Channels
    notes: str


VERSIONS = {
    "lossless": _Version(
        "cifar10/cifar10_first4000_lossless.npz",
        3_200,
        800,
        (0.4911, 0.4816, 0.4450),
        (0.2459, 0.2427, 0.2611),
        "CIFAR-10, rows 0-3199 and 3200-3999 of the original train part, true pixels",
    ),
    "jpeg": _Version(
        "cifar10/cifar10_subset_jpeg.npz",
        10_000,
        2_000,
        (0.4934, 0.4831, 0.4470),
        (0.2460, 0.2441, 0.2616),
        "CIFAR-10, subset degraded by JPEG (the first 1,000 train and 200 test rows of each class): not to be compared "
        "with published numbers",
    ),
}


def load_cifar10(
    *, version: Literal["lossless", "jpeg"] = "lossless", n_train: int | None = None, n_test: int | None = None
) -> Split:
    """Photographs in 10 classes, `x` (n, 3, 32, 32), each channel standardised by constants of the whole train part.

    Args:
        version: "lossless": 3,200 train and 800 test rows, both from the original train part. "jpeg": 10,000 and
            2,000, balanced, but degraded: their mean absolute error is about 6 of 255.
        n_train, n_test: The first rows of a part; all where None.
    Raises:
        UnknownNameError: No such version.
        DataError: `WHENCE_DATA` is unset, or the file is missing or damaged.
    Reference:
        Krizhevsky (2009), Learning multiple layers of features from tiny images.
    """
    found = look_up(VERSIONS, version, "version of CIFAR-10")
    counts = (count_or_all("n_train", n_train, found.n_train), count_or_all("n_test", n_test, found.n_test))
    train, test = _read(found, "train", counts[0]), _read(found, "test", counts[1])
    return classification_split(
        "cifar10",
        (train.x, test.x),
        (train.y, test.y),
        (train.rows, test.rows),
        CLASSES,
        f"{found.notes}; the first {counts[0]} and {counts[1]} rows; channels standardised on the whole train part",
    )


@dataclass(frozen=True, eq=False)
class _Part:
    x: Columns  # (n, 3, 32, 32)
    y: Rows
    rows: Rows  # in the original order of CIFAR-10


def _read(version: _Version, part: Literal["train", "test"], count: int) -> _Part:
    available = version.n_train if part == "train" else version.n_test
    path = data_file(version.file)
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y, rows = (file[f"{name}_{part}"] for name in ("x", "y", "idx"))
    except (OSError, EOFError, KeyError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise damaged(version.file, error) from error
    if x.shape != (available, 32, 32, 3) or y.shape != (available,) or rows.shape != (available,):
        raise damaged(version.file, f"its {part} part must have {available} rows; found arrays {x.shape}, {y.shape}")
    scaled = (x[:count] / 255 - np.array(version.mean)) / np.array(version.deviation)
    return _Part(scaled.transpose(0, 3, 1, 2), y[:count].astype(np.int64), rows[:count].astype(np.int64))
