"""What `unrolled` costs beside leaving every example out, and what that depends on; and how far it holds with momentum
and Adam.

python -m benchmarks.unrolled --out benchmarks/results/unrolled.json

Interrupted, the same command continues with the parts that are missing. CPU seconds of one thread in one process.
Leaving out all examples is timed on 100 of them with our stacked trainer, and taken as often as there are examples.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.fimoda import trained_task
from benchmarks.published import LEFT_OUT, SETTINGS, data_of
from whence import Examples, Inputs, Recipe, Task, agreement, attribute_with, further_train, load, train
from whence.runs.machine import machine
from whence.training import limited_threads

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
    recipe = setting.further
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
    recipe = replace(setting.further, epochs=None, steps=N_SCALE_STEPS)

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
    found = {name: kept(args.work / "unrolled" / f"{name}.json", work) for name, work in parts.items()}
    result: dict[str, Any] = {
        "optimizers": found["optimizers"],
        "cost": {name: found[name] for name in CASES},
        "by_size": found["by_size"],
    }
    result["machine"] = machine()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(args.out)


if __name__ == "__main__":
    main()
