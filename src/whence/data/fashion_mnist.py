"""Fashion-MNIST articles of clothing."""

from __future__ import annotations

from whence.data.images import load_idx_images
from whence.data.split import Split

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def load_fashion_mnist(*, n_train: int | None = None, n_test: int | None = None) -> Split:
    """60,000 train and 10,000 test articles, `x` (n, 1, 28, 28) in [0, 1]; `n_train`, `n_test` take the first rows.

    Reference:
        Xiao, Rasul and Vollgraf (2017), arXiv:1708.07747.
    """
    return load_idx_images("fashion_mnist", CLASSES, n_train, n_test, "Fashion-MNIST")
