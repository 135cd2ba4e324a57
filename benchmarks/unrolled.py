"""What `unrolled` costs beside leaving every example out, and what that depends on; how far it holds with momentum and
Adam; and, begun at the initialisation, as the derivative of the whole training run.

python -m benchmarks.unrolled --out benchmarks/results/unrolled.json

Interrupted, the same command continues with the parts that are missing. CPU seconds of one thread in one process.
Leaving out all examples is timed on 100 of them with our stacked trainer, and taken as often as there are examples.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.fimoda import trained_task
from benchmarks.published import LEFT_OUT, SETTINGS, data_of, untrained
from whence import (
    Damping,
    Examples,
    Inputs,
    LeftOutSets,
    Outcomes,
    Recipe,
    ScoreMatrix,
    Task,
    agreement,
    attribute_with,
    further_train,
    lds,
    load,
    random_kept_sets,
    retrain,
    train,
)
from whence.runs.machine import machine
from whence.studies.demo import DAMPING, DIGITS, TEST_FRACTION
from whence.studies.spacing import evenly
from whence.training import limited_threads
from whence.training.trajectory import Trajectory
from whence.training.updates import initial_state

REPEATS = 3
CASES = {"energy": 100, "adult": 1}  # data set -> epochs of further training
SHARES = (0.125, 0.25, 0.5, 1.0)  # of the train set, at the same number of steps
N_SCALE_STEPS = 60
TRAJECTORY = 1000  # seed; none of the gold standard's
OPTIMIZERS = {
    "momentum .9, lr 1e-3": Recipe(lr=1e-3, momentum=0.9, batch_size=64, epochs=50),
    "adam, lr 1e-4": Recipe(lr=1e-4, optimizer="adam", batch_size=64, epochs=50),
    "adam, lr 1e-3": Recipe(lr=1e-3, optimizer="adam", batch_size=64, epochs=50),
}
OPTIMIZER_POINTS = (1, 5, 20, 50)
OPTIMIZER_SEEDS = 5
INIT_QUERIES = 40
INIT_KEPT_SETS = 64
INIT_LEFT_OUT = 40
SAME_ORDER, OTHER_ORDER = 0, 1  # seeds: of all retraining and of the run that is unrolled; and of another run
JUDGES = {
    "lds": "halves",
    "own_batches": "one, from its own batches",
    "same_order": "one, batches cut anew",
    "down_weight": "one, 1/n from every step",
}


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Median over repeats."""
    spent = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def cost_beside_leaving_out(name: str, epochs: int, work: Path) -> dict[str, Any]:
    """CPU seconds of `unrolled` for all train examples, and of leaving each out once, for one seed."""
    setting = SETTINGS[name]
    train_set, queries, _ = data_of(setting)
    inputs = Inputs(trained_task(setting, 0, work / name), train_set, queries)
    recipe = setting.sgd
    ours = cpu_seconds(lambda: attribute_with(inputs, "unrolled", recipe=recipe, at=epochs, seeds=(TRAJECTORY,)))

    def leave_out() -> None:
        further_train(
            inputs.task, train_set, queries, recipe, left_out=LEFT_OUT, seeds=[0], points=[epochs], engine="stacked"
        )

    per_run = cpu_seconds(leave_out) / (LEFT_OUT + 1)
    every = per_run * len(train_set)
    return {
        "epochs": epochs,
        "n_train": len(train_set),
        "n_query": len(queries),
        "unrolled_s": ours,
        "one_run_s": per_run,
        "leaving_out_all_s": every,
        "ratio": every / ours,
    }


def cost_by_size(work: Path) -> dict[str, Any]:
    """CPU seconds of `unrolled` on parts of Adult with one number of steps: by train set, and by queries."""
    setting = SETTINGS["adult"]
    train_set, queries, _ = data_of(setting)
    task = trained_task(setting, 0, work / "adult")
    recipe = replace(setting.sgd, epochs=None, steps=N_SCALE_STEPS)

    def spent(n_train: int, n_query: int) -> float:
        inputs = Inputs(task, train_set.subset(range(n_train)), queries.subset(range(n_query)))
        return cpu_seconds(lambda: attribute_with(inputs, "unrolled", recipe=recipe))

    n, m = len(train_set), len(queries)
    return {
        "steps": N_SCALE_STEPS,
        "by_n_train": {str(int(n * share)): spent(int(n * share), m) for share in SHARES},
        "by_n_query": {str(int(m * share)): spent(n, int(m * share)) for share in SHARES},
    }


def breast_cancer_model() -> tuple[Task, Examples, Examples]:
    """A small trained classifier, its train set and its test set."""
    split = load("breast_cancer")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2)).eval()
    task = train(Task.classification(model), split.train, Recipe(lr=0.05, batch_size=64, epochs=30))
    return task, split.train, split.test


