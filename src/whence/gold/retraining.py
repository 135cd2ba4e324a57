"""Training from an initialisation on kept parts of the data: what a linear datamodeling score is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from whence.data import Examples, LeftOutSets
from whence.errors import InputError
from whence.gold.facts import parameter_eps, seed_list, sweep_facts
from whence.gold.further import check_problem
from whence.gold.initialisation import Initialize
from whence.gold.sweep import Sweep, run_sweep
from whence.scores import Outcomes
from whence.task import Task, fingerprint
from whence.training import EngineName, Execution, PointUnit, Problem, Recipe, training_twin


@final
@dataclass(frozen=True, eq=False)
class Retrained:
    """Measures of all queries after training on each kept set.

    Attributes:
        measures: float64 (n_seeds, n_points, n_sets, n_query).
        kept: bool (n_sets, n_train), True for the examples a run used.
        points: Amounts of training, in `point_unit`.
        point_unit: "epochs" or "steps".
        seeds: Seeds of order, dropout and initialisation.
        train_ids: Ids of the columns of `kept`.
        query_ids: Ids of the queries.
        orientation: +1 where a lower measure is better.
        eps: Machine epsilon of the parameters.
        execution: Engine and chunks it was computed with.
    """

    measures: Tensor
    kept: Tensor
    points: tuple[int, ...]
    point_unit: PointUnit
    seeds: tuple[int, ...]
    train_ids: tuple[int | str, ...]
    query_ids: tuple[int | str, ...]
    orientation: int
    eps: float
    execution: Execution

    def outcomes(self) -> Outcomes:
        """What leaving out did, as the gold standard tells it: each run lacks what its kept set lacks.

        The mean over the kept sets is subtracted. Effects are positive where a run did worse than that, so that the
        summed scores of what it lacks should be high: with sets of one size that is the usual linear datamodeling
        score, summed scores of what it kept against how well it did.

        Returns:
            Effects (n_seeds, n_points, n_query, n_sets).
        Raises:
            InputError: A run kept everything: it left nothing out whose scores could be summed.
        """
        if bool(self.kept.all(1).any()):
            at = int(self.kept.all(1).nonzero()[0])
            raise InputError(
                f"Kept set {at} is the whole train set of {self.kept.shape[1]}: it leaves nothing out, so scores "
                "predict nothing about it. Retrain on sets that lack something, for instance `random_kept_sets`."
            )
        measures = self.measures.transpose(2, 3)
        return Outcomes(
            effects=self.orientation * (measures - measures.mean(-1, keepdim=True)),
            level=measures.abs().mean((0, 3)),
            eps=self.eps,
            points=self.points,
            point_unit=self.point_unit,
            query_ids=self.query_ids,
            left_out=tuple(tuple(self.train_ids[i] for i in (~row).nonzero().flatten().tolist()) for row in self.kept),
        )


def retrain(
    task: Task,
    train: Examples,
    queries: Examples,
    recipe: Recipe,
    *,
    kept: Sequence[Sequence[int]],
    seeds: int | Sequence[int] = 1,
    initialize: Initialize | None = None,
    points: Sequence[int] | None = None,
    engine: EngineName = "auto",
    store_dir: str | Path | None = None,
    rebuild: bool = False,
) -> Retrained:
    """Train from scratch on each kept set, for every seed, with the engines of the gold standard.

    Args:
        task: Contract and architecture; without `initialize`, its parameters are the initialisation.
        train: All train examples.
        queries: Whose measures are recorded.
        recipe: The original recipe. Epochs mean passes over all data: a run on half of it takes half the steps.
        kept: Train positions each run uses, distinct.
        seeds: A count or the seeds.
        initialize: seed -> state dict of the initial model of that seed.
        points: Amounts of training at which measures are recorded; default the end.
        engine: As in `further_train`.
        store_dir: Folder that keeps finished chunks.
        rebuild: Recompute damaged chunks.
    Raises:
        InputError: A kept set is empty or repeats a position, or something does not fit; before any training.
    Cost:
        n_seeds * n_sets trainings.
    """
    at = recipe.check_points([recipe.amount] if points is None else points)
    seed_values = seed_list(seeds)
    mask = kept_mask(kept, len(train))
    check_problem(task, train, queries, recipe)
    problems: dict[int, Problem] = {}

    def problem_of(seed: int) -> Problem:
        key = seed if initialize is not None else -1
        if key not in problems:
            twin = training_twin(task, recipe.dropout)
            if initialize is not None:
                twin.model.load_state_dict(initialize(seed))
            problems[key] = Problem(twin, train, queries, recipe)
        return problems[key]

    lacks = tuple(tuple((~row).nonzero().flatten().tolist()) for row in mask)
    distinct = tuple(dict.fromkeys(lacks))
    starts = None if initialize is None else [fingerprint(problem_of(s).task.model) for s in seed_values]
    facts = sweep_facts("retraining", task, train, queries, recipe, seed_values, at)
    sweep = Sweep(
        problem_of=problem_of,
        seeds=seed_values,
        sets=distinct,
        record_steps=tuple(recipe.steps_at(p, len(train)) for p in at),
        settings={**facts, "lacks": [list(s) for s in distinct], "initialisation": starts},
        header={"query_ids": list(queries.ids), "train_ids": list(train.ids)},
        description="retraining",
    )
    result = run_sweep(sweep, engine=engine, store_dir=store_dir, rebuild=rebuild)
    columns = torch.tensor([distinct.index(s) for s in lacks])
    return Retrained(
        measures=result.measures[:, :, columns],
        kept=mask,
        points=at,
        point_unit=recipe.unit,
        seeds=seed_values,
        train_ids=train.ids,
        query_ids=queries.ids,
        orientation=task.measure.orientation,
        eps=parameter_eps(task),
        execution=result.execution,
    )


def kept_mask(kept: Sequence[Sequence[int]], n_train: int) -> Tensor:
    """bool (n_sets, n_train) from positions.

    Raises:
        InputError: There is no set, or one is empty, repeats a position or goes out of range.
    """
    if not kept:
        raise InputError("`kept` holds no set: name the train positions of at least one run.")
    sets = LeftOutSets.groups([list(s) for s in kept])
    if bool((sets.sizes == 0).any()):
        raise InputError("A kept set is empty: a run needs at least one example to train on.")
    mask = torch.zeros(len(sets), n_train, dtype=torch.bool)
    for row, positions in zip(mask, sets, strict=True):
        chosen = torch.tensor(positions)
        if int(chosen.min()) < 0 or int(chosen.max()) >= n_train or len(set(positions)) < len(positions):
            raise InputError(f"Kept positions must be distinct and in 0 .. {n_train - 1}; got {positions[:5]} ...")
        row[chosen] = True
    return mask
