"""The demo: two small models on embedded real data, from training to scores to the check against further training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.algebra import Damping
from whence.data import Examples, load, plant_label_noise
from whence.evaluation import Agreement, MislabelAuc, agreement, mislabel_auc, reliability
from whence.gold import Gold, further_train
from whence.gradients import outputs_of
from whence.methods import Inputs, attribute_with, self_influence
from whence.progress import stage
from whence.scores import Outcomes, ScoreMatrix
from whence.task import Task, fingerprint
from whence.training import Recipe, limited_threads, train

TEST_FRACTION = 0.4  # of the digits; the rest, 1,078 pictures, is trained on
NOISE = 0.05  # share of digits that get a wrong label
METRIC = "pearson"
# One mean eigenvalue, which is what the published damping comes to on UCI Energy.
DAMPING = Damping.relative(1.0)
FIRST_ORDER: dict[str, dict[str, Any]] = {
    "grad_dot": {},
    "grad_cos": {},
    "influence_gn": {"damping": DAMPING},
    "embedding_cosine": {},
    "random": {},
}
BY_AMOUNT = ("horizon", "horizon_ahead")
SHOWN = "horizon_ahead"

Interval = list[float]  # value, low, high


@dataclass(frozen=True)
class Plan:
    """One part of the demo: how its model is trained, trained further, and asked.

    Attributes:
        title: Heading of its part of the report.
        original: From the initialisation to the final model.
        further: What the gold standard runs.
        points: Where it is measured.
        left_out: How many train examples are left out, one at a time.
        seeds: Gold seeds.
        n_queries: How many test examples are asked about.
    """

    title: str
    original: Recipe
    further: Recipe
    points: tuple[int, ...]
    left_out: int
    seeds: int
    n_queries: int


DIGITS = Plan(
    title="Handwritten digits, 5 % of the labels planted wrong",
    original=Recipe(lr=0.05, momentum=0.9, batch_size=64, epochs=12),
    further=Recipe(lr=0.01, batch_size=64, epochs=4),
    points=(1, 2, 4),
    left_out=40,
    seeds=3,
    n_queries=40,
)
DIABETES = Plan(
    title="Diabetes progression",
    original=Recipe(lr=0.05, batch_size=64, epochs=30),
    further=Recipe(lr=0.01, batch_size=64, epochs=50),
    points=(1, 5, 20, 50),
    left_out=80,
    seeds=5,
    n_queries=40,
)


@dataclass(frozen=True, eq=False)
class Part:
    """What one part of the demo found.

    Attributes:
        plan: How it was run.
        train: Train examples as the model saw them.
        queries: What was asked about.
        scores: Of the method that is shown, at the last point.
        agreement: method -> point -> (value, low, high).
        ceiling: point -> what a perfect score could reach, given the noise of the gold standard.
        summary: The part of summary.json.
        suspicion: Self-influence of each train example, where labels were planted wrong.
        clean: The labels before that.
    """

    plan: Plan
    train: Examples
    queries: Examples
    scores: ScoreMatrix
    agreement: Mapping[str, Mapping[int, tuple[float, float, float]]]
    ceiling: Mapping[int, float]
    summary: dict[str, Any]
    suspicion: Tensor | None = None
    clean: Tensor | None = None


def run_demo(out: str | Path) -> dict[str, Part]:
    """Train, score, run a pilot gold standard and compare, on `digits` and on `diabetes`.

    Further training is kept under `out`, so that a second demo in the same folder is a matter of seconds.

    Cost:
        About a minute on two cores.
    """
    return {"digits": digits_part(Path(out)), "diabetes": diabetes_part(Path(out))}


def digits_net(seed: int = 0) -> nn.Sequential:
    """Two convolutions and a linear layer; 6,586 parameters, for (b, 1, 8, 8) pictures."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 10),
    ).eval()


