"""What scores are judged by: trainings on kept sets, as many seeds as a pilot says are needed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.weights.benches import Bench
from benchmarks.weights.fixed import FIXED, Size
from whence import Examples, Outcomes, reliability, retrain
from whence.data import random_kept_sets
from whence.errors import InputError
from whence.evaluation import spearman_brown
from whence.gold import Retrained
from whence.storage import fingerprint
from whence.task import fingerprint as model_fingerprint
from whence.training import EngineName

Kept = Sequence[tuple[int, ...]]
Limits = list[float]  # value, low, high
FIRST_SEED = 1  # seed 0 is the final model's: none of the trainings shares its start or its order


@dataclass(frozen=True)
class Plan:
    """Which sets are kept.

    Attributes:
        evaluation: These judge; the first of them are the pilot's.
        few_shot: Others, whose outcomes weights are fitted to.
    """

    evaluation: Kept
    few_shot: Kept

    @classmethod
    def draw(cls, n_train: int, size: Size) -> Plan:
        """Random sets of one size.

        Raises:
            InputError: Two of them are alike, so that weights could be fitted to what judges them.
        """
        sets = random_kept_sets(n_train, size.evaluation_sets + size.few_shot_sets, share=FIXED.share)
        if len(set(sets)) < len(sets):
            raise InputError(f"Among {len(sets)} halves of {n_train} train examples two are alike. Use more examples.")
        return cls(sets[: size.evaluation_sets], sets[size.evaluation_sets :])


@dataclass(frozen=True, eq=False)
class Truth:
    """What happened.

    Attributes:
        evaluation: To the queries that judge, on the evaluation sets.
        few_shot: To the learning queries, on the few-shot sets.
        ceiling: Expected LDS of perfect scores: value, low, high.
        seeds: How their number was chosen.
        facts: Trainings, engine, seconds of this run (those read from the store take none).
    """

    evaluation: Outcomes
    few_shot: Outcomes
    ceiling: Limits
    seeds: dict[str, Any]
    facts: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Trainer:
    """Trains on kept sets and keeps what is finished.

    Attributes:
        bench: Network and recipe.
        train: The train set.
        judging: Queries that judge.
        learning: Queries to learn from; their measures are recorded in the same runs.
        engine: Of the trainings.
        work: Folder.
    """

    bench: Bench
    train: Examples
    judging: Examples
    learning: Examples
    engine: EngineName
    work: Path

    def run(self, what: str, kept: Kept, seeds: Sequence[int], queries: Examples) -> Retrained:
        """Measures of the queries after training on each set from each seed."""
        task = self.bench.untrained()
        settings = {
            "model": model_fingerprint(task.model),
            "train": self.train.fingerprint,
            "queries": queries.fingerprint,
            "recipe": asdict(self.bench.recipe),
            "kept": [list(s) for s in kept],
            "seeds": list(seeds),
        }
        return retrain(
            task,
            self.train,
            queries,
            self.bench.recipe,
            kept=kept,
            seeds=seeds,
            initialize=self.bench.initialize,
            engine=self.engine,
            store_dir=self.work / f"{self.bench.name}-{what}-{fingerprint(settings)[:12]}",
        )


def truth_of(trainer: Trainer, plan: Plan, size: Size) -> Truth:
    """Pilot, number of seeds, everything else, and more seeds where the ceiling is still too low."""
    started = time.perf_counter()
    first, rest = plan.evaluation[: size.pilot_sets], plan.evaluation[size.pilot_sets :]
    pilot = trainer.run("pilot", first, seeds_from(0, size.pilot_seeds), trainer.judging)
    seeds = choose_seeds(pilot.outcomes(), size)
    n = seeds["chosen"]
    parts = [pilot]
    if n > size.pilot_seeds:
        parts.append(trainer.run("pilot-more", first, seeds_from(size.pilot_seeds, n), trainer.judging))
    pieces = [first_seeds(parts, n)]
    if rest:
        pieces.append(trainer.run("evaluation", rest, seeds_from(0, n), trainer.judging))
    few_shot = trainer.run("few-shot", plan.few_shot, seeds_from(0, n), trainer.learning)
    evaluation, few_shot, rounds = with_enough_seeds(trainer, plan, size, joined(pieces), few_shot)
    found, most = evaluation.outcomes(), len(evaluation.seeds)
    ceiling = ceiling_of(found)
    reached = ceiling[0] >= size.wanted
    note = "" if reached else f"{most} seeds, the cap, reach a ceiling of {ceiling[0]:.2f}"
    trainings = most * (len(plan.evaluation) + len(plan.few_shot)) + max(0, size.pilot_seeds - n) * len(first)
    return Truth(
        found,
        few_shot.outcomes(),
        ceiling,
        {**seeds, "chosen": most, "rounds": rounds, "reached": reached, "note": note},
        {
            "trainings": trainings,
            "execution": few_shot.execution.to_dict(),
            "seconds_of_this_run": round(time.perf_counter() - started, 2),
        },
    )


def with_enough_seeds(
    trainer: Trainer, plan: Plan, size: Size, evaluation: Retrained, few_shot: Retrained
) -> tuple[Retrained, Retrained, list[dict[str, Any]]]:
    """More seeds of all sets until the ceiling is reached or their number is the cap: pilots are often too hopeful.

    Returns:
        Trainings on the evaluation sets and on the few-shot sets; seeds and ceiling after each round.
    """
    rounds: list[dict[str, Any]] = []
    while True:
        n, ceiling = len(evaluation.seeds), ceiling_of(evaluation.outcomes())
        rounds.append({"seeds": n, "ceiling": ceiling})
        m = seeds_for(ceiling[0], n, size)
        if m == n:
            return evaluation, few_shot, rounds
        more = seeds_from(n, m)
        evaluation = first_seeds([evaluation, trainer.run("more", plan.evaluation, more, trainer.judging)], m)
        few_shot = first_seeds([few_shot, trainer.run("few-shot-more", plan.few_shot, more, trainer.learning)], m)


def seeds_for(ceiling: float, n: int, size: Size) -> int:
    """The number of seeds that should reach the ceiling that is wanted, from that of `n` seeds; n where it is enough.

    Never above the cap. A ceiling of zero or NaN says nothing: then twice as many.
    """
    if ceiling >= size.wanted or n >= size.most_seeds:
        return n
    if not ceiling > 0:
        return min(2 * n, size.most_seeds)
    whole = torch.tensor(ceiling**2, dtype=torch.float64)
    enough = (m for m in range(n + 1, size.most_seeds) if float(spearman_brown(whole, m / n)) >= size.wanted**2)
    return next(enough, size.most_seeds)


def seeds_from(first: int, stop: int) -> list[int]:
    """The seeds at positions first .. stop - 1."""
    return [FIRST_SEED + k for k in range(first, stop)]


def choose_seeds(pilot: Outcomes, size: Size) -> dict[str, Any]:
    """The smallest number of seeds whose predicted noise ceiling is high enough, two at least; the cap where none is.

    The correlation of two halves of the pilot's seeds is stepped up by Spearman-Brown.
    """
    row = reliability(pilot, "spearman").table.iloc[-1]
    half, of = torch.tensor(float(row["half"]), dtype=torch.float64), size.pilot_seeds // 2
    predicted = {m: math.sqrt(max(float(spearman_brown(half, m / of)), 0.0)) for m in range(2, size.most_seeds + 1)}
    chosen = next((m for m, ceiling in predicted.items() if ceiling >= size.wanted), size.most_seeds)
    reached = predicted[chosen] >= size.wanted
    return {
        "chosen": chosen,
        "pilot_ceiling": limits_of(row),
        "pilot_half": float(half),
        "predicted": predicted[chosen],
        "predicted_by_seeds": {str(m): ceiling for m, ceiling in predicted.items()},
        "wanted": size.wanted,
        "cap": size.most_seeds,
        "reached": reached,
        "note": "" if reached else f"the cap of {size.most_seeds} seeds is predicted to stay below {size.wanted}",
    }


def ceiling_of(outcomes: Outcomes) -> Limits:
    """Expected LDS of perfect scores, with its interval."""
    return limits_of(reliability(outcomes, "spearman").table.iloc[-1])


def limits_of(row: Any) -> Limits:
    """The columns of a ceiling."""
    return [float(row[column]) for column in ("ceiling", "ceiling_low", "ceiling_high")]


def first_seeds(parts: Sequence[Retrained], n: int) -> Retrained:
    """Trainings of the same sets from different seeds as one, the first `n` seeds of them."""
    measures = torch.cat([part.measures for part in parts])[:n]
    return replace(parts[0], measures=measures, seeds=tuple(s for part in parts for s in part.seeds)[:n])


def joined(parts: Sequence[Retrained]) -> Retrained:
    """Trainings of different sets from the same seeds as one."""
    measures = torch.cat([part.measures for part in parts], 2)
    return replace(parts[0], measures=measures, kept=torch.cat([part.kept for part in parts]))
