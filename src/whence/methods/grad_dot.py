"""Grad-Dot: inner products of gradients, no curvature."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from whence.gradients import gradient_products, loss_products
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock


def grad_dot(inputs: Inputs) -> Result:
    """o_q a_q . b_i: the direction of one infinitesimal step; only ranks, since it knows no learning rate.

    Cost:
        See `gradient_products`; with weights of parameter groups `loss_products`. Where every layer has a rule, one
        forward and backward pass, and no row of all parameters of a train example.
    Reference:
        Charpiat et al. (2019), arXiv:2102.13262; one checkpoint of Pruthi et al. (2020), arXiv:2002.08484, eq. (1).
    """

    def found() -> Iterator[tuple[slice, Tensor]]:
        if inputs.is_plain:
            return gradient_products(inputs.task, inputs.queries, inputs.train)
        return loss_products(inputs.task, inputs.train, inputs.query_gradients)

    def blocks() -> Iterator[ScoreBlock]:
        for part, products in found():
            yield ScoreBlock(part, inputs.orientation * products)

    return Result(blocks)


GRAD_DOT = Preset("grad_dot", "inner product of gradients", grad_dot)
