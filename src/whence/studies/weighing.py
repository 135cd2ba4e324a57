"""Weights of parameter groups, learned on held-out queries and judged by retraining, with and without them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from whence.data import Examples, random_kept_sets
from whence.errors import InputError, WhenceWarning
from whence.evaluation import Lds, lds, reliability
from whence.gold import Initialize, retrain
from whence.methods import Inputs
from whence.progress import stage
from whence.scores import Outcomes, ScoreMatrix
from whence.task import GroupWeights
from whence.training import Recipe
from whence.weights import (
    Contributions,
    ContributionStream,
    Stability,
    contributions_with,
    distill_weights,
    gradient_norms,
    guarded,
    learn_weights,
    mixed_with_uniform,
    relative_to_norms,
    with_entropy_floor,
    without_hubs,
)

Limits = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Learning:
    """How weights of parameter groups are learned, and what is done for safety, in this order.

    By default as it did least harm where it was measured (`docs/weights.md`). The published way is `relative=False,
    unweighted_share=0, center=False, solver="adamw"`.

    Args:
        relative: Learn on contributions of train gradients of norm 1; see `relative_to_norms`. What the losses of train
            examples have in common is no signal of any group.
        without_hubs: Learn on contributions less their mean over the queries; see `without_hubs`.
        solver: A name in `SOLVERS`.
        k, center, normalise, two_sided, holdout: As in `learn_weights`.
        guard: Take uniform or RMS weights instead where these have the lower loss on the held-out learning queries.
        entropy_floor: Move the weights towards uniform ones until their entropy is this; 0 leaves them.
        unweighted_share: Of unweighted scores, that the weighted ones are mixed with; see `mixed_with_uniform`.
        folds: In how many parts the learning queries are left out in turn, to see how stable the weights are; below 2
            not at all.
        options: Of the solver.
    """

    relative: bool = True
    without_hubs: bool = False
    solver: str = "nnls"
    k: int = 10
    center: bool = True
    normalise: Literal["rms", "none"] = "rms"
    two_sided: bool = False
    holdout: float = 0.2
    guard: bool = False
    entropy_floor: float = 0.0
    unweighted_share: float = 0.5
    folds: int = 5
    options: Mapping[str, Any] = field(default_factory=dict)

    def weights(
        self,
        found: Contributions | ContributionStream,
        norms: Tensor | None = None,
        teacher: ScoreMatrix | None = None,
    ) -> dict[str, GroupWeights]:
        """RMS and learned weights, {"rms", "learned"}.

        Args:
            found: Contributions of the learning queries. Streamed ones have no folds.
            norms: (n_train,), of `gradient_norms`; needed for `relative`.
            teacher: Scores of another method for the learning queries, which are then followed (`distill_weights`) in
                the place of the objective and its solver.
        Returns:
            The facts of the learned ones tell what was done: `relative`, `guard`, `entropy_floor`, `unweighted_share`,
            and `stability` with the mean likeness of two folds and the range (low, high) of each weight over the folds.
        Raises:
            InputError: `relative` without norms; see also `learn_weights`, `without_hubs`, `guarded`,
                `with_entropy_floor` and `mixed_with_uniform`.
        Cost:
            That of the solver once for each fold and once more; see `learn_weights`.
        """
        seen, teacher, facts = self._seen(found, norms, teacher)
        own = self._own(seen, teacher, self.holdout)
        if self.guard:
            own = guarded([self._learned(seen, "uniform"), self._learned(seen, "rms"), own])
        if self.entropy_floor > 0:
            own = with_entropy_floor(own, self.entropy_floor)
            facts["entropy_floor"] = self.entropy_floor
        own = self._mixed(own, found)
        facts |= {"entropy": own.entropy, "max_over_min": own.ratio if math.isfinite(own.ratio) else None}
        if isinstance(seen, Contributions) and min(self.folds, len(seen.query_ids)) > 1:
            facts["stability"] = self._stability(seen, teacher, found)
        learned = replace(own, name="learned", facts={**own.facts, **facts})
        return {"rms": self._learned(found, "rms"), "learned": learned}

    def _seen(
        self, found: Contributions | ContributionStream, norms: Tensor | None, teacher: ScoreMatrix | None
    ) -> tuple[Contributions | ContributionStream, ScoreMatrix | None, dict[str, Any]]:
        """What is learned from, the teacher in the same units, and what was done."""
        seen, facts = found, dict[str, Any]()
        if self.relative:
            if norms is None:
                raise InputError(
                    "`relative` divides by norms of train gradients: pass `norms=gradient_norms(task, train)`."
                )
            seen, facts = relative_to_norms(seen, norms), {"relative": True}  # type: ignore[type-var]
            teacher = None if teacher is None else relative_to_norms(teacher, norms)
        if self.without_hubs:
            seen, facts = without_hubs(seen), {**facts, "without_hubs": True}  # type: ignore[type-var]
        return seen, teacher, facts

    def _mixed(self, weights: GroupWeights, found: Contributions | ContributionStream) -> GroupWeights:
        return mixed_with_uniform(weights, found, self.unweighted_share) if self.unweighted_share > 0 else weights

    def _own(
        self, seen: Contributions | ContributionStream, teacher: ScoreMatrix | None, holdout: float
    ) -> GroupWeights:
        if teacher is not None:
            return distill_weights(seen, teacher, holdout=holdout)
        return learn_weights(seen, self.solver, holdout=holdout, **self._objective, **self.options)

    def _learned(self, found: Contributions | ContributionStream, solver: str) -> GroupWeights:
        return learn_weights(found, solver, holdout=self.holdout, **self._objective)

    @property
    def _objective(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("k", "center", "normalise", "two_sided")}

    def _stability(
        self, seen: Contributions, teacher: ScoreMatrix | None, found: Contributions | ContributionStream
    ) -> Any:
        folds = min(self.folds, len(seen.query_ids))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WhenceWarning)  # said once, of the weights themselves
            parts = Stability.by(lambda part: self._own(part, teacher, 0.0), seen, folds=folds).folds
        spread = Stability.of([self._mixed(one, found) for one in parts])
        alike = {name: value for name, value in vars(spread.likeness).items() if math.isfinite(value)}
        return {"folds": folds, **alike, "low": spread.table["low"].tolist(), "high": spread.table["high"].tolist()}


def energy_shares(rms: GroupWeights) -> Tensor:
    """(n_groups,) float64: the share of each group in the summed squares of all contributions, from RMS weights."""
    energy = rms.values.square().reciprocal().masked_fill(rms.values == 0, 0.0)  # weight 0: nothing is contributed
    return energy / energy.sum()


@dataclass(frozen=True, eq=False)
class Weighing:
    """What was learned about the parameter groups of one method, and how the scores fare by retraining.

    Attributes:
        method: Whose groups are weighed.
        weights: "rms" and "learned".
        parts: Contributions of the queries that scores are judged by.
        scores: Linear datamodeling scores of all methods, and of "method, rms" and "method, learned".
        groups: Those of each group alone.
        ceiling: That of perfect scores, given the noise of the retraining.
        seconds: Contributions of the learning queries, and learning.
        n_learning: Learning queries.
    """

    method: str
    weights: Mapping[str, GroupWeights]
    parts: Contributions
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
    weights = Learning().weights(found, gradient_norms(inputs.task, inputs.train))
    seconds = time.perf_counter() - started
    outcomes = retraining.outcomes(inputs, store_dir)
    parts = contributions_with(inputs, method, groups=found.groups)
    with stage("linear datamodeling scores"):
        weighed = {f"{method}, {name}": parts.scores(own) for name, own in weights.items()}
        judged = lds({**scores, **weighed}, outcomes)
        alone = lds(_alone(parts), outcomes)
        trust = reliability(outcomes, "spearman").table.iloc[-1]
    ceiling = (float(trust["ceiling"]), float(trust["ceiling_low"]), float(trust["ceiling_high"]))
    return Weighing(method, weights, parts, judged, alone, ceiling, seconds, len(learning))


def _alone(parts: Contributions) -> dict[str, ScoreMatrix]:
    """The scores of each group alone."""
    return {group: parts.scores(GroupWeights.only(parts.groups, group)) for group in parts.groups.names}
