"""Learned weights of parameter groups: which parts of a model to believe, without labels."""

from whence.weights.by_group import Contributions, contributions, contributions_with
from whence.weights.learning import learn_weights
from whence.weights.objective import self_supervised_loss
from whence.weights.shards import GradientShards, gradient_shards
from whence.weights.solvers import SOLVERS
from whence.weights.stream import ContributionStream, stream_contributions

__all__ = [
    "SOLVERS",
    "ContributionStream",
    "Contributions",
    "GradientShards",
    "contributions",
    "contributions_with",
    "gradient_shards",
    "learn_weights",
    "self_supervised_loss",
    "stream_contributions",
]
