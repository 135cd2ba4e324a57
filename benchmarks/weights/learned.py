"""Weights of one base method, by every weighting."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.weights.benches import DEFAULTS, Trained
from benchmarks.weights.fixed import DISTILLED, FEW_SHOT, FIXED, GUARDED, LABEL_FREE, PUBLISHED, RELATIVE, TEACHER
from benchmarks.weights.solvers import objective_of
from whence import Contributions, Outcomes, ScoreMatrix, attribute_with, contributions_with, learn_weights
from whence.errors import InputError, WhenceWarning
from whence.task import GroupWeights
from whence.weights import distill_weights, fit_weights, guarded, mixed_with_uniform, norms_with, relative_to_norms


@dataclass(frozen=True, eq=False)
class Weighed:
    """What was learned for one method.

    Attributes:
        method: Base method.
        parts: Contributions to the scores of the queries that judge.
        weights: Weighting -> weights; one that could not be made is not here but in `refused`.
        published: By the published loss and solver.
        guarded: What the guard chose.
        seconds: Of each weighting, and of the contributions of the learning queries.
        objective: Closed form against AdamW.
        refused: Weighting -> why there are no weights.
        elsewhere: Relative weights learned on the bench's other problem; None where it has none.
    """

    method: str
    parts: Contributions
    weights: dict[str, GroupWeights]
    published: GroupWeights
    guarded: GroupWeights
    seconds: dict[str, float]
    objective: dict[str, Any]
    refused: dict[str, str]
    elsewhere: GroupWeights | None


def weigh(
    trained: Trained,
    elsewhere: Trained | None,
    method: str,
    teacher: ScoreMatrix,
    few_shot: Outcomes,
    repeats: int,
) -> Weighed:
    """Contributions of both kinds of queries, and weights by every weighting.

    Args:
        trained: Final model, train set, queries.
        elsewhere: Those of the other problem.
        method: A method of the bench.
        teacher: Scores of `TEACHER` for the learning queries; not used for that method itself.
        few_shot: Outcomes of the learning queries, on kept sets that judge nothing.
        repeats: Of solvers that are timed.
    """
    clock: dict[str, float] = {}
    started = time.perf_counter()
    found, options = learned_from(trained, method)
    clock["contributions"] = time.perf_counter() - started
    weights, refused = {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WhenceWarning)  # the notes are kept with the facts of the weights
        for name, solver in LABEL_FREE.items():
            weights[name] = learn_weights(found, solver, **FIXED.options())
            clock[name] = float(weights[name].facts["seconds"])
        started = time.perf_counter()
        norms = norms_with(trained.inputs, options)
        of_norms = time.perf_counter() - started
        started = time.perf_counter()
        weights[RELATIVE] = relative(found, norms)
        clock[RELATIVE] = of_norms + time.perf_counter() - started
        if method != TEACHER:
            started = time.perf_counter()
            weights[DISTILLED] = distilled(found, norms, teacher)
            clock[DISTILLED] = of_norms + time.perf_counter() - started
        solver, others = PUBLISHED
        published = learn_weights(found, solver, **{**FIXED.options(), **others})
        away = None if elsewhere is None else relative_elsewhere(elsewhere, method)
    started = time.perf_counter()
    try:
        near = [weights[name] for name in (RELATIVE, DISTILLED) if name in weights]
        weights[FEW_SHOT] = fit_weights(found, few_shot, towards=near)
        clock[FEW_SHOT] = time.perf_counter() - started
    except InputError as error:
        refused[FEW_SHOT] = str(error)
    return Weighed(
        method=method,
        parts=contributions_with(trained.inputs, method, groups=found.groups, **options),
        weights=weights,
        published=published,
        guarded=guarded([weights[name] for name in GUARDED]),
        seconds={name: round(seconds, 4) for name, seconds in clock.items()},
        objective=objective_of(found.values, repeats),
        refused=refused,
        elsewhere=away,
    )


def learned_from(trained: Trained, method: str) -> tuple[Contributions, dict[str, Any]]:
    """Contributions to the scores of the learning queries, and the options of the method."""
    options = trained.bench.methods[method](trained)
    return contributions_with(trained.inputs.with_queries(trained.learning), method, **options), options


def relative(found: Contributions, norms: Tensor) -> GroupWeights:
    """Learned on contributions of train gradients of norm 1, then mixed with uniform weights."""
    weights = learn_weights(relative_to_norms(found, norms), "nnls", **FIXED.options())
    return mixed_with_uniform(weights, found, FIXED.unweighted_share)


def relative_elsewhere(elsewhere: Trained, method: str) -> GroupWeights:
    """`relative` weights of the other problem."""
    found, options = learned_from(elsewhere, method)
    return relative(found, norms_with(elsewhere.inputs, options))


def distilled(found: Contributions, norms: Tensor, teacher: ScoreMatrix) -> GroupWeights:
    """As `relative`, with a teacher's scores as the signal; both by the norms of the method that is weighed."""
    weights = distill_weights(relative_to_norms(found, norms), relative_to_norms(teacher, norms), holdout=FIXED.holdout)
    return mixed_with_uniform(weights, found, FIXED.unweighted_share)


def teacher_of(trained: Trained) -> ScoreMatrix:
    """Scores of the teacher for the learning queries, with the options of the bench where it has the method."""
    options = trained.bench.methods.get(TEACHER, DEFAULTS)(trained)
    found = attribute_with(trained.inputs.with_queries(trained.learning), TEACHER, **options)
    assert isinstance(found, ScoreMatrix)
    return found
