"""UCI Energy Efficiency, prepared as in the published experiments on further training."""

from __future__ import annotations

from whence.data.files import numbers, read_table
from whence.data.split import Split
from whence.data.tables import part_rows, regression_split

FILE = "energy/energy.csv"
FEATURES = ("X1", "X2", "X3", "X4", "X5", "X6", "X7", "X8")
FEATURE_NAMES = (
    "relative compactness",
    "surface area",
    "wall area",
    "roof area",
    "overall height",
    "orientation",
    "glazing area",
    "glazing area distribution",
)


def load_energy() -> Split:
    """691 train and 77 test buildings, 8 features, target Y1 (heating load; Y2 is dropped), all standardised on train.

    Reference:
        Tsanas and Xifara (2012); preparation of Wei et al. (2025), arXiv:2412.03906.
    """
    table = read_table(FILE, [*FEATURES, "Y1", "Y2"], n_rows=768)
    return regression_split(
        "energy",
        numbers(table, FEATURES, FILE),
        numbers(table, ["Y1"], FILE),
        part_rows(len(table), test_fraction=0.1, seed=0),
        FEATURE_NAMES,
        "UCI Energy Efficiency; train_test_split(test_size=0.1, random_state=0); target Y1, standardised on train",
    )
