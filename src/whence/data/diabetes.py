"""Diabetes progression, bundled with scikit-learn."""

from __future__ import annotations

import numpy as np

from whence.data.split import Split
from whence.data.tables import part_rows, regression_split


def load_diabetes(*, test_fraction: float = 0.2, seed: int = 0) -> Split:
    """442 patients, 10 features; features and target standardised on the train part.

    Reference:
        Efron, Hastie, Johnstone and Tibshirani (2004), Least Angle Regression.
    """
    from sklearn import datasets

    bundle = datasets.load_diabetes(scaled=False)
    features, target = np.asarray(bundle.data, np.float64), np.asarray(bundle.target, np.float64)
    return regression_split(
        "diabetes",
        features,
        target[:, None],
        part_rows(len(target), test_fraction, seed),
        list(bundle.feature_names),
        f"bundled with scikit-learn; test fraction {test_fraction}, seed {seed}",
    )
