"""pyDVL's influence functions: CG, LiSSA, Arnoldi, EK-FAC and the harmonic mean, which is DataInf."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers.problems import Method, Problem, Settings, Steps, batches, mean_loss

LIBRARY = "pydvl"
NOTES = {
    "influence_cg": "the true Hessian; ours is the Gauss-Newton matrix",
    "ekfac": "Fisher matrix of sum_c sqrt(p_c) log p_c in the place of the labels' loss, which ours takes",
    "lissa": "random batches of its own; one query after the other",
    "arnoldi": "the true Hessian, largest eigenvalues only",
}
ONLY_MODULES = frozenset({"ekfac"})


def _method(build: Callable[[Problem, Settings], Any], shuffled: bool = False) -> Method:
    def steps(problem: Problem, settings: Settings, folder: Path) -> Steps:
        data = TensorDataset(*problem.train)
        loader = DataLoader(data, batch_size=settings.batch_size, shuffle=shuffled)
        influence = build(problem, settings)

        def score(fitted: Any) -> Tensor:
            factors = fitted.influence_factors(*problem.queries)
            rows = [
                fitted.influences_from_factors(factors, x, y) for x, y in batches(problem.train, settings.batch_size)
            ]
            return torch.cat(rows, 1).detach()

        return Steps(lambda: influence.fit(loader), score)

    return steps


def _cg(problem: Problem, settings: Settings) -> Any:
    from pydvl.influence.torch import CgInfluence

    return CgInfluence(
        problem.model,
        mean_loss,
        regularization=settings.hessian_damping,
        rtol=settings.tolerance,
        atol=0.0,
        maxiter=10 * settings.cg_iterations,
        warn_on_max_iteration=False,
        solve_simultaneously=True,
    )


def _lissa(problem: Problem, settings: Settings) -> Any:
    from pydvl.influence.torch import LissaInfluence

    return LissaInfluence(
        problem.model,
        mean_loss,
        regularization=settings.hessian_damping,
        maxiter=settings.depth,
        scale=settings.scale,
        rtol=0.0,
        warn_on_max_iteration=False,
    )


def _arnoldi(problem: Problem, settings: Settings) -> Any:
    from pydvl.influence.torch import ArnoldiInfluence

    return ArnoldiInfluence(
        problem.model,
        mean_loss,
        regularization=settings.hessian_damping,
        rank=settings.rank,
        krylov_dimension=settings.krylov,
    )


def _ekfac(problem: Problem, settings: Settings) -> Any:
    from pydvl.influence.torch import EkfacInfluence

    if not problem.is_classification:
        raise NotImplementedError("classification only")
    return EkfacInfluence(problem.model, update_diagonal=True, hessian_regularization=settings.damping)


def _datainf(problem: Problem, settings: Settings) -> Any:
    from pydvl.influence.torch import BlockMode, InverseHarmonicMeanInfluence

    return InverseHarmonicMeanInfluence(
        problem.model, mean_loss, regularization=settings.damping, block_structure=BlockMode.PARAMETER_WISE
    )


METHODS: dict[str, Method] = {
    "influence_cg": _method(_cg),
    "ekfac": _method(_ekfac),
    "datainf": _method(_datainf),
    "lissa": _method(_lissa, shuffled=True),
    "arnoldi": _method(_arnoldi),
}
