"""What a projection costs by kind, how far it moves inner products, and what that does to the scores of `trak`.

python -m benchmarks.projections --out benchmarks/results/projections.json

CPU seconds of one thread in one process, on gradients of networks that were trained for one epoch of Fashion-MNIST.
Rows come in blocks as `trak` gets them. Seconds for all rows are those of two blocks, the first call's drawing counted
once where it is kept. "float64 signs" are the entries of "rademacher" with all products in float64.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence import Damping, Examples, Inputs, Recipe, Task, attribute_with, load, train
from whence.algebra import PROJECTIONS, Projection, pairwise
from whence.evaluation import pearson
from whence.gradients import measure_gradients, pull_back
from whence.gradients.rows import chunk_size
from whence.methods.trak_output import ModelOutput
from whence.runs.machine import machine
from whence.training import limited_threads

DIM = 512
SEEDS = 3
GRAM_ROWS = 128
BLOCKS = 2
RIDGE = 0.1  # times the mean eigenvalue of the n x n Gram matrix of the rows, for all kinds and the reference
EARLIER = "float64 signs"


@dataclass(frozen=True)
class Case:
    """A network, and how much of Fashion-MNIST it attributes."""

    build: Callable[[], nn.Module]
    n_train: int
    n_query: int


def mlp(*hidden: int) -> nn.Module:
    """A chain of linear layers with ReLU."""
    sizes = (784, *hidden)
    layers = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], 10))


def cnn() -> nn.Module:
    """Two convolutions and two linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1568, 370), nn.ReLU(), nn.Linear(370, 10)),
    )


CASES = {
    "mlp-26k": Case(lambda: mlp(32), 1500, 200),
    "mlp-0.84M": Case(lambda: mlp(700, 400), 1000, 50),
    "cnn-0.59M": Case(cnn, 2000, 100),
}


def inputs_of(case: Case) -> Inputs:
    """The network after one epoch, in eval mode."""
    split = load("fashion_mnist", n_train=case.n_train, n_test=case.n_query)
    torch.manual_seed(0)
    task = Task.classification(case.build().eval())
    task = train(task, split.train, Recipe(lr=0.05, batch_size=64, epochs=1))
    return Inputs(task, split.train, split.test)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def output_gradients(task: Task, examples: Examples, dtype: torch.dtype | None = None) -> Tensor:
    """Gradients of the margin, (n, n_params)."""
    cotangents = ModelOutput.of(task, examples).cotangents
    return torch.cat([rows[:, 0] for _, rows in pull_back(task, examples, cotangents, dtype=dtype)])


def projected(kind: str, n_params: int, seed: int) -> Callable[[Tensor], Tensor]:
    """P^T of rows, by kind."""
    if kind == EARLIER:
        signs = Projection(n_params, DIM, seed, "rademacher")
        return lambda rows: signs.project(rows.double())
    return Projection(n_params, DIM, seed, kind).project


def seconds_of(kind: str, block: Tensor, n_rows: int) -> dict[str, float]:
    """Seconds to project `n_rows` rows that come in blocks like this one."""
    project = projected(kind, block.shape[1], 0)
    first = cpu_seconds(lambda: project(block))
    later = statistics.median(cpu_seconds(lambda: project(block)) for _ in range(BLOCKS))
    every = max(first - later, 0.0) + later * n_rows / len(block)
    return {"first_block_s": first, "block_s": later, "all_rows_s": every}


def gram_error(kind: str, rows: Tensor, exact: Tensor) -> float:
    """Relative Frobenius distance of the projected Gram matrix, mean over seeds."""
    found = [projected(kind, rows.shape[1], seed)(rows) for seed in range(SEEDS)]
    return statistics.mean(float((x @ x.T - exact).norm() / exact.norm()) for x in found)


def cost_and_error(case: Case) -> dict[str, Any]:
    """Seconds and distance from exact inner products, by kind."""
    inputs = inputs_of(case)
    n_params, n_rows = inputs.task.layout.n_params, case.n_train + case.n_query
    size = min(chunk_size(1, n_params, torch.float32), n_rows)
    rows = output_gradients(inputs.task, inputs.train.subset(range(max(size, GRAM_ROWS))))
    few = rows[:GRAM_ROWS]
    exact = pairwise(few, few, block_dim=65_536)
    kinds = (EARLIER, *PROJECTIONS)
    return {
        "n_params": n_params,
        "n_rows": n_rows,
        "block_rows": size,
        "seconds": {kind: seconds_of(kind, rows[:size], n_rows) for kind in kinds},
        "gram_error": {kind: gram_error(kind, few, exact) for kind in kinds if kind != EARLIER},
    }


def reference_scores(inputs: Inputs, ridge: float) -> Tensor:
    """TRAK without projection in float64, through the n x n Gram matrix of the rows."""
    double = torch.float64
    output = ModelOutput.of(inputs.task, inputs.train)
    phi = output_gradients(inputs.task, inputs.train, double)
    side = measure_gradients(inputs.task, inputs.queries, dtype=double)
    n = len(phi)
    gram, products = phi @ phi.T, side @ phi.T
    solved = torch.linalg.solve(gram + n * ridge * torch.eye(n, dtype=double), gram)
    return inputs.orientation / (n * ridge) * (products - products @ solved) * output.loss_slopes[:, 0]


def fidelity(inputs: Inputs) -> dict[str, Any]:
    """Mean correlation over queries of projected scores with the reference: with its ridge, and without any."""
    phi = output_gradients(inputs.task, inputs.train)
    ridge = RIDGE * float(phi.double().square().sum()) / len(phi) ** 2
    exact = reference_scores(inputs, ridge)
    found: dict[str, Any] = {"ridge": ridge}
    for name, damping in {"with_ridge": Damping.absolute(ridge), "without_ridge": None}.items():
        found[name] = {}
        for kind in PROJECTIONS:
            each = []
            for seed in range(SEEDS):
                scores = attribute_with(inputs, "trak", dim=DIM, seed=seed, projection=kind, ridge=damping)
                each.append(float(pearson(scores.values.double(), exact).mean()))
            found[name][kind] = each
    return found


def whole(case: Case) -> dict[str, float]:
    """CPU seconds of `trak` as it is called, and of the gradients that any gradient method needs."""
    inputs = inputs_of(case)
    cpu_seconds(lambda: attribute_with(inputs, "grad_dot"))  # whatever is paid once in a process

    def gradients() -> None:
        cotangents = ModelOutput.of(inputs.task, inputs.train).cotangents
        for _ in pull_back(inputs.task, inputs.train, cotangents):
            pass
        measure_gradients(inputs.task, inputs.queries)

    fresh = Inputs(inputs.task, inputs.train, inputs.queries)
    ours = cpu_seconds(lambda: attribute_with(fresh, "trak", dim=DIM))
    return {"gradients_s": cpu_seconds(gradients), "trak_s": ours}


def main() -> None:
    """Run all parts and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    result: dict[str, Any] = {"dim": DIM, "seeds": SEEDS, "gram_rows": GRAM_ROWS, "cases": {}}
    with limited_threads(1):
        for name, case in CASES.items():
            result["cases"][name] = cost_and_error(case) | {"whole": whole(case)}
            print(name, json.dumps(result["cases"][name], indent=1), flush=True)
        result["fidelity"] = {"mlp-26k": fidelity(inputs_of(CASES["mlp-26k"]))}
    result["machine"] = machine()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["fidelity"], indent=1))


if __name__ == "__main__":
    main()
