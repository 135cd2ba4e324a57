"""UCI Default of Credit Card Clients: 23 features and a binary target."""

from __future__ import annotations

import numpy as np

from whence.data.files import numbers, read_table
from whence.data.split import Split
from whence.data.tables import classification_split, part_rows, standardize

FILE = "credit_default/credit_default.csv.gz"
PAYMENTS = ("0", "2", "3", "4", "5", "6")  # months of the repayment status; the source has no pay_1
FEATURES = (
    "limit_bal",
    "sex",
    "education",
    "marriage",
    "age",
    *(f"pay_{month}" for month in PAYMENTS),
    *(f"bill_amt{month}" for month in range(1, 7)),
    *(f"pay_amt{month}" for month in range(1, 7)),
)


def load_credit_default() -> Split:
    """27,000 train and 3,000 test clients; all 23 features standardised on train, codes of categories as well.

    Reference:
        Yeh and Lien (2009).
    """
    table = read_table(FILE, ["id", *FEATURES, "default"], n_rows=30_000)
    features = numbers(table, FEATURES, FILE)
    labels = numbers(table, ["default"], FILE)[:, 0].astype(np.int64)
    rows = part_rows(len(table), test_fraction=0.1, seed=0)
    return classification_split(
        "credit_default",
        standardize(features[rows[0]], features[rows[1]]),
        (labels[rows[0]], labels[rows[1]]),
        rows,
        ("pays", "defaults"),
        "UCI Default of Credit Card Clients; train_test_split(test_size=0.1, random_state=0); standardised on train",
        feature_names=FEATURES,
    )
