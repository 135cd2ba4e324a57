"""Grad-Cos: cosines of gradients, no curvature."""

from __future__ import annotations

from collections.abc import Iterator

from whence.algebra import pairwise_cosine
from whence.gradients import loss_gradients
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock


def grad_cos(inputs: Inputs) -> Result:
    """o_q cos(a_q, b_i). A gradient of exactly zero has no direction; its scores are 0, as its influence is.

    Cost:
        As `grad_dot`.
    Reference:
        Charpiat et al. (2019), arXiv:2102.13262.
    """

    def blocks() -> Iterator[ScoreBlock]:
        for part, rows in loss_gradients(inputs.task, inputs.train):
            cosines = pairwise_cosine(inputs.query_gradients, rows)
            flat = (inputs.query_gradients.norm(dim=1) == 0)[:, None] | (rows.norm(dim=1) == 0)
            yield ScoreBlock(part, inputs.orientation * cosines.masked_fill(flat, 0.0))

    return Result(blocks)


GRAD_COS = Preset("grad_cos", "cosine of gradients", grad_cos, normalise=True, linear_in_w=False)
