"""MNIST handwritten digits."""

from __future__ import annotations

from whence.data.images import load_idx_images
from whence.data.split import Split


def load_mnist(*, n_train: int | None = None, n_test: int | None = None) -> Split:
    """60,000 train and 10,000 test digits, `x` (n, 1, 28, 28) in [0, 1]; `n_train`, `n_test` take the first rows.

    Reference:
        LeCun, Bottou, Bengio and Haffner (1998).
    """
    return load_idx_images("mnist", [str(k) for k in range(10)], n_train, n_test, "MNIST")
