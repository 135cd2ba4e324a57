"""captum.influence: TracIn with one checkpoint, which is Grad-Dot, and the Arnoldi influence function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.peers.problems import Method, Pair, Problem, Settings, Steps, example_losses

LIBRARY = "captum"
NOTES = {
    "arnoldi": "the true Hessian, projected on its largest eigenvectors: what lies outside of them counts as 0",
}
ONLY_MODULES: frozenset[str] = frozenset()


class SummedLoss(nn.Module):
    """Sum of the losses of a batch, from which captum's fast path for linear layers and convolutions reads its rows."""

    reduction = "sum"

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """One number."""
        return example_losses(outputs, labels).sum()


class ExampleLosses(nn.Module):
    """One loss for each example; captum's path for all other models takes one backward pass for each."""

    reduction = "none"

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """(b,)."""
        return example_losses(outputs, labels)


def load_state(model: nn.Module, path: str) -> float:
    """Read the parameters; the learning rate that captum weighs a checkpoint with."""
    model.load_state_dict(torch.load(path, weights_only=True))
    return 1.0


def grad_dot(problem: Problem, settings: Settings, folder: Path) -> Steps:
    """TracInCP; its fast path where the model has only layers that it knows."""
    from captum.influence import TracInCP

    fast = problem.covers_all
    tracin = TracInCP(
        problem.model,
        TensorDataset(*problem.train),
        [str(problem.state_path)],
        checkpoints_load_func=load_state,
        loss_fn=SummedLoss() if fast else ExampleLosses(),
        batch_size=settings.batch_size,
        sample_wise_grads_per_batch=fast,
    )
    return Steps(lambda: None, lambda _: _scores(tracin, problem.queries))


def arnoldi(problem: Problem, settings: Settings, folder: Path) -> Steps:
    """The Krylov space is built when the object is."""
    from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction  # not yet exported

    def fit() -> Any:
        return ArnoldiInfluenceFunction(
            problem.model,
            TensorDataset(*problem.train),
            str(problem.state_path),
            checkpoints_load_func=load_state,
            loss_fn=SummedLoss() if problem.covers_all else ExampleLosses(),
            batch_size=settings.batch_size,
            sample_wise_grads_per_batch=problem.covers_all,
            projection_dim=settings.rank,
            arnoldi_dim=settings.krylov,
            arnoldi_tol=1e-6,
            hessian_reg=settings.hessian_damping * len(problem.train[0]),  # its Hessian is a sum over the examples
        )

    return Steps(fit, lambda influence: _scores(influence, problem.queries))


def _scores(influence: Any, queries: Pair) -> Tensor:
    return torch.as_tensor(influence.influence(queries)).detach()


METHODS: dict[str, Method] = {"grad_dot": grad_dot, "arnoldi": arnoldi}
