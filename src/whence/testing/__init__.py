"""Problems with known answers, for tests of this package and of what is built on it."""

from whence.testing.problems import (
    PROBLEMS,
    LinearRegression,
    SmallProblem,
    classifier,
    linear_regression,
    mlp_regression,
)

__all__ = ["PROBLEMS", "LinearRegression", "SmallProblem", "classifier", "linear_regression", "mlp_regression"]
