"""The published way: stochastic descent on a softmax of free parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from whence.checks import look_up, require_count, require_positive
from whence.errors import InputError
from whence.rng import torch_generator
from whence.weights.objective import Objective, self_supervised_loss
from whence.weights.quotient import loss_for_signal
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
    watch: float = 0.0,
    patience: int = 3,
    seed: int = 0,
) -> Solution:
    """AdamW on logits, x = softmax(logits), from uniform scaled weights; learning rate on a cosine to zero.

    The top-k sets are taken anew in every step and are constants within it. With `watch` some queries are not descended
    on: every pass over the others their loss is looked at, and the weights of its lowest point are returned, which may
    be those of the start. Long descent fits the noise of the queries where influence has no heavy tail.

    Args:
        problem: Contributions of the learning queries.
        steps: Optimizer steps. A few full-batch steps, as in some ports, move nothing: each changes a logit by `lr`.
        lr: Learning rate.
        batch_size: Queries in a step, drawn epoch by epoch without replacement.
        weight_decay: Of the logits, a pull to uniform.
        norm_from: "gram": norms from the matrices B_q; "scores": from the scores of all train examples, as published.
            The same numbers to rounding.
        watch: Share of the queries for early stopping; 0 makes all steps. (Scales of groups are of all queries.)
        patience: Looks without a lower loss after which it stops.
        seed: Of the order of the queries.
    Returns:
        Weights; `facts` say after how many steps they were taken, and of how many.
    Raises:
        InputError: `watch` is not a share that leaves queries on both sides.
    Cost:
        Per step a product of batch_size x n_train x n_groups, with "scores" also its backward pass.
    Reference:
        Li et al. (2026), arXiv:2506.05647, algorithm 1; rate, steps and batches are this project's.
    """
    require_count(steps, "steps")
    require_count(batch_size, "batch_size")
    require_positive(lr, "lr")
    batch_loss = look_up(BATCH_LOSSES, norm_from, "norm_from")
    require_count(patience, "patience")
    used, watched = _split(problem.shape[0], watch)
    alive = problem.scale > 0
    logits = torch.zeros(int(alive.sum()), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([logits], lr=lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    looks = _Looks(problem, watched, every=-(-len(used) // batch_size), patience=patience)
    for step, batch in enumerate(_batches(len(used), batch_size, steps, seed)):
        if looks.enough(step, _weights(logits.detach(), alive)):
            break
        optimizer.zero_grad()
        batch_loss(problem, _weights(logits, alive), used[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    else:
        looks.last(steps, _weights(logits.detach(), alive))
    facts: dict[str, Any] = {"steps": looks.best_step, "lr": lr, "batch_size": batch_size}
    if len(watched):
        facts |= {"of_steps": steps, "watched": len(watched)}
    return Solution(problem.weights(looks.best), facts)


class _Looks:
    """Early stopping: the loss on the watched queries after every so many steps, and the weights where it was lowest.

    Without watched queries the last weights are the best.
    """

    def __init__(self, problem: Objective, watched: Tensor, *, every: int, patience: int) -> None:
        self._problem, self._watched, self._every, self._patience = problem, watched, every, patience
        self._lowest, self._poorer = math.inf, 0
        self.best, self.best_step = problem.start(), 0

    def enough(self, step: int, x: Tensor) -> bool:
        """Whether the last `patience` looks were all poorer than the best."""
        if len(self._watched) and step % self._every == 0:
            self._look(step, x)
        return self._poorer == self._patience

    def last(self, step: int, x: Tensor) -> None:
        """The weights after all steps."""
        if len(self._watched):
            self._look(step, x)
        else:
            self.best, self.best_step = x, step

    def _look(self, step: int, x: Tensor) -> None:
        loss = float(gram_loss(self._problem, x, self._watched))
        self._poorer += 1
        if loss < self._lowest:
            self._lowest, self._poorer, self.best, self.best_step = loss, 0, x, step


def _split(n_query: int, watch: float) -> tuple[Tensor, Tensor]:
    """Positions of the queries to descend on, and of those to watch, evenly spaced among them."""
    count = round(watch * n_query)
    if not 0 <= watch < 1 or (watch > 0 and not 0 < count < n_query):
        raise InputError(
            f"`watch` must be a share in [0, 1) that leaves some of the {n_query} queries on both sides; got {watch!r}."
        )
    watched = torch.zeros(n_query, dtype=torch.bool)
    watched[[q * n_query // count for q in range(count)]] = True
    return (~watched).nonzero().flatten(), watched.nonzero().flatten()


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
    return loss_for_signal(problem.gram[queries], problem.signal(x, queries), x)


def score_loss(problem: Objective, x: Tensor, queries: Tensor) -> Tensor:
    """Mean loss of some queries through the scores of all train examples: the slow twin of `gram_loss`."""
    scores = problem.centered(queries) @ problem.weights(x)
    return self_supervised_loss(scores, problem.k, two_sided=problem.two_sided).mean()


BATCH_LOSSES: dict[str, BatchLoss] = {"gram": gram_loss, "scores": score_loss}
