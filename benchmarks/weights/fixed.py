"""Settings of the weightings: fixed, the same for every bench and method.

They were tuned on the digits and on synthetic regimes (`regimes`) only. What a bench may choose is its model, its data,
its recipe and its base methods; how many seeds are trained is decided by a pilot, which sees no scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from whence.weights.quotient import Normalise


@dataclass(frozen=True)
class Fixed:
    """How weights are learned.

    Attributes:
        k: Train examples per query that count as signal.
        center: Scores are measured from their mean over the train set.
        normalise: What groups are learned in units of.
        holdout: Share of the learning queries by which the guard decides.
        unweighted_share: Of unweighted scores, in units of their spread, that the relative weights are mixed with.
        share: Of the train set, that a kept set keeps.
    """

    k: int = 10
    center: bool = True
    normalise: Normalise = "rms"
    holdout: float = 0.2
    unweighted_share: float = 0.5
    share: float = 0.5

    def options(self) -> dict[str, Any]:
        """For `learn_weights`."""
        return {"k": self.k, "center": self.center, "normalise": self.normalise, "holdout": self.holdout}


FIXED = Fixed()
LABEL_FREE = {"uniform": "uniform", "rms": "rms", "learned": "nnls", "cross_fitted": "cross_fitted"}  # name -> solver
# The closed form on contributions relative to gradient norms, half mixed with uniform: what all train examples' losses
# have in common is no signal of any group, and what is learned counts for half.
RELATIVE = "relative"
# The same with the scores of EK-FAC as the signal, in the place of the k highest of the method's own.
DISTILLED = "distilled"
TEACHER = "ekfac"
FEW_SHOT = "few_shot"  # with little data it stays near relative or distilled weights, whichever predict the sets better
WEIGHTINGS = (*LABEL_FREE, RELATIVE, DISTILLED, FEW_SHOT)
PUBLISHED = ("adamw", {"center": False})  # solver, and what differs from `Fixed`
GUARDED = ("uniform", "rms", "learned", "cross_fitted")  # the safe choices first: they win ties
PAIRS = (
    ("rms", "uniform"),
    ("learned", "uniform"),
    ("cross_fitted", "uniform"),
    (RELATIVE, "uniform"),
    (DISTILLED, "uniform"),
    (FEW_SHOT, "uniform"),
    ("learned", "rms"),
    (RELATIVE, "rms"),
    (DISTILLED, "rms"),
    (DISTILLED, RELATIVE),
    ("cross_fitted", "learned"),
    (FEW_SHOT, "rms"),
    (FEW_SHOT, "learned"),
    (FEW_SHOT, RELATIVE),
    (FEW_SHOT, DISTILLED),
)


@dataclass(frozen=True)
class Size:
    """How much is trained and asked.

    Attributes:
        evaluation_queries: Judge the scores.
        learning_queries: Weights are learned from these.
        evaluation_sets: Kept sets that judge the scores.
        few_shot_sets: Other kept sets, whose outcomes the few-shot weights are fitted to.
        pilot_sets: Of the evaluation sets, those that decide the number of seeds.
        pilot_seeds: Of the pilot; at least 2.
        most_seeds: Cap.
        wanted: Noise ceiling that the seeds must reach.
        repeats: Of solvers that are timed.
        n_train: At most so many train examples; None for those of the bench.
        epochs: In the place of the recipe's; None for these.
    """

    evaluation_queries: int = 100
    learning_queries: int = 100
    evaluation_sets: int = 64
    few_shot_sets: int = 12
    pilot_sets: int = 16
    pilot_seeds: int = 4
    most_seeds: int = 16
    wanted: float = 0.7
    repeats: int = 5
    n_train: int | None = None
    epochs: int | None = None


SIZES = {
    "full": Size(),
    # For tests: every step of a bench, nothing to be read from its figures.
    "tiny": Size(
        evaluation_queries=6,
        learning_queries=10,
        evaluation_sets=8,
        few_shot_sets=5,
        pilot_sets=4,
        pilot_seeds=2,
        most_seeds=3,
        repeats=1,
        n_train=60,
        epochs=2,
    ),
}
