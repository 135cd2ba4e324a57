"""Weights of parameter groups, learned on held-out queries and judged by retraining, with and without them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from whence.data import Examples, random_kept_sets
from whence.evaluation import Lds, lds, reliability
from whence.gold import Initialize, retrain
from whence.methods import Inputs
from whence.progress import stage
from whence.scores import Outcomes, ScoreMatrix
from whence.task import GroupWeights
from whence.training import Recipe
from whence.weights import Contributions, contributions_with, learn_weights

Limits = tuple[float, float, float]  # value, low, high
WEIGHTINGS = {"rms": "rms", "learned": "nnls"}  # name -> solver


@dataclass(frozen=True, eq=False)
class Weighing:
    """What was learned about the parameter groups of one method, and how the scores fare by retraining.

    Attributes:
        method: Whose groups are weighed.
        weights: "rms" and "learned".
        scores: Linear datamodeling scores of all methods, and of "method, rms" and "method, learned".
        groups: Those of each group alone.
        ceiling: That of perfect scores, given the noise of the retraining.
        seconds: Contributions of the learning queries, and learning.
        n_learning: Learning queries.
    """

    method: str
    weights: Mapping[str, GroupWeights]
    scores: Lds
    groups: Lds
    ceiling: Limits
    seconds: float
    n_learning: int

    def of_weightings(self) -> dict[str, list[float]]:
        """{"uniform", "rms", "learned": [value, low, high]} of the weighed method."""
        found = self.scores.to_dict()
        return {"uniform": found[self.method], **{name: found[f"{self.method}, {name}"] for name in self.weights}}

    def differences(self) -> dict[str, list[float]]:
        """Paired differences [value, low, high] of the weightings of the weighed method."""
        label = {"uniform": self.method, **{name: f"{self.method}, {name}" for name in self.weights}}
        pairs = [("learned", "uniform"), ("learned", "rms"), ("rms", "uniform")]
        return {f"{a} - {b}": self.scores.difference(label[a], label[b]) for a, b in pairs}


@dataclass(frozen=True)
class Retraining:
    """How kept sets are drawn and trained on.

    Attributes:
        recipe: The original training.
        initialize: Seed -> state dict of a fresh model.
        kept_sets: Random halves of the train set.
        seeds: Trainings of each.
    """

    recipe: Recipe
    initialize: Initialize
    kept_sets: int = 32
    seeds: int = 2

    def outcomes(self, inputs: Inputs, store_dir: Path) -> Outcomes:
        """What happened to the queries; computed where it is not stored."""
        return retrain(
            inputs.task,
            inputs.train,
            inputs.queries,
            self.recipe,
            kept=random_kept_sets(inputs.n_train, self.kept_sets),
            seeds=self.seeds,
            initialize=self.initialize,
            store_dir=store_dir,
        ).outcomes()


def weigh(
    inputs: Inputs,
    learning: Examples,
    retraining: Retraining,
    scores: Mapping[str, ScoreMatrix],
    store_dir: Path,
    *,
    method: str = "grad_dot",
) -> Weighing:
    """Learn weights for `method`, and compare all scores with what retraining does.

    Args:
        inputs: Task, train set and the queries that scores are judged by.
        learning: Queries to learn from, held out from both.
        retraining: Kept sets and how they are trained on.
        scores: Unweighted scores by method, `method` among them.
        store_dir: Keeps finished trainings.
    Cost:
        kept_sets x seeds trainings; all else takes seconds on small models.
    """
    started = time.perf_counter()
    found = contributions_with(inputs.with_queries(learning), method)
    weights = {name: learn_weights(found, solver) for name, solver in WEIGHTINGS.items()}
    seconds = time.perf_counter() - started
    outcomes = retraining.outcomes(inputs, store_dir)
    parts = contributions_with(inputs, method, groups=found.groups)
    with stage("linear datamodeling scores"):
        weighed = {f"{method}, {name}": parts.scores(own) for name, own in weights.items()}
        judged = lds({**scores, **weighed}, outcomes)
        alone = lds(_alone(parts), outcomes)
        trust = reliability(outcomes, "spearman").table.iloc[-1]
    ceiling = (float(trust["ceiling"]), float(trust["ceiling_low"]), float(trust["ceiling_high"]))
    return Weighing(method, weights, judged, alone, ceiling, seconds, len(learning))


def _alone(parts: Contributions) -> dict[str, ScoreMatrix]:
    """The scores of each group alone."""
    return {group: parts.scores(GroupWeights.only(parts.groups, group)) for group in parts.groups.names}
