"""Fast path: one ordinary batched pass with hooks, and one rule a layer for the gradients of its parameters.

A hook at each layer keeps the input of every call; the backward pass stops at the outputs of these calls and never
forms a summed parameter gradient. Modules that use parameters without calling a layer run in parts that can be hooked
(`gradients/layers/composite.py`). Two probes of two and three examples find the layers for which this is right: those
that see the examples one after the other in their first dimension, and whose parameters are used nowhere else. All
other parameters take the vmap path, or the loop.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Set

import torch
from torch import Tensor

from whence.batches import Batch
from whence.gradients.layer_pass import LayerGradient, LayerPass
from whence.gradients.loop import pull_back_loop
from whence.gradients.plan import FAILURES, HookPlan, plan_hooks
from whence.gradients.vectorized import pull_back_vmap
from whence.task import ParameterLayout, Task


def pull_back_hooks(
    task: Task,
    trainable: dict[str, Tensor],
    fixed: dict[str, Tensor],
    batch: Batch,
    cotangents: Tensor,
    *,
    plan: HookPlan | None = None,
) -> Tensor:
    """`J_i^T v` for every example i and every cotangent v of it; same arguments and result as `pull_back_loop`.

    Wrong where a model reorders or routes its examples by their values in a way that the first three examples of the
    batch, or those that `plan` was made on, do not show. Outputs that mix the examples of a batch are refused by
    `check_gradients`.

    Args:
        task: How the model is run.
        trainable: Tracked parameters, named as in `task.layout`.
        fixed: Frozen parameters and buffers.
        batch: `b` examples.
        cotangents: (b, r, c), vectors in the space of the c flattened outputs.
        plan: What `plan_hooks` found on other examples of the same data; default found on this batch.
    Returns:
        (b, r, n_params).
    Cost:
        One forward and r backward passes of the batch, two small passes for the plan where it is not given, and r
        vmapped passes for parameters without a rule; memory b * r * n_params and the activations of b examples.
    """
    plan = plan_hooks(task, trainable, fixed, batch) if plan is None else plan
    rows = _Rows(task.layout, cotangents)
    ruled = _run_rules(task, trainable, fixed, batch, cotangents, plan, rows)
    for name, found in rows_of(task, trainable, fixed, batch, cotangents, trainable.keys() - ruled).items():
        rows.pieces[name].copy_(found)
    return rows.flat


class _Rows:
    """Rows (b, r, n_params) that are filled parameter by parameter."""

    def __init__(self, layout: ParameterLayout, cotangents: Tensor) -> None:
        self.flat = cotangents.new_empty(*cotangents.shape[:2], layout.n_params)
        pieces = torch.split(self.flat, list(layout.sizes), dim=-1)
        shaped = zip(layout.names, layout.shapes, pieces, strict=True)
        # Not `reshape`: `view` would rather fail than fill a copy.
        self.pieces = {name: piece.view(*self.flat.shape[:2], *shape) for name, shape, piece in shaped}
        self.started: set[tuple[str, int]] = set()

    def add(self, gradient: LayerGradient, k: int) -> None:
        """Add what a call contributes to the rows of cotangent k."""
        wanted = gradient.names
        places = {own: self.pieces[name][:, k] for own, name in wanted.items()}
        # The first contribution goes straight to its place: rows are large, and copies of them slow.
        again = {own for own, name in wanted.items() if (name, k) in self.started}
        targets = {own: torch.empty_like(place) if own in again else place for own, place in places.items()}
        gradient.fill(targets)
        for own in again:
            places[own] += targets[own]
        self.started.update((name, k) for name in wanted.values())

    def finish(self, names: Collection[str]) -> None:
        """Zero where nothing was added."""
        for name in names:
            for k in range(self.flat.shape[1]):
                if (name, k) not in self.started:
                    self.pieces[name][:, k].zero_()


def _run_rules(
    task: Task,
    trainable: dict[str, Tensor],
    fixed: dict[str, Tensor],
    batch: Batch,
    cotangents: Tensor,
    plan: HookPlan,
    rows: _Rows,
) -> set[str]:
    """Fill the rows of the parameters with a rule; returns their names."""
    if not plan.layers:
        return set()
    layers = LayerPass(task, trainable, fixed, batch, plan)
    n_cotangents = cotangents.shape[1]
    for k in range(n_cotangents):
        for gradient in layers.backward(cotangents[:, k], last=k + 1 == n_cotangents):
            rows.add(gradient, k)
    rows.finish(layers.names)
    return layers.names


def rows_of(
    task: Task,
    trainable: dict[str, Tensor],
    fixed: dict[str, Tensor],
    batch: Batch,
    cotangents: Tensor,
    names: Set[str],
) -> dict[str, Tensor]:
    """Rows (b, r, *shape) of some parameters by the vmap path, or by the loop where the model cannot be vmapped."""
    if not names:
        return {}
    part = copy.copy(task)
    kept = [(name, shape) for name, shape in zip(task.layout.names, task.layout.shapes, strict=True) if name in names]
    part.layout = ParameterLayout(tuple(name for name, _ in kept), tuple(shape for _, shape in kept))
    tracked = {name: trainable[name] for name, _ in kept}
    others = {**fixed, **{name: x for name, x in trainable.items() if name not in names}}
    try:
        found = pull_back_vmap(part, tracked, others, batch, cotangents)
    except FAILURES:
        # All of them: an example may go past these parameters, and autograd refuses outputs without any.
        part, found = task, pull_back_loop(task, trainable, fixed, batch, cotangents)
    pieces = part.layout.unflatten(found.detach())
    return {name: pieces[name] for name in tracked}