def other_optimizers() -> dict[str, dict[str, list[float]]]:
    """Pearson agreement of `unrolled` with further training, by recipe: at each point [value, low, high]."""
    task, train_set, queries = breast_cancer_model()
    inputs = Inputs(task, train_set, queries.subset(range(50)))
    found: dict[str, dict[str, list[float]]] = {}
    for name, recipe in OPTIMIZERS.items():
        gold = further_train(
            task, train_set, inputs.queries, recipe, left_out=LEFT_OUT, seeds=OPTIMIZER_SEEDS, points=OPTIMIZER_POINTS
        )
        scores = attribute_with(
            inputs, "unrolled", recipe=recipe, at=OPTIMIZER_POINTS, seeds=(TRAJECTORY, TRAJECTORY + 1)
        )
        by_method = agreement(scores, gold.outcomes("mean"), metrics=["pearson"], n_bootstrap=200).to_dict("pearson")
        found[name] = {str(point): values for point, values in by_method["unrolled"].items()}
    return found


@dataclass(frozen=True)
class Beginning:
    """A problem at its initialisation.

    Attributes:
        task: The untrained model.
        train: Train examples.
        queries: What is asked about.
        recipe: The original training.
        points: Epochs at which the model is attributed and judged.
        damping: Of the influence function at the final model.
    """

    task: Task
    train: Examples
    queries: Examples
    recipe: Recipe
    points: tuple[int, ...]
    damping: Damping

    def after(self, epochs: int) -> Task:
        """The model after so much of the original training, in the order of the retraining."""
        task = self.task.with_model(copy.deepcopy(self.task.model))
        return train(task, self.train, replace(self.recipe, epochs=epochs), seed=SAME_ORDER)


def digits_beginning() -> Beginning:
    """A small network with the demo's data, clean, and the demo's recipe; the margin is explained."""
    split = load("digits", test_fraction=TEST_FRACTION)
    queries = split.test.subset(evenly(len(split.test), INIT_QUERIES))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).eval()
    task = Task.classification(model, measure="margin")
    return Beginning(task, split.train, queries, DIGITS.original, (1, 4, 12), DAMPING)


def energy_beginning() -> Beginning:
    """The published network and learning rate on UCI Energy, for fewer epochs; the loss is explained."""
    setting = SETTINGS["energy"]
    train_set, queries, _ = data_of(setting)
    chosen = queries.subset(evenly(len(queries), INIT_QUERIES))
    recipe = replace(setting.original, epochs=40)
    return Beginning(untrained(setting, 0), train_set, chosen, recipe, (10, 40), setting.damping)


def from_the_initialisation(build: Callable[[], Beginning], work: Path) -> dict[str, Any]:
    """Scores beside real training without examples, all from one initialisation in one order of the data.

    Returns:
        By point and by way to leave out (`JUDGES`): the linear datamodeling score over halves, or the Pearson agreement
        over single examples; by method [value, low, high].
    """
    start = build()
    scores, seconds = init_scores(start)
    halves = retrain(
        start.task,
        start.train,
        start.queries,
        start.recipe,
        kept=random_kept_sets(len(start.train), INIT_KEPT_SETS),
        seeds=[SAME_ORDER],
        points=start.points,
        store_dir=work / "halves",
    ).outcomes()
    singles = {"own_batches": init_own_batches(start)}
    for recipe in (replace(start.recipe, sampler="same_order"), replace(start.recipe, sampler="down_weight")):
        singles[recipe.sampler] = init_leave_one_out(start, recipe, work / recipe.sampler)
    found: dict[str, Any] = {
        str(point): {"lds": lds(scores[point], halves, point=point).to_dict()} | {judge: {} for judge in singles}
        for point in start.points
    }
    for judge, outcomes in singles.items():
        for name in scores[start.points[0]]:
            along = {point: scores[point][name] for point in start.points}
            table = agreement(along, outcomes, metrics=["pearson"])
            for point, value in next(iter(table.to_dict("pearson").values())).items():
                found[str(point)][judge][name] = value
    return {
        "n_train": len(start.train),
        "n_query": len(start.queries),
        "measure": start.task.measure.name,
        "kept_sets": INIT_KEPT_SETS,
        "left_out": INIT_LEFT_OUT,
        "unrolled_s": seconds,
        "points": found,
    }


def init_scores(start: Beginning) -> tuple[dict[int, dict[str, ScoreMatrix]], float]:
    """Point -> method -> scores; and the CPU seconds of `unrolled` for all points."""
    clock = time.process_time()
    same = whole_training(start, SAME_ORDER)
    seconds = time.process_time() - clock
    other = whole_training(start, OTHER_ORDER)
    found = {}
    for point in start.points:
        final = Inputs(start.after(point), start.train, start.queries)
        found[point] = {
            "unrolled": same[point],
            "unrolled, another order": other[point],
            "grad_dot": one_matrix(attribute_with(final, "grad_dot")),
            "influence_gn": one_matrix(attribute_with(final, "influence_gn", damping=start.damping)),
        }
    return found, seconds


