"""LoGra: layer gradients projected from both sides, and the inverse of each layer's projected Fisher matrix."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from whence.algebra import Damping, PrimalSpectrum, pairwise
from whence.errors import UnsupportedError
from whence.methods.filters import damping_filter
from whence.methods.inputs import Inputs
from whence.methods.layer_codes import LayerCodes
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock

DEFAULT_DAMPING = Damping.relative(0.1)
LARGEST = 16_384  # of one layer's code: its Fisher matrix is then 2 GiB


def logra(inputs: Inputs, *, rank: int = 16, damping: Damping | None = None, seed: int = 0) -> Result:
    """(o_q / n) sum_l z_ql^T (H_l + lam_l I)^-1 z_il with z_l = vec(P_o^T G_l P_i), H_l = mean_i z_il z_il^T; ranks.

    G_l is the gradient of layer l's weight (o, i), its bias one more column; P_o and P_i are normal, with at most
    `rank` columns. So the empirical Fisher matrix of a layer is taken in rank^2 directions, and different layers as
    independent. Embeddings, norms and bare parameters take no part; the settings name them.

    Args:
        inputs: Task, train set, queries.
        rank: Of each side. The paper's is 64, which keeps 4,096 numbers a layer and example. A side no longer than
            that is not projected.
        damping: lam_l; "relative" and "mean_square_gradient" mean the same here: times the mean eigenvalue of H_l.
            Default a tenth of it. A layer whose codes are all zero takes no part.
        seed: Of the projections.
    Raises:
        InputError: An option has no such value.
        UnsupportedError: No layer can be projected from both sides, or codes would be longer than 16,384.
    Cost:
        One pass over the train set; n sum_l k_l numbers in memory with k_l <= rank^2; k_l^3 for each layer.
    Reference:
        Choe et al. (2024), arXiv:2405.13954.
    """
    asked = DEFAULT_DAMPING if damping is None else damping
    damping_filter(asked)  # refuses a number without a unit
    codes = LayerCodes.of(inputs.task, inputs.train, rank, seed)
    require_small(codes)
    kept = list(codes.of_train(inputs.train, "layer gradients"))
    shifts, directions = [], []
    for layer, side in enumerate(codes.of_rows(inputs.query_gradients_in(codes.dtype))):
        fisher = second_moment([found[layer] for _, found in kept])
        solved, shift = _solved(fisher, side, asked)
        directions.append(inputs.orientation / inputs.n_train * solved)
        shifts.append(shift)
    whole = torch.cat(directions, 1)

    def blocks() -> Iterator[ScoreBlock]:
        for part, found in kept:
            yield ScoreBlock(part, pairwise(whole, torch.cat(found, 1)))

    resolved = {site.weight: shift for site, shift in zip(codes.sites, shifts, strict=True)}
    return Result(blocks, {**codes.describe(), "damping": asked.to_dict(), "resolved_damping": resolved})


def require_small(codes: LayerCodes) -> None:
    """Refuse matrices of codes that would not fit."""
    longest = max(codes.dims)
    if longest <= LARGEST:
        return
    site = codes.sites[codes.dims.index(longest)]
    raise UnsupportedError(
        f"rank={codes.rank} makes codes of {longest} numbers for {site.weight!r}, and a matrix of their squares; up to "
        f"{LARGEST} are done. Use a smaller rank, for instance {int(LARGEST**0.5)}."
    )


def second_moment(blocks: list[Tensor]) -> Tensor:
    """Mean of z z^T over all rows of the blocks (b, k): (k, k), float64."""
    total = torch.zeros(blocks[0].shape[1], blocks[0].shape[1], dtype=torch.float64, device=blocks[0].device)
    for rows in blocks:
        total += (rows.T @ rows).double()
    return total / sum(len(rows) for rows in blocks)


def _solved(fisher: Tensor, rows: Tensor, damping: Damping) -> tuple[Tensor, float | None]:
    """(H + lam I)^-1 of rows (m, k), float64, and lam; zeros where H is zero."""
    mean = float(fisher.diagonal().mean())
    if mean == 0:
        return torch.zeros_like(rows, dtype=torch.float64), None
    shift = damping.resolve(mean_eigenvalue=mean, mean_square_gradient=mean)
    spectrum = PrimalSpectrum.from_matrix(fisher)
    inverse = 1 / (spectrum.eigenvalues.clamp_min(0.0) + shift)
    return (rows.double() @ spectrum.vectors * inverse) @ spectrum.vectors.T, shift


LOGRA = Preset(
    "logra",
    "layer gradients projected from both sides, inverse of their Fisher matrix (LoGra)",
    logra,
    curvature="projected empirical Fisher by layer",
    filter="damped_inverse",
)
