"""Learned weights of parameter groups: which parts of a model to believe, without labels."""

from whence.weights.bands import band_contributions, banded_filter
from whence.weights.by_group import Contributions, contributions, contributions_with
from whence.weights.distilled import distill_weights
from whence.weights.learning import learn_weights
from whence.weights.mixed import mixed_with_uniform
from whence.weights.objective import self_supervised_loss
from whence.weights.relative import gradient_norms, norms_with, relative_to_norms
from whence.weights.robust import guarded, with_entropy_floor, without_hubs
from whence.weights.shards import GradientShards, gradient_shards
from whence.weights.solvers import SOLVERS
from whence.weights.stability import Likeness, Stability, likeness, stability
from whence.weights.stream import ContributionStream, stream_contributions
from whence.weights.supervised import fit_weights
from whence.weights.table import group_table

__all__ = [
    "SOLVERS",
    "ContributionStream",
    "Contributions",
    "GradientShards",
    "Likeness",
    "Stability",
    "band_contributions",
    "banded_filter",
    "contributions",
    "contributions_with",
    "distill_weights",
    "fit_weights",
    "gradient_norms",
    "gradient_shards",
    "group_table",
    "guarded",
    "learn_weights",
    "likeness",
    "mixed_with_uniform",
    "norms_with",
    "relative_to_norms",
    "self_supervised_loss",
    "stability",
    "stream_contributions",
    "with_entropy_floor",
    "without_hubs",
]
