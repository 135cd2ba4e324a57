"""whence, through its public interface.

It has no call that fits without scoring: what others call fitting is part of the time of scoring here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.problems import Method, Problem, Settings, Steps, example_losses
from whence import METHODS as KNOWN
from whence import Damping, Examples, Task, attribute

LIBRARY = "whence"
NOTES: dict[str, str] = {}
ONLY_MODULES: frozenset[str] = frozenset()


def task_of(problem: Problem, measure: str) -> Task:
    """The problem as our contract."""
    if problem.is_classification:
        return Task.classification(problem.model, measure=measure)
    return Task(
        problem.model,
        outputs=lambda model, batch: model(batch[0]),
        loss=lambda outputs, batch: example_losses(outputs, batch[1]),
        measure=measure,
    )


def method_of(name: str, options: Callable[[Settings], dict[str, Any]], measure: str = "loss") -> Method:
    """One of our methods by its name, with the options it takes."""

    def steps(problem: Problem, settings: Settings, folder: Path) -> Steps:
        if name not in KNOWN:
            raise LookupError("not available")
        task = task_of(problem, measure)
        train, queries = Examples(problem.train), Examples(problem.queries)

        def score(_: Any) -> Tensor:
            found = attribute(task, train, queries, method=name, **options(settings))
            return torch.as_tensor(found.values)

        return Steps(lambda: None, score)

    return steps


def _fisher(settings: Settings) -> dict[str, Any]:
    return {"damping": Damping.absolute(settings.damping), "fisher": "empirical"}


def _lissa(settings: Settings) -> dict[str, Any]:
    return {
        "damping": Damping.absolute(settings.hessian_damping),
        "depth": settings.depth,
        "scale": settings.scale,
        "batch_size": settings.batch_size,
    }


def _arnoldi(settings: Settings) -> dict[str, Any]:
    return {
        "damping": Damping.absolute(settings.hessian_damping),
        "curvature": "hessian",
        "rank": settings.rank,
        "n_iterations": settings.krylov,
    }


METHODS: dict[str, Method] = {
    "grad_dot": method_of("grad_dot", lambda settings: {}),
    "ekfac": method_of("ekfac", _fisher),
    "kfac": method_of("kfac", _fisher),
    "trak": method_of("trak", lambda settings: {"dim": settings.dim}, measure="margin"),
    "influence_cg": method_of(
        "influence_cg",
        lambda settings: {
            "damping": Damping.absolute(settings.hessian_damping),
            "tolerance": settings.tolerance,
        },
    ),
    "datainf": method_of("datainf", lambda settings: {"damping": Damping.absolute(settings.damping)}),
    "lissa": method_of("lissa_hessian", _lissa),
    "arnoldi": method_of("arnoldi", _arnoldi),
}
