"""Weighted scores beside what happened: linear datamodeling scores, differences, and what follows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.weights.fixed import GUARDED, PAIRS, RELATIVE
from benchmarks.weights.learned import Weighed
from whence import Outcomes, ScoreMatrix, lds
from whence.errors import InputError
from whence.evaluation import Lds
from whence.task import GroupWeights
from whence.weights import fit_weights, likeness

Limits = list[float]  # value, low, high
TRANSFERRED = RELATIVE
PUBLISHED = "published"  # beside the weightings: the published loss and solver
ELSEWHERE = "elsewhere"  # weights that were learned on other data
ROOM = "room"  # weights fitted to the outcomes that judge
RIDGE = 0.01  # of that fit


@dataclass(frozen=True, eq=False)
class Judge:
    """All weighted scores of a bench, judged on the same bootstrap draws.

    Attributes:
        methods: What was learned, in order.
        found: LDS by `label`.
    """

    methods: Sequence[Weighed]
    found: Lds

    @classmethod
    def of(cls, methods: Sequence[Weighed], outcomes: Outcomes) -> Judge:
        """Judge every weighting of every method, and the learned weights of every method with all others."""
        matrices: dict[str, ScoreMatrix] = {}
        for one in methods:
            for name, weights in {**one.weights, PUBLISHED: one.published}.items():
                matrices[label(one.method, name)] = one.parts.scores(weights)
            if one.elsewhere is not None:
                matrices[label(one.method, ELSEWHERE)] = one.parts.scores(one.elsewhere)
            fitted = fitted_to(outcomes, one)
            if fitted is not None:
                matrices[label(one.method, ROOM)] = one.parts.scores(fitted)
            for other in methods:
                if other is not one:
                    matrices[label(one.method, f"of {other.method}")] = one.parts.scores(other.weights[TRANSFERRED])
        return cls(methods, lds(matrices, outcomes))

    def lds(self) -> dict[str, dict[str, Limits]]:
        """{method: {weighting: limits}}."""
        values = self.found.to_dict()
        return {one.method: {name: values[label(one.method, name)] for name in one.weights} for one in self.methods}

    def differences(self) -> dict[str, dict[str, Limits]]:
        """{method: {"a - b": limits}}, paired."""
        return {
            one.method: {f"{a} - {b}": self.minus(one.method, a, b) for a, b in PAIRS if {a, b} <= one.weights.keys()}
            for one in self.methods
        }

    def minus(self, method: str, first: str, second: str) -> Limits:
        """One weighting of a method less another."""
        return self.found.difference(label(method, first), label(method, second))

    def guard(self) -> dict[str, dict[str, Any]]:
        """What the guard chose without seeing an outcome, and whether that was right."""
        return {one.method: self._guarded(one) for one in self.methods}

    def _guarded(self, one: Weighed) -> dict[str, Any]:
        facts = one.guarded.facts["guard"]
        values = self.lds()[one.method]
        chosen, losses = facts["chosen"], dict(facts["losses"])
        best = max(GUARDED, key=lambda name: values[name][0])
        gap = self.minus(one.method, chosen, "uniform")
        return {
            "chosen": chosen,
            "losses": losses,
            "lds": values[chosen],
            "minus_uniform": gap,
            "verdict": verdict(gap),
            "best": best,
            "best_minus_chosen": self.minus(one.method, best, chosen),
        }

    def overfits(self) -> dict[str, dict[str, Any]]:
        """The published loss and solver: loss where it was learned and on held-out queries, beside LDS."""
        return {one.method: self._published(one) for one in self.methods}

    def _published(self, one: Weighed) -> dict[str, Any]:
        loss, away = (one.published.facts[part]["loss"] for part in ("queries", "held_out"))
        gap = self.minus(one.method, PUBLISHED, "uniform")
        wrong = loss["weights"] < loss["uniform"] and verdict(gap) == "worse"
        return {
            "lds": self.found.to_dict()[label(one.method, PUBLISHED)],
            "minus_uniform": gap,
            "verdict": verdict(gap),
            "loss": loss,
            "held_out_loss": away,
            # The loss says that it is better than uniform, and retraining says that it is worse.
            "overfits": wrong,
            # Not for want of queries: queries that were not learned from say the same as those that were.
            "on_held_out_too": wrong and away["weights"] < away["uniform"],
        }

    def room(self) -> dict[str, dict[str, Any]]:
        """How much weights could gain: fitted to what judges them, which no method may be."""
        known = self.found.to_dict()
        named = {one.method: label(one.method, ROOM) for one in self.methods}
        return {
            method: {"lds": known[name], "minus_uniform": self.minus(method, ROOM, "uniform")}
            for method, name in named.items()
            if name in known
        }

    def transfer(self) -> dict[str, dict[str, Any]]:
        """Learned weights of one method with another: how alike its own are, and LDS with the foreign ones."""
        found = {}
        for source in self.methods:
            for target in self.methods:
                if source is not target:
                    found[f"{source.method} -> {target.method}"] = self._transferred(source, target)
        return found

    def elsewhere(self) -> dict[str, dict[str, Any]]:
        """Weights learned on other data, used here; nothing where the bench has no other data."""
        return {
            one.method: self._used(one.elsewhere, one, ELSEWHERE) for one in self.methods if one.elsewhere is not None
        }

    def _transferred(self, source: Weighed, target: Weighed) -> dict[str, Any]:
        return self._used(source.weights[TRANSFERRED], target, f"of {source.method}")

    def _used(self, weights: GroupWeights, target: Weighed, foreign: str) -> dict[str, Any]:
        alike = likeness(weights, target.weights[TRANSFERRED])
        return {
            "cosine": alike.cosine,
            "cosine_without_uniform": alike.centered,
            "spearman": alike.spearman,
            "lds": self.found.to_dict()[label(target.method, foreign)],
            "minus_uniform": self.minus(target.method, foreign, "uniform"),
            "minus_own": self.minus(target.method, foreign, TRANSFERRED),
        }


def fitted_to(outcomes: Outcomes, one: Weighed) -> GroupWeights | None:
    """Weights that predict the judging outcomes best, near to uniform ones where these say nothing; None where no group
    predicts them."""
    try:
        return fit_weights(one.parts, outcomes, ridge=RIDGE, towards=one.weights["uniform"])
    except InputError:
        return None


def label(method: str, weighting: str) -> str:
    """Name of a weighted score matrix."""
    return f"{method}, {weighting}"


def verdict(difference: Limits) -> str:
    """ "better" or "worse" where the interval of a difference leaves out zero; else "same"."""
    _, low, high = difference
    return "better" if low > 0 else "worse" if high < 0 else "same"


def per_group(methods: Sequence[Weighed], outcomes: Outcomes) -> dict[str, dict[str, Limits]]:
    """{method: {group: limits}}: LDS of each group's contributions alone; NaN where it contributes nothing."""
    found = {}
    for one in methods:
        groups = one.parts.groups
        alone = {name: one.parts.scores(GroupWeights.only(groups, name)) for name in groups.names}
        found[one.method] = lds(alone, outcomes).to_dict()
    return found
