"""Learned weights of parameter groups: which parts of a model to believe, without labels."""

from whence.weights.by_group import Contributions, contributions, contributions_with
from whence.weights.learning import learn_weights
from whence.weights.objective import self_supervised_loss
from whence.weights.solvers import SOLVERS

__all__ = [
    "SOLVERS",
    "Contributions",
    "contributions",
    "contributions_with",
    "learn_weights",
    "self_supervised_loss",
]
