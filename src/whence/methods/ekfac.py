"""Influence functions with Kronecker-factored curvature: K-FAC and EK-FAC."""

from __future__ import annotations

from collections.abc import Iterator

from whence.algebra import Damping
from whence.algebra.filters import ResolvableFilter
from whence.curvature import KroneckerSpectrum, fit_kronecker
from whence.gradients import loss_products
from whence.methods.filters import chosen_filter
from whence.methods.horizon import RecipeFilter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.scores import ScoreBlock


def kronecker_spectrum(inputs: Inputs, *, fisher: str, seed: int, corrected: bool) -> KroneckerSpectrum:
    """The fitted curvature, kept for other calls with the same inputs; see `fit_kronecker`."""
    return inputs.once(
        ("kronecker", fisher, seed, corrected),
        lambda: fit_kronecker(inputs.task, inputs.train, fisher=fisher, seed=seed, corrected=corrected),
    )


def _kronecker(
    inputs: Inputs,
    *,
    damping: Damping | None = None,
    filter: ResolvableFilter | RecipeFilter | None = None,
    fisher: str = "exact",
    seed: int = 0,
    corrected: bool,
) -> Result:
    chosen = chosen_filter(damping, filter, inputs.n_train)
    spectrum = kronecker_spectrum(inputs, fisher=fisher, seed=seed, corrected=corrected)
    used = spectrum.resolve(chosen)
    directions = inputs.orientation / inputs.n_train * spectrum.apply(used, inputs.query_gradients)

    def blocks() -> Iterator[ScoreBlock]:
        for part, products in loss_products(inputs.task, inputs.train, directions):
            yield ScoreBlock(part, products)

    return Result(blocks, {**used.describe(), **spectrum.facts})


def ekfac(
    inputs: Inputs,
    *,
    damping: Damping | None = None,
    filter: ResolvableFilter | RecipeFilter | None = None,
    fisher: str = "exact",
    seed: int = 0,
) -> Result:
    """(o_q / n) a_q^T f(C) b_i with C one Kronecker product a layer and its true diagonal in that basis.

    Layers are taken as independent. Embeddings, norms and other parameters without a Kronecker form have the diagonal
    of C; the settings say which, and how many percent of all parameters are left.

    Args:
        inputs: Task, train set, queries.
        damping: Default a tenth of C's mean eigenvalue, over all parameters; there is no damping per layer.
        filter: Instead of the damped inverse, for instance `horizon(recipe)` or `flow(time)`.
        fisher: "exact": the Gauss-Newton matrix, by as many backward passes as outputs. "sampled": one drawn label for
            each example; try several seeds. "empirical": the given labels.
        seed: Of drawn labels.
    Raises:
        See `fit_kronecker`.
    Cost:
        Two passes over the train set and an eigen-decomposition a layer, however many filters; then see
        `loss_products`.
    Reference:
        George et al. (2018), arXiv:1806.03884; for influence functions Grosse et al. (2023), arXiv:2308.03296.
    """
    return _kronecker(inputs, damping=damping, filter=filter, fisher=fisher, seed=seed, corrected=True)


def kfac(
    inputs: Inputs,
    *,
    damping: Damping | None = None,
    filter: ResolvableFilter | RecipeFilter | None = None,
    fisher: str = "exact",
    seed: int = 0,
) -> Result:
    """As `ekfac`, with the products of the factors' own eigenvalues instead of the measured diagonal.

    Cost:
        One pass less, unless some parameters have no Kronecker form.
    Reference:
        Martens and Grosse (2015), arXiv:1503.05671.
    """
    return _kronecker(inputs, damping=damping, filter=filter, fisher=fisher, seed=seed, corrected=False)


EKFAC = Preset(
    "ekfac",
    "influence function, Kronecker-factored curvature with its true diagonal (EK-FAC)",
    ekfac,
    curvature="ekfac",
    filter="damped_inverse",
    has_unit=True,
)
KFAC = Preset(
    "kfac",
    "influence function, Kronecker-factored curvature (K-FAC)",
    kfac,
    curvature="kfac",
    filter="damped_inverse",
    has_unit=True,
)
