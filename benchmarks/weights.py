"""Learned weights of parameter groups: solvers against each other, and scores with weights against retraining.

python -m benchmarks.weights --out benchmarks/results/weights.json

1. Objective and seconds of the closed form and of AdamW (norms from scores, as published, and from Gram matrices), on
   digits, diabetes, 8 synthetic problems and a large one; all solvers in one process, in turn, medians of 5.
2. Linear datamodeling scores on digits and diabetes of three methods with uniform, RMS and learned weights; paired
   differences, whatever their sign. Retraining is stored under `--work` and continued.
3. Synthetic regimes in which the objective is right, useless or wrong: correlation of scores with the true influence.
4. How often the 95 % interval of `lds` covers the value that infinitely many kept sets would give.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from whence import (
    Contributions,
    Inputs,
    Outcomes,
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
from whence.evaluation import pearson, spearman
from whence.rng import torch_generator
from whence.runs.machine import machine
from whence.studies.demo import DAMPING, DIABETES, DIGITS, NOISE, TEST_FRACTION, Asked, Plan, diabetes_net, digits_net
from whence.studies.weighing import Retraining
from whence.task import ParameterGroups
from whence.weights.objective import WeightProblem
from whence.weights.solvers import SOLVERS

K = 10
REPEATS = 5
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "closed_form": ("nnls", {}),
    "adamw_scores": ("adamw", {"norm_from": "scores"}),
    "adamw_gram": ("adamw", {"norm_from": "gram"}),
}
REGIMES = ("heavy-tailed influence", "Gaussian influence", "hub rows in 3 groups", "common noise")


# --- problems ---------------------------------------------------------------------------------------------------------


def synthetic(
    regime: str, seed: int, n_query: int = 40, n_train: int = 1000, n_groups: int = 24
) -> tuple[Tensor, Tensor]:
    """Contributions (n_query, n_train, n_groups) = gain x influence + noise, scaled; and the influence."""
    generator = torch_generator(seed, "synthetic", regime)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    influence = normal(n_query, n_train)
    if regime != "Gaussian influence":  # Student t with 3 degrees of freedom: a few examples matter
        influence = influence / (normal(3, n_query, n_train).square().mean(0)).sqrt()
    influence /= influence.std()
    gains, spread, scale = normal(n_groups).abs(), (0.5 + 2 * normal(n_groups).abs()), (1.5 * normal(n_groups)).exp()
    noise = normal(n_query, n_train, n_groups)
    if regime == "common noise":
        noise = noise + 3 * normal(n_query, n_train, 1)
    values = influence[..., None] * gains + noise * spread
    if regime == "hub rows in 3 groups":
        values[:, :5, :3] += 60 * spread[:3]
    return values * scale, influence


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


# --- 1. solvers -------------------------------------------------------------------------------------------------------


def compare_solvers(values: Tensor) -> dict[str, Any]:
    """Objective (lower is better) and seconds of each solver, Gram matrices included; one after the other, 5 times."""
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    losses = {}
    for _ in range(REPEATS):
        for name, (solver, options) in VARIANTS.items():
            started = time.perf_counter()
            problem = WeightProblem(values, K)
            weights = SOLVERS[solver](problem, **options).weights
            seconds[name].append(time.perf_counter() - started)
            losses[name] = problem.loss(weights)
    problem = WeightProblem(values, K)
    base = {name: problem.loss(SOLVERS[name](problem).weights) for name in ("uniform", "rms")}
    medians = {name: statistics.median(runs) for name, runs in seconds.items()}
    best = min(losses.values())
    return {
        "shape": list(values.shape),
        "loss": {**base, **losses},
        "gap_percent": {name: 100 * (loss - best) / abs(best) for name, loss in losses.items()},
        "seconds": medians,
        "seconds_all": seconds,
        "closed_form_faster": {name: medians[name] / medians["closed_form"] for name in ("adamw_scores", "adamw_gram")},
    }


# --- 2. retraining ----------------------------------------------------------------------------------------------------


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
        weights = learn_weights(found, solver, k=K, center=center)
        name = f"{method}, {label}"
        matrices[name] = whole(inputs, method, {**options, "weights": weights})
        learned[name] = {"weights": weights.by_name(), "facts": dict(weights.facts)}
        pairs.append((name, method))
    return [*pairs, (f"{method}, learned", f"{method}, rms")]


# --- 3. regimes -------------------------------------------------------------------------------------------------------


def regimes(n_seeds: int = 5) -> dict[str, dict[str, float]]:
    """Mean correlation of weighted scores with the true influence."""
    ways = {
        "uniform": ("uniform", {}),
        "rms": ("rms", {}),
        "closed form": ("nnls", {}),
        "closed form, uncentered": ("nnls", {"center": False}),
        "adamw": ("adamw", {}),
    }
    table: dict[str, dict[str, float]] = {}
    for regime in REGIMES:
        table[regime] = {}
        problems = [synthetic(regime, seed) for seed in range(n_seeds)]
        for name, (solver, options) in ways.items():
            found = [pearson(v @ learned_weights(v, solver, **options), u).mean() for v, u in problems]
            table[regime][name] = float(torch.stack(found).mean())
    return table


def learned_weights(values: Tensor, solver: str, **options: Any) -> Tensor:
    """Weights of synthetic contributions."""
    n_query, n_train, n_groups = values.shape
    names = tuple(f"g{j}" for j in range(n_groups))
    groups = ParameterGroups(names, tuple(range(n_groups)), (1,) * n_groups, names)
    found = Contributions(values, groups, range(n_query), range(n_train))
    return learn_weights(found, solver, k=K, **options).values


# --- 4. coverage ------------------------------------------------------------------------------------------------------


def coverage(n_repeats: int = 200, n_sets: int = 32, n_query: int = 40, n_train: int = 100) -> dict[str, Any]:
    """How often the interval of `lds` covers its limit, for scores of three qualities.

    Half of each set's noise is shared by all queries, as a lucky or unlucky run is.
    """
    result = {}
    for quality in (0.0, 0.5, 2.0):
        hits, widths = 0, []
        for repeat in range(n_repeats):
            low, high, limit = one_interval(repeat, quality, n_sets, n_query, n_train)
            hits += low <= limit <= high
            widths.append(high - low)
        result[f"signal {quality:g}"] = {"covered": hits / n_repeats, "mean_width": statistics.fmean(widths)}
    return {"repeats": n_repeats, "kept_sets": n_sets, "queries": n_query, **result}


def one_interval(seed: int, quality: float, n_sets: int, n_query: int, n_train: int) -> tuple[float, float, float]:
    """An interval from few kept sets, and the mean correlation over very many."""
    generator = torch_generator(seed, "coverage", quality)
    influence = torch.randn(n_query, n_train, generator=generator, dtype=torch.float64)
    scores = quality * influence + torch.randn(n_query, n_train, generator=generator, dtype=torch.float64)

    def outcome(count: int) -> tuple[Tensor, Tensor]:
        lacks = torch.rand(count, n_train, generator=generator).argsort(1)[:, : n_train // 2]
        mask = torch.zeros(count, n_train, dtype=torch.float64).scatter_(1, lacks, 1.0)
        own, shared = torch.randn(n_query, count, generator=generator), torch.randn(1, count, generator=generator)
        return mask, influence @ mask.T + 2.5 * (own + shared)

    mask, effects = outcome(n_sets)
    ids = tuple(tuple(row.nonzero().flatten().tolist()) for row in mask)
    outcomes = Outcomes(effects[None, None], torch.ones(1, n_query), 1e-7, (1,), "epochs", range(n_query), ids)
    matrix = ScoreMatrix(scores, range(n_query), range(n_train))
    row = lds(matrix, outcomes, n_bootstrap=300).table.iloc[0]
    many, truth = outcome(3000)
    return float(row["low"]), float(row["high"]), float(spearman(scores @ many.T, truth).mean())


def main() -> None:
    """Run everything, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/weights.json"))
    parser.add_argument("--work", type=Path, default=Path("runs/bench-weights"), help="stored retraining")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": machine(), "k": K, "solvers": {}, "retraining": {}}
    for name in ("digits", "diabetes"):
        result["retraining"][name], values = judge(name, arguments.work)
        result["solvers"][name] = compare_solvers(values)
    for seed in range(8):
        result["solvers"][f"synthetic {seed}"] = compare_solvers(synthetic("heavy-tailed influence", seed)[0])
    large, _ = synthetic("heavy-tailed influence", 0, n_train=10_000, n_groups=48)
    result["solvers"]["synthetic, large"] = compare_solvers(large)
    result["regimes"] = regimes()
    result["lds_coverage"] = coverage()
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(arguments.out)


if __name__ == "__main__":
    main()
