"""Picture tasks of the benchmarks."""

from __future__ import annotations

import torch

from benchmarks.networks import ResNet9
from whence import Task, load
from whence.data import Split


def resnet9_task(n_train: int, seed: int, *, n_test: int = 1000, width: int = 16) -> tuple[Task, Split]:
    """An untrained ResNet-9 from initialisation `seed`, and the first rows of Fashion-MNIST."""
    split = load("fashion_mnist", n_train=n_train, n_test=n_test)
    torch.manual_seed(seed)
    return Task.classification(ResNet9(1, 10, width).eval()), split
