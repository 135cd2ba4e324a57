"""The published way: stochastic descent on a softmax of free parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from whence.checks import look_up, require_count, require_positive
from whence.rng import torch_generator
from whence.weights.objective import Objective, norms, self_supervised_loss
from whence.weights.solvers.solution import Solution

BatchLoss = Callable[[Objective, Tensor, Tensor], Tensor]  # problem, x (n_groups,), positions of queries -> scalar
NormFrom = Literal["gram", "scores"]


def solve_adamw(
    problem: Objective,
    *,
    steps: int = 300,
    lr: float = 0.05,
    batch_size: int = 10,
    weight_decay: float = 0.0,
    norm_from: NormFrom = "gram",
    seed: int = 0,
) -> Solution:
    """AdamW on logits, x = softmax(logits), from uniform scaled weights; learning rate on a cosine to zero.

    The top-k sets are taken anew in every step and are constants within it.

    Args:
        problem: Contributions of the learning queries.
        steps: Optimizer steps. A few full-batch steps, as in some ports, move nothing: each changes a logit by `lr`.
        lr: Learning rate.
        batch_size: Queries in a step, drawn epoch by epoch without replacement.
        weight_decay: Of the logits, a pull to uniform.
        norm_from: "gram": norms from the matrices B_q; "scores": from the scores of all train examples, as published.
            The same numbers to rounding.
        seed: Of the order of the queries.
    Cost:
        Per step a product of batch_size x n_train x n_groups, with "scores" also its backward pass.
    Reference:
        Li et al. (2026), arXiv:2506.05647, algorithm 1; rate, steps and batches are this project's.
    """
    require_count(steps, "steps")
    require_count(batch_size, "batch_size")
    require_positive(lr, "lr")
    batch_loss = look_up(BATCH_LOSSES, norm_from, "norm_from")
    alive = problem.scale > 0
    logits = torch.zeros(int(alive.sum()), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([logits], lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for queries in _batches(problem.shape[0], batch_size, steps, seed):
        optimizer.zero_grad()
        batch_loss(problem, _weights(logits, alive), queries).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    x = _weights(logits.detach(), alive)
    return Solution(problem.weights(x), {"steps": steps, "lr": lr, "batch_size": batch_size})


def _weights(logits: Tensor, alive: Tensor) -> Tensor:
    """(n_groups,): softmax over the groups that contribute, 0 for the others."""
    return torch.zeros(len(alive), dtype=logits.dtype).masked_scatter(alive, torch.softmax(logits, 0))


def _batches(n_query: int, batch_size: int, steps: int, seed: int) -> list[Tensor]:
    """Positions of the queries of each step."""
    generator = torch_generator(seed, "learning queries")
    batches: list[Tensor] = []
    while len(batches) < steps:
        batches.extend(torch.split(torch.randperm(n_query, generator=generator), batch_size))
    return batches[:steps]


def gram_loss(problem: Objective, x: Tensor, queries: Tensor) -> Tensor:
    """Mean loss of some queries with norms from the Gram matrices."""
    top = problem.top_means(x, queries)
    size = norms(problem.gram[queries], x)
    loss: Tensor = -(top @ x / torch.where(size > 0, size, 1.0)).mean()
    return loss


def score_loss(problem: Objective, x: Tensor, queries: Tensor) -> Tensor:
    """Mean loss of some queries through the scores of all train examples: the slow twin of `gram_loss`."""
    return self_supervised_loss(problem.centered(queries) @ problem.weights(x), problem.k).mean()


BATCH_LOSSES: dict[str, BatchLoss] = {"gram": gram_loss, "scores": score_loss}
