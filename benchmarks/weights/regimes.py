"""Synthetic contributions in which the objective is right, useless or wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.weights.fixed import FIXED
from whence import Contributions, learn_weights
from whence.evaluation import pearson
from whence.rng import torch_generator
from whence.task import ParameterGroups

REGIMES = ("heavy-tailed influence", "Gaussian influence", "hub rows in 3 groups", "common noise")


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


def regimes(n_seeds: int = 5) -> dict[str, dict[str, float]]:
    """Mean correlation of weighted scores with the true influence."""
    ways: dict[str, tuple[str, dict[str, Any]]] = {
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
    return learn_weights(found, solver, k=FIXED.k, **options).values