def whole_training(start: Beginning, seed: int) -> dict[int, ScoreMatrix]:
    """Point -> the derivative of training up to there, in the order of a seed."""
    inputs = Inputs(start.task, start.train, start.queries)
    begun = start.task.model.state_dict()
    found = attribute_with(inputs, "unrolled", recipe=start.recipe, at=start.points, seeds=[seed], start=begun)
    assert isinstance(found, dict)
    return found


def one_matrix(found: ScoreMatrix | dict[int, ScoreMatrix]) -> ScoreMatrix:
    """Scores of a method that knows no amount of training."""
    assert isinstance(found, ScoreMatrix)
    return found


def init_leave_one_out(start: Beginning, recipe: Recipe, store: Path) -> Outcomes:
    """What training without each of some examples does, in the order of the retraining."""
    return further_train(
        start.task,
        start.train,
        start.queries,
        recipe,
        left_out=INIT_LEFT_OUT,
        seeds=[SAME_ORDER],
        points=start.points,
        store_dir=store,
    ).outcomes("mean")


def init_own_batches(start: Beginning) -> Outcomes:
    """The same for what the derivative is of: the example is lacking in its own batches, else they stay."""
    n = len(start.train)
    end = start.recipe.steps_at(max(start.points), n)
    run = Trajectory(start.task, start.train, start.recipe, SAME_ORDER, end)
    recorded = {start.recipe.steps_at(point, n) for point in start.points}
    batch = start.queries.all()
    left_out = [i for (i,) in LeftOutSets.evenly_spaced(n, INIT_LEFT_OUT)]
    rows = []
    for i in left_out:
        state = initial_state(start.recipe, run.at(0))
        for step in run.batches:
            state = run.after(state, replace(step, weights=step.weights * (step.indices != i)))
            if step.step + 1 in recorded:
                named = start.task.layout.unflatten(state[0])
                rows.append(start.task.measure(start.task.call(named, batch), batch).detach().double())
    measures = torch.stack(rows).reshape(len(left_out), len(start.points), -1).permute(1, 2, 0)
    return Outcomes(
        effects=start.task.measure.orientation * (measures - measures.mean(-1, keepdim=True))[None],
        level=measures.abs().mean(-1),
        eps=torch.finfo(run.dtype).eps,
        points=start.points,
        point_unit="epochs",
        query_ids=start.queries.ids,
        left_out=tuple((start.train.ids[i],) for i in left_out),
    )


def init_section(result: dict[str, Any]) -> list[str]:
    """The lines of the results page about unrolling from the initialisation."""
    lines = [
        "### The whole training run",
        "",
        "Begun at the initialisation with the original recipe, `unrolled` is the derivative of training itself. It is "
        "judged by training again from the same initialisation in the same order of the data (one seed): without "
        "random halves of the data (linear datamodeling score), and without single examples (Pearson), left out of "
        "their own batches and nothing else, with batches cut anew from the same order, or with 1/n of their loss "
        "taken from every step. `grad_dot` and `influence_gn` see the model after as many epochs. Intervals of 95 %.",
        "",
    ]
    for name, found in result["from_start"].items():
        methods = next(iter(found["points"].values()))["lds"]
        lines += [
            f"{name}: {found['n_train']} x {found['n_query']}, the {found['measure']} is explained; "
            f"{found['kept_sets']} halves, {found['left_out']} single examples; `unrolled` for all examples and "
            f"epochs {found['unrolled_s']:.0f} CPU seconds.",
            "",
            "| epochs | left out | " + " | ".join(methods) + " |",
            "|---" * (2 + len(methods)) + "|",
        ]
        for point, by_judge in found["points"].items():
            for judge, by_method in by_judge.items():
                cells = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in by_method.values()]
                lines.append(f"| {point} | {JUDGES[judge]} | " + " | ".join(cells) + " |")
        lines.append("")
    return lines


BEGINNINGS = {"digits": digits_beginning, "energy": energy_beginning}


def kept(path: Path, work: Callable[[], Any]) -> Any:
    """What `work` gives on one thread; read from `path` where an interrupted benchmark has left it."""
    if not path.is_file():
        with limited_threads(1):
            found = work()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
        print(path.stem, found, flush=True)
    return json.loads(path.read_text())


def main() -> None:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="trained models are kept here")
    args = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {"optimizers": other_optimizers}
    parts |= {name: partial(cost_beside_leaving_out, name, epochs, args.work) for name, epochs in CASES.items()}
    parts["by_size"] = partial(cost_by_size, args.work)
    for name, build in BEGINNINGS.items():
        parts[f"from-start-{name}"] = partial(from_the_initialisation, build, args.work / "unrolled" / name)
    found = {name: kept(args.work / "unrolled" / f"{name}.json", work) for name, work in parts.items()}
    result: dict[str, Any] = {
        "optimizers": found["optimizers"],
        "cost": {name: found[name] for name in CASES},
        "by_size": found["by_size"],
        "from_start": {name: found[f"from-start-{name}"] for name in BEGINNINGS},
    }
    result["machine"] = machine()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
