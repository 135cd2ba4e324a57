"""UCI Adult: income above 50,000 dollars or not, from census columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whence.data.files import damaged, numbers, read_table
from whence.data.split import Split
from whence.data.tables import classification_split, standardize

if TYPE_CHECKING:
    import pandas as pd

TRAIN_FILE, TEST_FILE = "adult/train.csv.gz", "adult/test.csv.gz"
COLUMNS = (
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education_num",
    "marital_status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital_gain",
    "capital_loss",
    "hours_per_week",
    "native_country",
    "income",
)
NUMERIC = ("age", "education_num", "capital_gain", "capital_loss", "hours_per_week")
CATEGORICAL = ("workclass", "marital_status", "occupation", "relationship", "race", "sex", "native_country")
CLASSES = ("<=50K", ">50K")


def load_adult() -> Split:
    """32,561 train and 16,281 test persons (the given split), 91 features.

    `fnlwgt` (a sampling weight) and `education` (the same as `education_num`) are dropped. The five numeric columns
    are standardised on train. The seven categorical columns are one-hot, 0 or 1, with `?` (missing) as a level of
    its own; the levels are those of the train part in alphabetical order, and one that occurs only in the test part
    becomes all zeros.

    Reference:
        Kohavi (1996), Scaling up the accuracy of naive-Bayes classifiers.
    """
    train = read_table(TRAIN_FILE, COLUMNS, n_rows=32_561)
    test = read_table(TEST_FILE, COLUMNS, n_rows=16_281)
    numeric = standardize(numbers(train, NUMERIC, TRAIN_FILE), numbers(test, NUMERIC, TEST_FILE))
    levels = {column: sorted(set(train[column])) for column in CATEGORICAL}
    return classification_split(
        "adult",
        (np.hstack([numeric[0], _one_hot(train, levels)]), np.hstack([numeric[1], _one_hot(test, levels)])),
        (_labels(train, TRAIN_FILE), _labels(test, TEST_FILE)),
        (np.arange(len(train)), np.arange(len(test))),
        CLASSES,
        "UCI Adult; given split; fnlwgt and education dropped; numeric columns standardised on train, the rest one-hot",
        feature_names=[*NUMERIC, *(f"{column}={level}" for column in CATEGORICAL for level in levels[column])],
    )


def _one_hot(table: pd.DataFrame, levels: dict[str, list[str]]) -> NDArray[np.float64]:
    """0/1 columns (n, total number of levels), column by column."""
    blocks = [
        np.asarray(table[column], dtype=str)[:, None] == np.asarray(names, dtype=str)
        for column, names in levels.items()
    ]
    return np.hstack(blocks).astype(np.float64)


def _labels(table: pd.DataFrame, file: str) -> NDArray[np.int64]:
    unknown = sorted(set(table["income"]) - set(CLASSES))
    if unknown:
        raise damaged(file, f"column income must be one of {CLASSES}; found {unknown[:3]}")
    return np.asarray(table["income"] == CLASSES[1], dtype=np.int64)
