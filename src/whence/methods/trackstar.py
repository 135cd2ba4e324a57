"""TrackStar: scaled, projected, whitened layer gradients, compared by their cosine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from whence.algebra import Damping, PrimalSpectrum, pairwise
from whence.data import Examples
from whence.errors import InputError
from whence.gradients.sites import Site
from whence.methods.filters import damping_filter
from whence.methods.inputs import Inputs
from whence.methods.layer_codes import Codes, LayerCodes
from whence.methods.logra import require_small, second_moment
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock

DEFAULT_DAMPING = Damping.relative(0.01)
MATCHED = 1 / 65  # the pooled eigenvalue that both parts of R agree in: the paper's is the 1,000th of about 65,000


def trackstar(
    inputs: Inputs, *, rank: int = 16, mixture: float | None = None, damping: Damping | None = None, seed: int = 0
) -> Result:
    """o_q cos(z_q, z_i), z = R^-1/2 vec(P_o^T (G / sqrt(V)) P_i) of all layers; ranks.

    V is the factored second moment that Adafactor keeps, of single examples at the final model: V_oi = r_o c_i / mean
    r, with r and c the means of G^2 over columns and rows. R_l = mu R_l,queries + (1 - mu) R_l,train is the second
    moment of the projected gradients of a layer: directions that all queries share count less. So scores of a query
    depend on the queries beside it; `mixture=0` looks at the train set alone.

    Args:
        inputs: Task, train set, queries.
        rank: Of each side of a layer, as in `logra`.
        mixture: mu in [0, 1); default such that mu s_queries = (1 - mu) s_train, with s the 1 in 65th largest of all
            layers' eigenvalues.
        damping: Added to R_l, "relative" to its mean eigenvalue; default a hundredth of it.
        seed: Of the projections.
    Raises:
        InputError: An option has no such value.
        UnsupportedError: As in `logra`.
    Cost:
        Two passes over the train set, and memory as `logra`.
    Reference:
        Chang, Rajagopal, Bolukbasi, Dixon and Tenney (2024), arXiv:2410.17413, section 3.
    """
    asked = DEFAULT_DAMPING if damping is None else damping
    damping_filter(asked)  # refuses a number without a unit
    if mixture is not None and not 0 <= mixture < 1:
        raise InputError(f"`mixture` must be in [0, 1): the share of the queries' second moment; got {mixture}.")
    plain = LayerCodes.of(inputs.task, inputs.train, rank, seed)
    require_small(plain)
    codes = replace(plain, scales=_scales(plain, inputs.train))
    kept = list(codes.of_train(inputs.train, "layer gradients"))
    queries = codes.of_rows(inputs.unmapped.query_gradients_in(codes.dtype))
    of_train = [second_moment([found[layer] for _, found in kept]) for layer in range(len(codes.sites))]
    of_queries = [second_moment([side]) for side in queries]
    mu = _matching(of_queries, of_train) if mixture is None else mixture
    roots = [_inverse_root(mu * q + (1 - mu) * t, asked) for q, t in zip(of_queries, of_train, strict=True)]
    norms = _whitened(queries, roots).norm(dim=1)
    mapped = _whitened(codes.of_rows(inputs.query_gradients_in(codes.dtype)), roots)
    each = norms.repeat_interleave(len(mapped) // len(norms))[:, None]
    directions = inputs.orientation * torch.where(each > 0, mapped / each, 0.0)

    def blocks() -> Iterator[ScoreBlock]:
        for part, found in kept:
            white = _whitened(found, roots)
            lengths = white.norm(dim=1, keepdim=True)
            yield ScoreBlock(part, pairwise(directions, torch.where(lengths > 0, white / lengths, 0.0)))

    return Result(blocks, {**codes.describe(), "damping": asked.to_dict(), "mixture": mu})


def _scales(codes: LayerCodes, train: Examples) -> dict[Site, tuple[Tensor, Tensor]]:
    """1 / sqrt(V) as a product of a number for each input (i,) and each output (o,); 0 where V is."""
    sums: dict[Site, tuple[Tensor, Tensor]] = {}
    for _, factors in codes.factors(train, "second moments of gradients"):
        for site, (a, g) in factors.items():
            inputs, outputs = _squares(a.double(), g.double())
            known = sums.get(site)
            sums[site] = (inputs, outputs) if known is None else (known[0] + inputs, known[1] + outputs)
    return {site: _roots(inputs / len(train), outputs / len(train)) for site, (inputs, outputs) in sums.items()}


def _squares(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over examples of G^2 with G = sum_s g_s a_s^T, over outputs (i,) and over inputs (o,)."""
    of_outputs, of_inputs = g @ g.transpose(1, 2), a @ a.transpose(1, 2)  # (n, s, s)
    return ((of_outputs @ a) * a).sum((0, 1)), ((of_inputs @ g) * g).sum((0, 1))


def _roots(inputs: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """The two sides of 1 / sqrt(V), V_oi = outputs_o inputs_i / their sum, from sums of mean squares; 0 where V is."""
    shared = outputs.sum() ** 0.25
    of_inputs, of_outputs = (torch.where(x > 0, shared * x.rsqrt(), 0.0) for x in (inputs, outputs))
    return of_inputs, of_outputs


def _matching(of_queries: list[Tensor], of_train: list[Tensor]) -> float:
    """mu at which both second moments have the same 1 in 65th pooled eigenvalue; 0 where the queries have none."""
    levels = []
    for each in (of_queries, of_train):
        pooled = torch.cat([torch.linalg.eigvalsh(matrix) for matrix in each]).sort(descending=True).values
        levels.append(max(0.0, float(pooled[int(MATCHED * (len(pooled) - 1))])))
    of_q, of_t = levels
    return of_t / (of_q + of_t) if of_q > 0 else 0.0


def _inverse_root(matrix: Tensor, damping: Damping) -> Tensor:
    """(R + lam I)^-1/2, float64; zeros where R is zero."""
    mean = float(matrix.diagonal().mean())
    if mean == 0:
        return torch.zeros_like(matrix)
    shift = damping.resolve(mean_eigenvalue=mean, mean_square_gradient=mean)
    spectrum = PrimalSpectrum.from_matrix(matrix)
    return (spectrum.vectors * (spectrum.eigenvalues.clamp_min(0.0) + shift).rsqrt()) @ spectrum.vectors.T


def _whitened(codes: Codes, roots: list[Tensor]) -> Tensor:
    """R^-1/2 z of all layers, one after the other: (m, sum of k), float64."""
    return torch.cat([z.double() @ root for z, root in zip(codes, roots, strict=True)], 1)


TRACKSTAR = Preset(
    "trackstar",
    "cosine of scaled, projected and whitened layer gradients (TrackStar)",
    trackstar,
    curvature="projected second moment by layer",
    filter="inverse_root",
    normalise=True,
)
