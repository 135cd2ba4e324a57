"""Grad-Cos: cosines of gradients, no curvature."""

from __future__ import annotations

from collections.abc import Iterator

from whence.gradients import loss_gradients
from whence.methods.cosines import cosines_or_zero
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
            yield ScoreBlock(part, inputs.orientation * cosines_or_zero(inputs.query_gradients, rows))

    return Result(blocks)


GRAD_COS = Preset("grad_cos", "cosine of gradients", grad_cos, normalise=True, linear_in_w=False)