def diabetes_net(seed: int = 0) -> nn.Sequential:
    """A multi-layer perceptron; 1,441 parameters, for 10 features."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1)).eval()


def digits_part(out: Path, *, plan: Plan = DIGITS, noise_seed: int = 0) -> Part:
    """The small CNN on noisy digits."""
    split = load("digits", test_fraction=TEST_FRACTION)
    noisy = plant_label_noise(split.train, fraction=NOISE, n_classes=10, seed=noise_seed)
    with stage("digits: training"):
        task = _trained(Task.classification(digits_net()), noisy.examples, plan)
    queries = evenly(split.test, plan.n_queries)
    part = _study(plan, task, noisy.examples, queries, out / "gold-digits")
    suspicion = self_influence(task, noisy.examples)
    losses = task.loss(outputs_of(task, noisy.examples, dtype=torch.float64), noisy.examples.all())
    part.summary["accuracy"] = accuracy(task, split.test)
    part.summary["mislabel_auc"] = {
        "self_influence": _interval(mislabel_auc(suspicion, noisy.flipped)),
        "loss": _interval(mislabel_auc(losses.detach(), noisy.flipped)),
    }
    return replace(part, suspicion=suspicion, clean=noisy.clean)


def diabetes_part(out: Path, *, plan: Plan = DIABETES) -> Part:
    """The small MLP on a regression table."""
    split = load("diabetes")
    with stage("diabetes: training"):
        task = _trained(Task.regression(diabetes_net()), split.train, plan)
    part = _study(plan, task, split.train, evenly(split.test, plan.n_queries), out / "gold-diabetes")
    x, y = split.test.all()
    with torch.no_grad():
        part.summary["explained_variance"] = float(1 - (task.model(x) - y).var() / y.var())
    return part


def _trained(task: Task, examples: Examples, plan: Plan) -> Task:
    with limited_threads(1):  # nets this small are slower on two
        return train(task, examples, plan.original)


def evenly(examples: Examples, n: int) -> Examples:
    """`n` examples, evenly spaced: chosen without looking at them."""
    return examples.subset([k * len(examples) // n for k in range(min(n, len(examples)))])


def accuracy(task: Task, examples: Examples) -> float:
    """Share of examples whose largest logit is the label's."""
    labels = examples.all()[1]
    return float((outputs_of(task, examples).argmax(1) == labels).double().mean())


def _study(plan: Plan, task: Task, train_set: Examples, queries: Examples, store: Path) -> Part:
    gold = further_train(
        task,
        train_set,
        queries,
        plan.further,
        left_out=plan.left_out,
        seeds=plan.seeds,
        points=plan.points,
        store_dir=store.with_name(f"{store.name}-{fingerprint(task.model)[:12]}"),
    )
    outcomes = gold.outcomes("mean")
    scores = _all_scores(plan, Inputs(task, train_set, queries))
    found = _agreements(scores, outcomes)
    trust = reliability(outcomes, METRIC, n_bootstrap=200)
    shown = scores[SHOWN]
    assert isinstance(shown, dict)
    return Part(
        plan=plan,
        train=train_set,
        queries=queries,
        scores=shown[plan.points[-1]],
        agreement=found,
        ceiling=trust.ceiling(),
        summary=_summary(plan, gold, found, trust.table["reliability"].tolist(), trust.ceiling()),
    )


def _all_scores(plan: Plan, inputs: Inputs) -> dict[str, ScoreMatrix | dict[int, ScoreMatrix]]:
    scores: dict[str, ScoreMatrix | dict[int, ScoreMatrix]] = {}
    with stage("scoring", total=len(FIRST_ORDER) + len(BY_AMOUNT), unit="method") as done:
        for name, options in FIRST_ORDER.items():
            scores[name] = attribute_with(inputs, name, **options)
            done.advance()
        for name in BY_AMOUNT:
            scores[name] = attribute_with(inputs, name, recipe=plan.further, at=plan.points)
            done.advance()
    return scores


def _agreements(
    scores: Mapping[str, ScoreMatrix | dict[int, ScoreMatrix]], outcomes: Outcomes
) -> dict[str, dict[int, tuple[float, float, float]]]:
    with stage("agreement"):
        parts = [agreement(values, outcomes, metrics=(METRIC,), n_bootstrap=500) for values in scores.values()]
    found = Agreement.concat(parts).to_dict(METRIC)
    return {name: {p: (value, low, high) for p, (value, low, high) in at.items()} for name, at in found.items()}


def _summary(
    plan: Plan,
    gold: Gold,
    found: Mapping[str, Mapping[int, tuple[float, float, float]]],
    trust: list[float],
    ceiling: Mapping[int, float],
) -> dict[str, Any]:
    return {
        "agreement": {m: {str(p): list(v) for p, v in points.items()} for m, points in found.items()},
        "agreement_metric": METRIC,
        "point_unit": gold.point_unit,
        "reliability": dict(zip(map(str, plan.points), trust, strict=True)),
        "ceiling": {str(p): c for p, c in ceiling.items()},
        "left_out": len(gold.left_out),
        "seeds": len(gold.seeds),
        "queries": len(gold.query_ids),
        "engine": gold.execution.to_dict(),
    }


def _interval(found: MislabelAuc) -> Interval:
    return [found.value, found.low, found.high]
