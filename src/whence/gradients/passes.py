"""A data set in blocks, each with one recorded forward pass and the backward passes that a consumer asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from whence.batches import Batch, cast_batch
from whence.data import Examples
from whence.gradients.hooks import rows_of
from whence.gradients.layer_pass import LayerGradient, LayerPass
from whence.gradients.plan import HookPlan
from whence.gradients.route import n_outputs
from whence.task import Task, model_state

PASS_EXAMPLES = 128  # of one forward pass, at most
OUTPUT_MEMORY = 16 * 2**20  # bytes of a block's outputs, of which about four copies live at once
# outputs (b, ...), batch, places in the data set -> (b, r, c) for c flattened outputs
Cotangents = Callable[[Tensor, Batch, slice], Tensor]


@final
@dataclass(frozen=True, eq=False)
class Block:
    """Some examples of a data set, passed through the model.

    Attributes:
        part: Their places in the data set.
        task: How the model is run.
        state: Tracked parameters; frozen parameters and buffers.
        batch: The examples.
        cotangents: (b, r, c), vectors in the space of the c flattened outputs.
        layers: The recorded pass.
    """

    part: slice
    task: Task
    state: tuple[dict[str, Tensor], dict[str, Tensor]]
    batch: Batch
    cotangents: Tensor
    layers: LayerPass

    @property
    def names(self) -> set[str]:
        """Parameters that `gradients` gives; the others need `rows_of`. Complete after the first backward pass."""
        return self.layers.names

    def gradients(self) -> Iterator[list[LayerGradient]]:
        """Per cotangent, what each call of each layer gets from it."""
        n_cotangents = self.cotangents.shape[1]
        for k in range(n_cotangents):
            yield self.layers.backward(self.cotangents[:, k], last=k + 1 == n_cotangents)

    def rows_of(self, names: Set[str]) -> dict[str, Tensor]:
        """Gradients (b, r, *shape) of some parameters without the help of layers."""
        return rows_of(self.task, *self.state, self.batch, self.cotangents, names)


def blocks(
    task: Task,
    examples: Examples,
    cotangents: Cotangents,
    plan: HookPlan,
    *,
    dtype: torch.dtype,
    size: int | None = None,
) -> Iterator[Block]:
    """Blocks of a data set, in order.

    Args:
        task: Model and contract, in eval mode.
        examples: `n` examples.
        cotangents: Made of the outputs of each block.
        plan: The layers to record.
        dtype: Precision.
        size: Examples of a block at most, default `PASS_EXAMPLES`; fewer where their outputs are large.
    """
    trainable, fixed = model_state(task.model, dtype)
    most = PASS_EXAMPLES if size is None else size
    for positions, found in examples.batches(min(most, fitting_outputs(task, examples, dtype))):
        part = slice(int(positions[0]), int(positions[-1]) + 1)
        batch = cast_batch(found, dtype, task.device)
        layers = LayerPass(task, trainable, fixed, batch, plan)
        v = cotangents(layers.outputs.detach(), batch, part).to(dtype)
        yield Block(part, task, (trainable, fixed), batch, v, layers)


def fitting_outputs(task: Task, examples: Examples, dtype: torch.dtype) -> int:
    """Examples whose outputs fit `OUTPUT_MEMORY`; at least one."""
    return max(1, OUTPUT_MEMORY // max(1, n_outputs(task, examples) * dtype.itemsize))


def slope_of(fn: Callable[[Tensor, Batch], Tensor]) -> Cotangents:
    """The derivative of a per-example scalar in that example's own outputs, (b, 1, c)."""

    def cotangents(outputs: Tensor, batch: Batch, part: slice) -> Tensor:
        leaf = outputs.detach().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(fn(leaf, batch).sum(), leaf)
        return slope.reshape(outputs.shape[0], 1, -1)

    return cotangents
