"""From float64 columns to a `Split`: parting, standardising, and only then float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from whence.data.examples import Examples
from whence.data.split import Split
from whence.errors import InputError

Columns = NDArray[np.float64]  # (n, n_columns)
Rows = NDArray[np.int64]  # (n,) row numbers, or labels


def part_rows(n: int, test_fraction: float, seed: int, labels: NDArray[np.int64] | None = None) -> tuple[Rows, Rows]:
    """Row numbers of the train and the test part, as scikit-learn's `train_test_split` draws them.

    Args:
        n: Number of rows.
        test_fraction: Share of the test part, rounded up to a row.
        seed: The `random_state`.
        labels: Keep their shares in both parts (stratified); None for a plain draw.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < test_fraction < 1:
        raise InputError(f"`test_fraction` must lie between 0 and 1; got {test_fraction!r}.")
    train, test = train_test_split(np.arange(n), test_size=test_fraction, random_state=seed, stratify=labels)
    return train, test


def standardize(train: Columns, test: Columns) -> tuple[Columns, Columns]:
    """Both parts with the mean and the (population) deviation of the train part; a constant column becomes 0."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    return scaler.transform(train), scaler.transform(test)


def regression_split(
    name: str,
    features: Columns,
    target: Columns,
    rows: tuple[Rows, Rows],
    feature_names: Sequence[str],
    notes: str,
) -> Split:
    """A regression `Split` of `features` (n, d) and `target` (n, 1), both standardised on the train rows."""
    x = standardize(features[rows[0]], features[rows[1]])
    y = standardize(target[rows[0]], target[rows[1]])

    def part(k: int, which: str) -> Examples:
        batch = (torch.from_numpy(x[k]).float(), torch.from_numpy(y[k]).float())
        return Examples(batch, ids=rows[k].tolist(), name=f"{name} {which}", feature_names=feature_names)

    return Split(part(0, "train"), part(1, "test"), "regression", None, name, notes)


def classification_split(
    name: str,
    features: tuple[Columns, Columns],
    labels: tuple[Rows, Rows],
    rows: tuple[Rows, Rows],
    class_names: Sequence[str],
    notes: str,
    feature_names: Sequence[str] | None = None,
) -> Split:
    """A classification `Split` of train and test `features` (n, ...), taken as they are, and `labels` (n,)."""

    def part(k: int, which: str) -> Examples:
        batch = (torch.from_numpy(features[k]).float(), torch.from_numpy(labels[k]).long())
        return Examples(
            batch,
            ids=rows[k].tolist(),
            name=f"{name} {which}",
            feature_names=feature_names,
            class_names=class_names,
        )

    return Split(part(0, "train"), part(1, "test"), "classification", len(class_names), name, notes)
