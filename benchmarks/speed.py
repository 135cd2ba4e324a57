"""How long one further-training run takes: a DataLoader loop, a plain loop in memory, and our engines.

All in one process, the same threads, alternating, medians of three; results are compared before they are timed.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, TensorDataset

from benchmarks.published import BATCH, LEFT_OUT, Setting, data_of, final_model
from whence import Examples, LeftOutSets, Task
from whence.training import Chunk, Execution, Problem, WorkerPool, limited_threads, probe, run_chunks, training_twin

EPOCHS = 20
POINTS = (1, 5, 20)
REPEATS = 3
AGREE = 2e-4  # largest difference of float32 measures between the loops, relative to the largest measure


class LeaveOneOutSampler(Sampler[int]):
    """torch's RandomSampler with its own generator, one index deleted."""

    def __init__(self, n: int, left_out: int, seed: int) -> None:
        self.n, self.left_out = n, left_out
        self.generator = torch.Generator().manual_seed(seed)

    def order(self) -> torch.Tensor:
        """The indices of the next epoch."""
        order = torch.randperm(self.n, generator=self.generator)
        torch.randperm(self.n, generator=self.generator)
        return order[order != self.left_out]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())

    def __len__(self) -> int:
        return self.n - 1


def plain_loss(task: Task) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The mean loss as anybody would write it."""
    return F.mse_loss if task.loss.name == "mse" else F.cross_entropy


def dataloader_run(task: Task, train: Examples, queries: Examples, setting: Setting, left_out: int) -> torch.Tensor:
    """One run as published: DataLoader, batches of 128, num_workers=0, torch.optim."""
    x, y = train.all()
    sampler = LeaveOneOutSampler(len(train), left_out, seed=0)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, sampler=sampler, num_workers=0)
    return _plain_run(task, queries, setting, lambda: iter(loader))


def memory_run(task: Task, train: Examples, queries: Examples, setting: Setting, left_out: int) -> torch.Tensor:
    """One run as a careful person writes it: tensors in memory, batches by indexing, torch.optim."""
    x, y = train.all()
    sampler = LeaveOneOutSampler(len(train), left_out, seed=0)

    def epoch() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in sampler.order().split(BATCH):
            yield x[rows], y[rows]

    return _plain_run(task, queries, setting, epoch)


def _plain_run(task: Task, queries: Examples, setting: Setting, epoch_of: Callable[[], Iterator[Any]]) -> torch.Tensor:
    model = copy.deepcopy(task.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.sgd.lr)
    loss_of = plain_loss(task)
    recorded = []
    for epoch in range(1, EPOCHS + 1):
        for x, y in epoch_of():
            optimizer.zero_grad()
            loss_of(model(x), y).backward()
            optimizer.step()
        if epoch in POINTS:
            with torch.no_grad():
                recorded.append(task.loss(model(queries.all()[0]), queries.all()))
    return torch.stack(recorded)


def our_runs(problem: Problem, execution: Execution, sets: tuple[tuple[int, ...], ...]) -> torch.Tensor:
    """All runs by one of our engines; (n_points, n_runs, n_query)."""
    steps = tuple(problem.recipe.steps_at(p, len(problem.train)) for p in POINTS)
    results = [result.measures for _, result in run_chunks(problem, execution, _chunks(execution, sets), steps)]
    return torch.cat(results, 1)


def _chunks(execution: Execution, sets: tuple[tuple[int, ...], ...]) -> list[Chunk]:
    starts = range(0, len(sets), execution.chunk)
    return [Chunk(f"chunk-{k}", 0, sets[k : k + execution.chunk]) for k in starts]


def processes_seconds(problem: Problem, execution: Execution, sets: tuple[tuple[int, ...], ...]) -> float:
    """Seconds for all runs by workers that are up already, as they are in a sweep of minutes."""
    steps = tuple(problem.recipe.steps_at(p, len(problem.train)) for p in POINTS)
    with WorkerPool(problem, execution.workers) as pool:
        for warm in [pool.submit(execution.inner, 0, sets[:2], (1,)) for _ in range(execution.workers)]:
            warm.result()
        start = time.perf_counter()
        for future in [pool.submit(execution.inner, 0, c.left_out, steps) for c in _chunks(execution, sets)]:
            future.result()
        return time.perf_counter() - start


def compare(setting: Setting) -> dict[str, Any]:
    """Ratios of seconds per run, and absolute milliseconds per epoch of one run."""
    train, queries, _ = data_of(setting)
    task = final_model(setting, train, seed=0)
    problem = Problem(training_twin(task, dropout=True), train, queries, setting.sgd)
    sets = tuple(tuple(s) for s in LeftOutSets.evenly_spaced(len(train), LEFT_OUT))
    with limited_threads(1):
        execution = probe(problem, sets, 0)[0].execution
        _require_same(task, problem, execution, setting, sets)
        seconds = _alternate(
            {
                "dataloader": lambda: dataloader_run(task, train, queries, setting, sets[0][0]),
                "in_memory": lambda: memory_run(task, train, queries, setting, sets[0][0]),
                "ours": lambda: our_runs(problem, execution, sets),
            }
        )
        seconds["ours"] = [s / len(sets) for s in seconds["ours"]]
        peak = matmul_peak()
    per_run = {name: statistics.median(values) for name, values in seconds.items()}
    flops = 6 * sum(p.numel() for p in task.model.parameters() if p.ndim == 2) * len(train) * EPOCHS
    two = _two_cores(problem, sets, execution)
    return {
        "loop_ratio": per_run["dataloader"] / per_run["ours"],
        "inmemory_ratio": per_run["in_memory"] / per_run["ours"],
        "two_core_ratio": per_run["ours"] / min(two.values()),
        "ms_per_epoch": {name: 1e3 * s / EPOCHS for name, s in per_run.items()},
        "ms_per_epoch_two_cores": {name: 1e3 * s / EPOCHS for name, s in two.items()},
        "all_ms_per_epoch": {name: [1e3 * s / EPOCHS for s in values] for name, values in seconds.items()},
        "engine_one_thread": execution.to_dict(),
        "matmul_peak_gflops_one_thread": peak / 1e9,
        "share_of_matmul_peak": flops / per_run["ours"] / peak,
        "epochs": EPOCHS,
        "points": list(POINTS),
        "runs": len(sets),
    }


def _two_cores(problem: Problem, sets: tuple[tuple[int, ...], ...], one: Execution) -> dict[str, float]:
    """Seconds per run on two cores: one process with two threads, and two processes of one thread."""
    chunk = -(-len(sets) // (2 * -(-len(sets) // (2 * one.chunk))))  # an even number of chunks, as in a sweep
    processes = Execution("processes", one.inner, chunk, 2, 1)
    threads = Execution(one.engine, one.inner, one.chunk, 1, 2)
    return {
        "one_process_two_threads": _median(lambda: our_runs(problem, threads, sets)) / len(sets),
        "two_processes": statistics.median(processes_seconds(problem, processes, sets) for _ in range(REPEATS))
        / len(sets),
    }


def _require_same(
    task: Task, problem: Problem, execution: Execution, setting: Setting, sets: tuple[tuple[int, ...], ...]
) -> None:
    """The three loops must train the same runs before they are timed."""
    ours = our_runs(problem, execution, sets)[:, 0]
    for run in (dataloader_run, memory_run):
        theirs = run(task, problem.train, problem.queries, setting, sets[0][0]).double()
        gap = float((ours - theirs).abs().max() / theirs.abs().max())
        if gap > AGREE:
            raise SystemExit(f"{run.__name__} and our engine differ by {gap:.1e}: nothing to time.")


def _alternate(runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _median(run: Callable[[], object]) -> float:
    return statistics.median(_alternate({"run": run})["run"])


def matmul_peak(size: int = 1536, repeats: int = 8) -> float:
    """Best float32 flops per second of a large matrix product, with the present threads."""
    a = torch.randn(size, size)
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
