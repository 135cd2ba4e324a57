"""Data: examples with ids, left-out sets, planted label noise, and loaders of real data sets."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from whence.checks import look_up, unknown_name
from whence.data.adult import load_adult
from whence.data.breast_cancer import load_breast_cancer
from whence.data.cifar10 import load_cifar10
from whence.data.concrete import load_concrete
from whence.data.credit_default import load_credit_default
from whence.data.diabetes import load_diabetes
from whence.data.digits import load_digits
from whence.data.energy import load_energy
from whence.data.examples import Examples
from whence.data.fashion_mnist import load_fashion_mnist
from whence.data.kept import random_kept_sets
from whence.data.label_noise import NoisyLabels, plant_label_noise
from whence.data.left_out import LeftOutSets
from whence.data.mnist import load_mnist
from whence.data.split import Split
from whence.data.sst2 import load_sst2
from whence.data.wikitext2 import load_wikitext2

__all__ = [
    "LOADERS",
    "Examples",
    "LeftOutSets",
    "NoisyLabels",
    "Split",
    "load",
    "plant_label_noise",
    "random_kept_sets",
]

LOADERS: dict[str, Callable[..., Split]] = {
    "adult": load_adult,
    "breast_cancer": load_breast_cancer,
    "cifar10": load_cifar10,
    "concrete": load_concrete,
    "credit_default": load_credit_default,
    "diabetes": load_diabetes,
    "digits": load_digits,
    "energy": load_energy,
    "fashion_mnist": load_fashion_mnist,
    "mnist": load_mnist,
    "sst2": load_sst2,
    "wikitext2": load_wikitext2,
}


def load(name: str, **options: Any) -> Split:
    """The data set called `name`.

    digits, diabetes and breast_cancer are bundled; the others are read from the folder in `WHENCE_DATA`.

    Raises:
        UnknownNameError: No such data set, or it has no such option; the nearest is named.
        DataError: `WHENCE_DATA` is unset, or a file is missing or damaged.
    """
    loader = look_up(LOADERS, name, "data set")
    known = inspect.signature(loader).parameters
    for option in options:
        if option not in known:
            raise unknown_name(f"option of data set {name!r}", option, known)
    return loader(**options)
