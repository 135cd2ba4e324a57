"""Grad-Dot: inner products of gradients, no curvature."""

from __future__ import annotations

from collections.abc import Iterator

from whence.gradients import loss_products
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock


def grad_dot(inputs: Inputs) -> Result:
    """o_q a_q . b_i: the direction of one infinitesimal step; only ranks, since it knows no learning rate.

    Cost:
        See `loss_products`: one forward and backward pass, and no row of all parameters where every layer has a rule.
    Reference:
        Charpiat et al. (2019), arXiv:2102.13262; one checkpoint of Pruthi et al. (2020), arXiv:2002.08484, eq. (1).
    """

    def blocks() -> Iterator[ScoreBlock]:
        for part, products in loss_products(inputs.task, inputs.train, inputs.query_gradients):
            yield ScoreBlock(part, inputs.orientation * products)

    return Result(blocks)


GRAD_DOT = Preset("grad_dot", "inner product of gradients", grad_dot)
