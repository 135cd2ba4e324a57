"""Similarity of what the last layer sees: a baseline that knows inputs and features, but no training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from whence.batches import Batch, batch_size, cast_batch
from whence.data import Examples
from whence.errors import InputError, ShapeError
from whence.methods.cosines import cosines_or_zero
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.whole import whole
from whence.task import Task

BATCH = 4096


def embedding_cosine(inputs: Inputs) -> Result:
    """cos(e_q, e_i) of the embeddings: `task.embedding`, or the input of the model's last linear layer.

    Similar is taken for supporting; nothing in it can oppose for a reason. An embedding of zero scores 0.

    Raises:
        InputError: The task gives no embedding and the model has no linear layer.
        ShapeError: The embedding has not one row for each example.
    """
    queries, train = embeddings(inputs.task, inputs.queries), embeddings(inputs.task, inputs.train)
    return whole(cosines_or_zero(queries, train), {})


def embeddings(task: Task, examples: Examples) -> Tensor:
    """(n, d) embeddings of all examples."""
    blocks = []
    with torch.no_grad():
        for _, rows in examples.batches(BATCH):
            batch = cast_batch(rows, next(task.model.parameters()).dtype, task.device)
            found = _last_linear_input(task, batch) if task.embedding is None else task.embedding(task.model, batch)
            _require_rows(found, batch_size(batch))
            blocks.append(found.flatten(1).double())
    return torch.cat(blocks)


def _require_rows(found: Tensor, n: int) -> None:
    if found.ndim < 2 or found.shape[0] != n:
        raise ShapeError(
            f"The embedding of {n} examples must be ({n}, d); got {tuple(found.shape)}. Pass `embedding=` to the task: "
            "a callable `(model, batch) -> (b, d)`."
        )


def _last_linear_input(task: Task, batch: Batch) -> Tensor:
    layers = [m for m in task.model.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise InputError("This method needs an embedding: pass `embedding=` to the task (no nn.Linear was found).")
    seen: list[Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        task.outputs(task.model, batch)
    finally:
        hook.remove()
    if not seen:
        raise InputError("The model's last nn.Linear is not used in its forward pass; pass `embedding=` to the task.")
    return seen[-1]


EMBEDDING_COSINE = Preset(
    "embedding_cosine",
    "cosine of last-layer inputs",
    embedding_cosine,
    curvature="none",
    filter="none",
    train_side="embedding",
    normalise=True,
    linear_in_w=False,
    baseline=True,
)
