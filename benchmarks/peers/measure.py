"""One method of one tool on one problem, in a process of its own: seconds, memory and scores.

    python -m benchmarks.peers.measure --problem DIR --tool kronfluence --method ekfac --threads 1 --out DIR

Imports, reading the problem and a small run through the same code come first and are not timed. CPU seconds are user
and system time of this process and of children it has waited for. Memory is the highest resident set while fitting and
scoring, above what it was when they began.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import resource
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

LINEAR = "_linear"  # ends the name of a method that is restricted to the layers which all tools can cover
WARM_UP = (8, 2)  # train examples and queries of the small run
MIB = 2**20
T = TypeVar("T")


def base_method(method: str) -> str:
    """The method without its restriction."""
    return method.removesuffix(LINEAR)


def cpu_seconds() -> float:
    """User and system time, children included."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def timed(work: Callable[[], T]) -> tuple[T, float, float]:
    """What `work` gives, wall seconds, CPU seconds."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    found = work()
    return found, time.perf_counter() - wall, cpu_seconds() - cpu


class PeakMemory:
    """Highest resident set of this process from the moment it is made; Linux only, else None."""

    def __init__(self) -> None:
        self.start: int | None = None
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            self.start = _status_bytes("VmHWM")

    def mib_above_start(self) -> float | None:
        """How much higher than at the start."""
        return None if self.start is None else (_status_bytes("VmHWM") - self.start) / MIB


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key}")


def measure(tool: str, method: str, problem_dir: Path, n_query: int | None) -> tuple[dict[str, Any], Any]:
    """Facts of one run, and its scores (n_query, n_train).

    Args:
        tool: Module of this package.
        method: Of the tool; with the ending `LINEAR`, on the parameters of the problem's `modules` alone.
        problem_dir: What `problems.build` has written.
        n_query: The first queries only; all where it is None.
    """
    from benchmarks.peers import problems

    module = importlib.import_module(f"benchmarks.peers.{tool}")
    problem = problems.read(problem_dir)
    if n_query is not None:
        problem = problem.first(len(problem.train[0]), n_query)
    if method.endswith(LINEAR):
        only = set(problem.parameters_of_modules)
        for name, parameter in problem.model.named_parameters():
            parameter.requires_grad_(name in only)
    make, settings = module.METHODS[base_method(method)], problems.Settings.of(problem)
    # Its errors, of which a train set this small may cause some, are not those of the method.
    with _scratch() as folder, contextlib.suppress(Exception):
        small = make(problem.first(*WARM_UP), settings.for_warm_up(), folder)
        small.score(small.fit())
    with _scratch() as folder:
        steps = make(replace(problem, model=problem.model), settings, folder)
        memory = PeakMemory()
        fitted, fit_s, cpu_fit_s = timed(steps.fit)
        scores, score_s, cpu_score_s = timed(lambda: steps.score(fitted))
        peak_mb = memory.mib_above_start()
    n_train, n_query = len(problem.train[0]), len(problem.queries[0])
    if tuple(scores.shape) != (n_query, n_train):
        raise ValueError(f"scores are {tuple(scores.shape)}, not (n_query, n_train) = {(n_query, n_train)}")
    return {
        "fit_s": fit_s,
        "score_s": score_s,
        "cpu_fit_s": cpu_fit_s,
        "cpu_score_s": cpu_score_s,
        "peak_mb": peak_mb,
        "n_train": n_train,
        "n_query": n_query,
        "error": None,
    }, scores.detach().cpu().numpy()


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def error_text(error: BaseException) -> str:
    """Class and first line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": ")[:300]


def main() -> None:
    """Parse, run, write `result.json` and `scores.npy`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", type=Path, required=True)
    parser.add_argument("--tool", required=True)
    parser.add_argument("--method", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--queries", type=int)
    parser.add_argument("--limit-gib", type=float, help="address space: a run that needs more fails alone")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.limit_gib is not None:
        resource.setrlimit(resource.RLIMIT_AS, (int(args.limit_gib * 2**30),) * 2)
    try:
        import numpy as np
        import torch

        warnings.simplefilter("ignore")
        torch.set_num_threads(args.threads)
        result, scores = measure(args.tool, args.method, args.problem, args.queries)
        np.save(args.out / "scores.npy", scores.astype(np.float32))
    except Exception as error:  # a tool may raise anything: it is listed with what it says
        traceback.print_exc()
        result = {"error": error_text(error)}
    partial = args.out / "result.partial"
    partial.write_text(json.dumps(result))
    partial.replace(args.out / "result.json")


if __name__ == "__main__":
    main()
