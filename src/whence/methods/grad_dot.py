"""Grad-Dot: inner products of gradients, no curvature."""

from __future__ import annotations

from collections.abc import Iterator

from whence.algebra import pairwise
from whence.gradients import loss_gradients
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock


def grad_dot(inputs: Inputs) -> Result:
    """o_q a_q . b_i: the direction of one infinitesimal step; only ranks, since it knows no learning rate.

    Cost:
        One pass of per-example gradients, in blocks.
    Reference:
        Charpiat et al. (2019), arXiv:2102.13262; one checkpoint of Pruthi et al. (2020), arXiv:2002.08484, eq. (1).
    """

    def blocks() -> Iterator[ScoreBlock]:
        for part, rows in loss_gradients(inputs.task, inputs.train):
            yield ScoreBlock(part, inputs.orientation * pairwise(inputs.query_gradients, rows))

    return Result(blocks)


GRAD_DOT = Preset("grad_dot", "inner product of gradients", grad_dot)
