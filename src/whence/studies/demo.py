"""The demo: two small models on embedded real data, from training to scores to the check against further training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from whence.studies.spacing import evenly
from whence.studies.weighing import Retraining, Weighing, weigh
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
        n_learning: From how many others weights of parameter groups are learned, at most.
        kept_sets: On how many random halves of the train set the network is trained anew.
        kept_seeds: How often on each.
    """

    title: str
    original: Recipe
    further: Recipe
    points: tuple[int, ...]
    left_out: int
    seeds: int
    n_queries: int
    n_learning: int
    kept_sets: int = 32
    kept_seeds: int = 2


DIGITS = Plan(
    title="Handwritten digits, 5 % of the labels planted wrong",
    original=Recipe(lr=0.05, momentum=0.9, batch_size=64, epochs=12),
    further=Recipe(lr=0.01, batch_size=64, epochs=4),
    points=(1, 2, 4),
    left_out=40,
    seeds=3,
    n_queries=40,
    n_learning=100,
)
DIABETES = Plan(
    title="Diabetes progression",
    original=Recipe(lr=0.05, batch_size=64, epochs=30),
    further=Recipe(lr=0.01, batch_size=64, epochs=50),
    points=(1, 5, 20, 50),
    left_out=80,
    seeds=5,
    n_queries=40,
    n_learning=48,
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
        weighing: Weights of parameter groups, and linear datamodeling scores.
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
    weighing: Weighing
    summary: dict[str, Any]
    suspicion: Tensor | None = None
    clean: Tensor | None = None


def run_demo(out: str | Path) -> dict[str, Part]:
    """Train, score, run a pilot gold standard and compare, learn weights and train anew, on `digits` and on `diabetes`.

    All training is kept under `out`, so that a second demo in the same folder is a matter of seconds.

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
    part = _study(plan, Asked.of(task, noisy.examples, split.test, plan), digits_net, out, "digits")
    suspicion = self_influence(task, noisy.examples)
    weighted = self_influence(task, noisy.examples, weights=part.weighing.weights["learned"])
    losses = task.loss(outputs_of(task, noisy.examples, dtype=torch.float64), noisy.examples.all())
    part.summary["accuracy"] = accuracy(task, split.test)
    part.summary["mislabel_auc"] = {
        "self_influence": _interval(mislabel_auc(suspicion, noisy.flipped)),
        "self_influence_learned": _interval(mislabel_auc(weighted, noisy.flipped)),
        "loss": _interval(mislabel_auc(losses.detach(), noisy.flipped)),
    }
    return replace(part, suspicion=suspicion, clean=noisy.clean)


def diabetes_part(out: Path, *, plan: Plan = DIABETES) -> Part:
    """The small MLP on a regression table."""
    split = load("diabetes")
    with stage("diabetes: training"):
        task = _trained(Task.regression(diabetes_net()), split.train, plan)
    part = _study(plan, Asked.of(task, split.train, split.test, plan), diabetes_net, out, "diabetes")
    x, y = split.test.all()
    with torch.no_grad():
        part.summary["explained_variance"] = float(1 - (task.model(x) - y).var() / y.var())
    return part


def _trained(task: Task, examples: Examples, plan: Plan) -> Task:
    with limited_threads(1):  # nets this small are slower on two
        return train(task, examples, plan.original)


@dataclass(frozen=True, eq=False)
class Asked:
    """A trained network, what it is asked about, and the queries that weights are learned from."""

    inputs: Inputs
    learning: Examples

    @classmethod
    def of(cls, task: Task, train_set: Examples, test: Examples, plan: Plan) -> Asked:
        """Queries evenly spaced through the test set, chosen without looking; those to learn from among the others."""
        chosen = evenly(len(test), plan.n_queries)
        others = [k for k in range(len(test)) if k not in set(chosen)]
        learning = [others[k] for k in evenly(len(others), plan.n_learning)]
        return cls(Inputs(task, train_set, test.subset(chosen)), test.subset(learning))


def accuracy(task: Task, examples: Examples) -> float:
    """Share of examples whose largest logit is the label's."""
    labels = examples.all()[1]
    return float((outputs_of(task, examples).argmax(1) == labels).double().mean())


def _study(plan: Plan, asked: Asked, network: Callable[[int], nn.Module], out: Path, name: str) -> Part:
    inputs = asked.inputs
    model = fingerprint(inputs.task.model)[:12]  # further training of another model has another folder
    gold = further_train(
        inputs.task,
        inputs.train,
        inputs.queries,
        plan.further,
        left_out=plan.left_out,
        seeds=plan.seeds,
        points=plan.points,
        store_dir=out / f"gold-{name}-{model}",
    )
    outcomes = gold.outcomes("mean")
    scores = _all_scores(plan, inputs)
    found = _agreements(scores, outcomes)
    trust = reliability(outcomes, METRIC, n_bootstrap=200)
    retraining = Retraining(plan.original, lambda seed: network(seed).state_dict(), plan.kept_sets, plan.kept_seeds)
    at_end = {method: one if isinstance(one, ScoreMatrix) else one[plan.points[-1]] for method, one in scores.items()}
    weighing = weigh(inputs, asked.learning, retraining, at_end, out / f"retraining-{name}")
    summary = _summary(plan, gold, found, trust.table["reliability"].tolist(), trust.ceiling())
    return Part(
        plan=plan,
        train=inputs.train,
        queries=inputs.queries,
        scores=at_end[SHOWN],
        agreement=found,
        ceiling=trust.ceiling(),
        weighing=weighing,
        summary={**summary, **_weighing_summary(weighing)},
    )


def _weighing_summary(weighing: Weighing) -> dict[str, Any]:
    return {
        "lds": weighing.of_weightings(),
        "lds_of_methods": weighing.scores.to_dict(),
        "lds_differences": weighing.differences(),
        "lds_ceiling": weighing.ceiling[0],
        "lds_ceiling_interval": list(weighing.ceiling[1:]),
        "kept_sets": weighing.scores.n_sets,
        "kept_seeds": weighing.scores.n_seeds,
        "learning_queries": weighing.n_learning,
        "weights": {name: own.by_name() for name, own in weighing.weights.items()},
        "weights_seconds": weighing.seconds,
    }


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
