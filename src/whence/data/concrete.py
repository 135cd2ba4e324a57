"""UCI Concrete Compressive Strength, prepared as in the published experiments on further training."""

from __future__ import annotations

from whence.data.files import numbers, read_table
from whence.data.split import Split
from whence.data.tables import part_rows, regression_split

FILE = "concrete/concrete.csv"
FEATURES = (
    "cement",
    "blast_furnace_slag",
    "fly_ash",
    "water",
    "superplasticizer",
    "coarse_aggregate",
    "fine_aggregate",
    "age",
)


def load_concrete() -> Split:
    """927 train and 103 test mixtures, 8 features, target strength, all standardised on train.

    Reference:
        Yeh (1998); preparation of Wei et al. (2025), arXiv:2412.03906.
    """
    table = read_table(FILE, [*FEATURES, "strength"], n_rows=1030)
    return regression_split(
        "concrete",
        numbers(table, FEATURES, FILE),
        numbers(table, ["strength"], FILE),
        part_rows(len(table), test_fraction=0.1, seed=0),
        FEATURES,
        "UCI Concrete; train_test_split(test_size=0.1, random_state=0); target strength, standardised on train",
    )
