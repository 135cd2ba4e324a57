"""Representer points: the last layer's own kernel, weighted by how much each example still pulls on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from whence.algebra import pairwise
from whence.errors import InputError, UnsupportedError
from whence.gradients import outputs_of, slopes
from whence.methods.embedding_cosine import embeddings
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.whole import whole
from whence.task import Task


def representer(inputs: Inputs) -> Result:
    """o_q <m'_q, l'_i> <h_q, h_i>: slopes in the outputs times features, a baseline that knows the last layer only.

    h is the embedding: `task.embedding`, or the input of the model's last linear layer, which must give the outputs.
    l'_i and m'_q are the slopes of loss and measure in the outputs. It is the gradient product of that layer's weight.
    Its bias is left out, as in the theorem, whose kernel is that of the features: a model in which the bias matters
    can put a constant into `task.embedding`.

    The published value of example i for the output c of query q, alpha_ic <h_q, h_i> with
    alpha_i = -l'_i / (2 lambda n), is this score for the output c as measure, over 2 lambda n. It decomposes the output
    only if the last layer is refitted to a stationary point with decay lambda. Here nothing is refitted, so it ranks.

    Raises:
        InputError: There is no embedding, or the last linear layer does not give the outputs.
        ShapeError: The embedding has not one row for each example.
        UnsupportedError: The outputs of an example are no single vector.
    Cost:
        Two forward passes.
    Reference:
        Yeh et al. (2018), arXiv:1811.09720: the representer theorem.
    """
    task = inputs.task
    train = outputs_of(task, inputs.train, dtype=torch.float64)
    queries = outputs_of(task, inputs.queries, dtype=torch.float64)
    _require_last_layer(task, train)
    alignment = pairwise(slopes(task.measure, queries, inputs.queries), slopes(task.loss, train, inputs.train))
    kernel = pairwise(embeddings(task, inputs.queries), embeddings(task, inputs.train))
    return whole(inputs.orientation * alignment * kernel, {"embedding": "own" if task.embedding else "last linear"})


def _require_last_layer(task: Task, outputs: Tensor) -> None:
    if outputs.ndim > 2:
        raise UnsupportedError(
            f"representer needs one vector of outputs for each example, (b, c); got {tuple(outputs.shape)}. Sequences "
            "share no single embedding: use grad_dot."
        )
    n_outputs = outputs[0].numel()
    layers = [m for m in task.model.modules() if isinstance(m, nn.Linear)]
    if task.embedding is None and layers and layers[-1].out_features != n_outputs:
        raise InputError(
            f"The model's last nn.Linear has {layers[-1].out_features} outputs and the model {n_outputs}, so it is not "
            "the layer that gives them. Pass `embedding=` to the task: what the output layer sees, `(model, batch) -> "
            "(b, d)`."
        )


REPRESENTER = Preset(
    "representer",
    "last-layer kernel times the slopes of loss and measure",
    representer,
    curvature="none",
    filter="none",
    train_side="slope of the loss times the embedding",
    linear_in_w=False,
    baseline=True,
)
