"""Solvers, the demo's two problems by retraining, synthetic regimes, and intervals: what `weights.json` holds.

1. Objective and seconds of the closed form and of AdamW (norms from scores, as published, and from Gram matrices), on
   digits, diabetes, 8 synthetic problems and a large one; all solvers in one process, in turn, medians of 5.
2. Linear datamodeling scores on digits and diabetes of three methods with uniform, RMS and learned weights; paired
   differences, whatever their sign. Retraining is stored and continued.
3. Synthetic regimes in which the objective is right, useless or wrong: correlation of scores with the true influence.
4. How often the 95 % interval of `lds` covers the value that infinitely many kept sets would give.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.weights.coverage import coverage
from benchmarks.weights.fixed import FIXED
from benchmarks.weights.regimes import regimes, synthetic
from benchmarks.weights.solvers import compare_solvers
from whence import (
    Contributions,
    Inputs,
    ScoreMatrix,
    Task,
    attribute_with,
    contributions_with,
    lds,
    learn_weights,
    load,
    plant_label_noise,
    reliability,
    train,
)
from whence.runs.machine import machine
from whence.studies.demo import DAMPING, DIABETES, DIGITS, NOISE, TEST_FRACTION, Asked, Plan, diabetes_net, digits_net
from whence.studies.weighing import Retraining


def overview(work: Path) -> dict[str, Any]:
    """All four parts; retraining is kept under `work`."""
    result: dict[str, Any] = {"machine": machine(), "k": FIXED.k, "solvers": {}, "retraining": {}}
    for name in ("digits", "diabetes"):
        result["retraining"][name], values = judge(name, work)
        result["solvers"][name] = compare_solvers(values)
    for seed in range(8):
        result["solvers"][f"synthetic {seed}"] = compare_solvers(synthetic("heavy-tailed influence", seed)[0])
    large, _ = synthetic("heavy-tailed influence", 0, n_train=10_000, n_groups=48)
    result["solvers"]["synthetic, large"] = compare_solvers(large)
    result["regimes"] = regimes()
    result["lds_coverage"] = coverage()
    return result


def real(name: str) -> tuple[Asked, Retraining, Plan]:
    """The demo's digits or diabetes, with more kept sets and seeds."""
    if name == "digits":
        split = load("digits", test_fraction=TEST_FRACTION)
        examples = plant_label_noise(split.train, fraction=NOISE, n_classes=10, seed=0).examples
        task, plan, network = Task.classification(digits_net()), DIGITS, digits_net
    else:
        split = load("diabetes")
        examples, task, plan, network = split.train, Task.regression(diabetes_net()), DIABETES, diabetes_net
    final = train(task, examples, plan.original)
    retraining = Retraining(plan.original, lambda seed: network(seed).state_dict(), kept_sets=64, seeds=3)
    return Asked.of(final, examples, split.test, plan), retraining, plan


def judge(name: str, work: Path) -> tuple[dict[str, Any], Tensor]:
    """Linear datamodeling scores with and without weights; and the learning contributions of grad_dot."""
    asked, retraining, plan = real(name)
    outcomes = retraining.outcomes(asked.inputs, work / f"retraining-{name}")
    matrices: dict[str, ScoreMatrix] = {}
    pairs: list[tuple[str, str]] = []
    learned: dict[str, Any] = {}
    first: Tensor | None = None
    for method, options in methods_of(plan).items():
        matrices[method] = whole(asked.inputs, method, options)
        found = contributions_with(asked.inputs.with_queries(asked.learning), method, **options)
        first = found.values if first is None else first
        pairs += weigh(asked.inputs, found, method, options, matrices, learned)
    trust = reliability(outcomes, "spearman").table.iloc[-1]
    judged = lds(matrices, outcomes)
    assert first is not None
    return {
        "kept_sets": judged.n_sets,
        "seeds": judged.n_seeds,
        "queries": len(outcomes.query_ids),
        "learning_queries": len(asked.learning),
        "lds": judged.to_dict(),
        "differences": {f"{a} - {b}": judged.difference(a, b) for a, b in pairs},
        "ceiling": [float(trust[c]) for c in ("ceiling", "ceiling_low", "ceiling_high")],
        "weights": learned,
    }, first


def methods_of(plan: Plan) -> dict[str, dict[str, Any]]:
    """Methods of three kinds, as in the demo."""
    return {
        "grad_dot": {},
        "influence_gn": {"damping": DAMPING},
        "horizon": {"recipe": plan.further, "at": plan.points[-1]},
    }


def whole(inputs: Inputs, method: str, options: dict[str, Any]) -> ScoreMatrix:
    """Unweighted scores."""
    found = attribute_with(inputs, method, **options)
    assert isinstance(found, ScoreMatrix)
    return found


def weigh(
    inputs: Inputs,
    found: Contributions,
    method: str,
    options: dict[str, Any],
    matrices: dict[str, ScoreMatrix],
    learned: dict[str, Any],
) -> list[tuple[str, str]]:
    """Add weighted scores and weights of one method; the pairs to compare."""
    pairs = []
    ways: dict[str, tuple[str, bool]] = {
        "rms": ("rms", True),
        "learned": ("nnls", True),
        "learned uncentered": ("nnls", False),
        "learned adamw": ("adamw", True),
    }
    for label, (solver, center) in ways.items():
        weights = learn_weights(found, solver, k=FIXED.k, center=center)
        name = f"{method}, {label}"
        matrices[name] = whole(inputs, method, {**options, "weights": weights})
        learned[name] = {"weights": weights.by_name(), "facts": dict(weights.facts)}
        pairs.append((name, method))
    return [*pairs, (f"{method}, learned", f"{method}, rms")]
