"""Influence functions with the true Hessian, for small models."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from whence.algebra import Damping
from whence.curvature import fit_hessian
from whence.gradients import loss_gradients
from whence.methods.filters import damping_filter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock


def influence_hessian(inputs: Inputs, *, damping: Damping) -> Result:
    """(o_q / n) a_q^T (H + damping I)^-1 b_i with H the Hessian of the mean train loss.

    H of a network is indefinite away from a minimum: the damping must exceed its most negative eigenvalue, so it has
    no default.

    Raises:
        NotPositiveDefiniteError: H + damping I has a negative eigenvalue; the message names the smallest.
        UnsupportedError: More than 6,000 parameters.
    Cost:
        n_params Hessian-vector products over the train set, and one eigen-decomposition.
    Reference:
        Koh and Liang (2017), arXiv:1703.04730, eq. (2).
    """
    chosen = damping_filter(damping)
    spectrum = fit_hessian(inputs.task, inputs.train)
    used = chosen.resolve(mean_eigenvalue=spectrum.mean_eigenvalue)
    directions = spectrum.apply(used, inputs.query_gradients_in(torch.float64)) * inputs.orientation / inputs.n_train

    def blocks() -> Iterator[ScoreBlock]:
        for part, rows in loss_gradients(inputs.task, inputs.train, dtype=torch.float64):
            yield ScoreBlock(part, directions @ rows.T)

    return Result(blocks, {**used.describe(), "smallest_eigenvalue": float(spectrum.eigenvalues[0])})


INFLUENCE_HESSIAN = Preset(
    "influence_hessian",
    "influence function, exact damped inverse of the true Hessian (small models)",
    influence_hessian,
    curvature="hessian",
    filter="damped_inverse",
    has_unit=True,
)
