"""Breast cancer diagnosis, bundled with scikit-learn."""

from __future__ import annotations

import numpy as np

from whence.data.split import Split
from whence.data.tables import classification_split, part_rows, standardize


def load_breast_cancer(*, test_fraction: float = 0.2, seed: int = 0) -> Split:
    """569 tumours, 30 features standardised on the train part, malignant (0) or benign (1); stratified split.

    Reference:
        Wolberg, Mangasarian, Street and Street, Breast Cancer Wisconsin (Diagnostic) (UCI).
    """
    from sklearn import datasets

    bundle = datasets.load_breast_cancer()
    features, labels = np.asarray(bundle.data, np.float64), np.asarray(bundle.target, np.int64)
    rows = part_rows(len(labels), test_fraction, seed, labels)
    return classification_split(
        "breast_cancer",
        standardize(features[rows[0]], features[rows[1]]),
        (labels[rows[0]], labels[rows[1]]),
        rows,
        [str(name) for name in bundle.target_names],
        f"bundled with scikit-learn; stratified split, test fraction {test_fraction}, seed {seed}",
        feature_names=[str(name) for name in bundle.feature_names],
    )
