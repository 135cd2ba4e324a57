"""Handwritten digits, 8 x 8 grey levels, bundled with scikit-learn."""

from __future__ import annotations

import numpy as np

from whence.data.split import Split
from whence.data.tables import classification_split, part_rows


def load_digits(*, test_fraction: float = 0.2, seed: int = 0) -> Split:
    """1,797 digits in 10 classes, `x` (n, 1, 8, 8) in [0, 1]; stratified split.

    Reference:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI), its test part.
    """
    from sklearn import datasets

    images, labels = datasets.load_digits(return_X_y=True)
    images = np.asarray(images, np.float64).reshape(-1, 1, 8, 8) / 16
    rows = part_rows(len(labels), test_fraction, seed, labels)
    return classification_split(
        "digits",
        (images[rows[0]], images[rows[1]]),
        (labels[rows[0]], labels[rows[1]]),
        rows,
        [str(k) for k in range(10)],
        f"bundled with scikit-learn; stratified split, test fraction {test_fraction}, seed {seed}",
    )
