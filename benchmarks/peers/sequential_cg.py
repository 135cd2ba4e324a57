"""Influence functions by CG, one query after the other: how torch-influence works, written anew.

Each product with the Gauss-Newton matrix is a pass over the train set in batches, with vectors that go to numpy and
back for scipy's solver; the train gradients are taken one by one, again for each query.

Reference:
    torch-influence 0.1.0, by Alston Lo and Juhan Bae (2022): its CG solver with `gnh=True`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor
from torch.autograd import grad
from torch.func import functional_call, jvp, vjp
from torch.nn.utils import parameters_to_vector

from benchmarks.peers.problems import Method, Pair, Problem, Settings, Steps, batches, example_losses, mean_loss

LIBRARY = "scipy"
NOTES: dict[str, str] = {}
ONLY_MODULES: frozenset[str] = frozenset()


class SequentialCG:
    """One problem and its solver."""

    def __init__(self, problem: Problem, settings: Settings) -> None:
        self.problem, self.settings = problem, settings
        self.parameters = {name: p.detach() for name, p in problem.model.named_parameters()}

    def influences(self) -> Tensor:
        """Scores (n_query, n_train)."""
        return torch.stack([self._of_query(query) for query in batches(self.problem.queries, 1)])

    def _of_query(self, query: Pair) -> Tensor:
        solved = self._solve(self._gradient(query))
        return torch.stack([solved @ self._gradient(example) for example in batches(self.problem.train, 1)])

    def _solve(self, vector: Tensor) -> Tensor:
        dim = len(vector)

        def product(v: NDArray[Any]) -> NDArray[Any]:
            return self._damped_product(torch.as_tensor(v, dtype=vector.dtype).reshape(-1)).numpy()

        operator = LinearOperator((dim, dim), matvec=product)
        found, _ = cg(operator, vector.numpy(), rtol=self.settings.tolerance, atol=0.0, maxiter=10 * dim)
        return torch.as_tensor(np.asarray(found), dtype=vector.dtype)

    def _damped_product(self, v: Tensor) -> Tensor:
        total = self.settings.hessian_damping * v
        n = len(self.problem.train[0])
        direction = self._unflat(v)
        for x, y in batches(self.problem.train, self.settings.batch_size):
            total = total + len(x) / n * self._batch_product(x, y, direction)
        return total

    def _batch_product(self, x: Tensor, y: Tensor, direction: dict[str, Tensor]) -> Tensor:
        """J^T V J v, with V the Hessian of the batch's mean loss in the outputs."""

        def outputs_at(parameters: dict[str, Tensor]) -> Tensor:
            outputs: Tensor = functional_call(self.problem.model, parameters, (x,))
            return outputs

        def slopes_at(outputs: Tensor) -> Tensor:
            return torch.func.grad(lambda o: example_losses(o, y).mean())(outputs)

        outputs, pushed = jvp(outputs_at, (self.parameters,), (direction,))
        _, curved = jvp(slopes_at, (outputs,), (pushed,))
        (pulled,) = vjp(outputs_at, self.parameters)[1](curved)
        return torch.cat([part.reshape(-1) for part in pulled.values()])

    def _gradient(self, example: Pair) -> Tensor:
        parameters = list(self.problem.model.parameters())
        return parameters_to_vector(grad(mean_loss(self.problem.model(example[0]), example[1]), parameters))

    def _unflat(self, v: Tensor) -> dict[str, Tensor]:
        parts = v.split([p.numel() for p in self.parameters.values()])
        return {name: part.view_as(p) for part, (name, p) in zip(parts, self.parameters.items(), strict=True)}


def influence_cg(problem: Problem, settings: Settings, folder: Path) -> Steps:
    """Everything depends on the query."""
    return Steps(lambda: None, lambda _: SequentialCG(problem, settings).influences())


METHODS: dict[str, Method] = {"influence_cg": influence_cg}
