"""TRAK: projected gradients of the model's output, and the inverse of their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from whence.algebra import Damping, Projection, pairwise
from whence.checks import require_count
from whence.errors import InputError, NumericalError
from whence.methods.checkpoints import Checkpoint, Models
from whence.methods.filters import damping_filter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.methods.trak_features import Features, Map
from whence.methods.trak_output import ModelOutput
from whence.progress import stage
from whence.rng import derive_seed
from whence.scores import ScoreBlock
from whence.task import ParameterLayout, working_dtype

# Without a projection the Gram matrix is (n_params, n_params): 2 GiB in float64 at this size.
MAX_UNPROJECTED = 16_384


def trak(
    inputs: Inputs,
    *,
    dim: int | None = 512,
    seed: int = 0,
    n_projections: int = 1,
    projection: str = "sparse",
    per_tensor: bool = False,
    ridge: Damping | None = None,
    checkpoints: Sequence[Checkpoint] | None = None,
) -> Result:
    """(o_q / n) l'_i mean_c [ m'_q phi_q^T (Phi^T Phi / n + ridge I)^-1 phi_i ](theta_c) with phi = P^T grad f; ranks.

    f is what the loss is a function of: for cross-entropy the margin log(p / (1 - p)) of the true class, for any loss
    of a single output that output. Squared error of c outputs has a phi for each of them and the sum over them in
    the place of each product. l'_i = d loss / d f is the mean over checkpoints by itself, m'_q = d measure / d f
    is not, so that m'_q phi_q is the projected gradient of any measure. With one model phi_i l'_i is the projected loss
    gradient: positive supports, for regression and classification alike. (As published, f_q itself is explained and
    l'_i has its sign turned: the same scores for the measure "margin".)

    It is influence with the Hessian of the loss left out of the curvature and a random sketch in the place of damping.
    It degrades as `dim` comes near the number of train examples, and is noise without a ridge from there on.

    Args:
        inputs: Task, train set, queries; weights of parameter groups apply at every checkpoint.
        dim: Length k of phi; None for no projection, which a softmax classifier then needs a ridge for, because its
            margins do not change when one number is added to all logits.
        seed: Of the projections; every checkpoint has its own.
        n_projections: Scores are the mean over that many projections of each model.
        projection: "sparse", "rademacher" or "normal"; see `Projection`. In `benchmarks.projections` the mean
            correlation with the scores without a projection differs by .003 or less between them, and "sparse" takes a
            sixth (26,000 parameters) to a thirtieth (840,000) of the time of "rademacher" at `dim=512`.
        per_tensor: Project each parameter tensor by itself to `dim` numbers, or take it whole where it has no more, and
            give each an inverse of its own: scores are then a sum over tensors without cross terms. Weights of
            parameter groups apply either way; with one inverse for all they weigh the query side only.
        ridge: In a mean over the train set; relative to the mean eigenvalue of Phi^T Phi / n. Default none.
        checkpoints: State dicts of the task's model, or files of them (`.safetensors`, `.pt`), read one at a time: as
            published, models trained from other starts or on other parts of the train set. Default the final model.
    Raises:
        DataError: A file cannot be read or does not fit the model; before any gradient.
        InputError: An option has no such value, a state dict does not fit the model, or the Gram matrix would be too
            large without a projection; before any gradient.
        NonFiniteError: A checkpoint holds NaN or infinity.
        NumericalError: The Gram matrix is singular and there is no ridge.
        UnsupportedError: The loss is no function of a known model output.
    Cost:
        For each checkpoint one pass of gradients (with squared error one for each output); for each projection of it n
        n_params additions (sparse; dense kinds k times as many products), n k^2 + k^3 products and memory n k. Without
        a projection two passes, memory n_params^2 and every checkpoint at once. `per_tensor` has one such projection
        for each tensor.
    Reference:
        Park et al. (2023), arXiv:2303.14186, eq. (17).
    """
    train, n = inputs.train, inputs.n_train
    layout, dtype = inputs.task.layout, working_dtype(inputs.task.model)
    maps = _maps(layout, dim, seed, n_projections, projection, per_tensor=per_tensor)
    if ridge is not None:
        damping_filter(ridge)  # refuses a number without a unit
    models = Models.of(inputs, checkpoints)
    outputs = [ModelOutput.of(task, train) for task in models]
    loss_slopes = torch.stack([output.loss_slopes for output in outputs]).mean(0)
    for one in maps if ridge is None else ():
        _require_enough_rows(one, outputs[0], n)
    members, directions, shifts = [], [], []
    with stage("models", total=len(models), unit="models") as progress:
        for c, (task, output) in enumerate(zip(models, outputs, strict=True)):
            first = c * n_projections
            own = maps if c == 0 else _maps(layout, dim, seed, n_projections, projection, per_tensor, first=first)
            features = Features.of(task, train, output, loss_slopes, own, dtype)
            side = inputs.orientation / n * models.query_gradients(task, dtype)
            shifts += features.shifts(ridge)
            directions += features.solve([one(side) for one in own], shifts[-len(own) :])
            members.append(features)
            progress.advance()

    def blocks() -> Iterator[ScoreBlock]:
        for found in zip(*(features.gradients() for features in members), strict=True):
            part = found[0][0]
            rows = [phi for _, each in found for phi in each]  # one for each model, projection and, maybe, tensor
            products = torch.stack([pairwise(d, r) for d, r in zip(directions, rows, strict=True)])
            yield ScoreBlock(part, products.sum(0) / (len(models) * n_projections))

    settings = {"dim": dim, "seed": seed, "n_projections": n_projections, "projection": projection}
    settings["per_tensor"] = per_tensor
    asked = None if ridge is None else ridge.to_dict()
    resolved = {"model_output": outputs[0].name, "ridge": asked, "resolved_ridge": shifts}
    return Result(blocks, {**settings, **resolved, "checkpoints": models.marks})


def _maps(
    layout: ParameterLayout,
    dim: int | None,
    seed: int,
    n_projections: int,
    kind: str,
    per_tensor: bool = False,
    *,
    first: int = 0,
) -> list[Map]:
    """The projections of one model; `first` counts those of models before it."""
    require_count(n_projections, "n_projections")
    require_count(seed, "seed", minimum=0)
    if dim is None and n_projections > 1:
        raise InputError(f"`dim=None` asks for no projection, `n_projections={n_projections}` for several; give one.")
    numbers = range(first, first + n_projections)
    if per_tensor:
        tensors = list(zip(layout.names, layout.sizes, layout.offsets, strict=False))
        return [_of_tensor(*tensor, dim, (seed, k), kind) for k in numbers for tensor in tensors]
    if dim is not None:
        seeds = [derive_seed(seed, "trak", k) for k in numbers]
        return [Map(layout.n_params, Projection(layout.n_params, dim, one, kind)) for one in seeds]
    _require_small(layout.n_params, "")
    return [Map(layout.n_params, None)]


def _of_tensor(name: str, size: int, offset: int, dim: int | None, seed: tuple[int, int], kind: str) -> Map:
    if dim is None or size <= dim:
        _require_small(size, f" of {name!r}")
        return Map(size, None, offset, whole=False)
    root, number = seed
    own = derive_seed(root, "trak", number, name)
    return Map(size, Projection(size, dim, own, kind), offset, whole=False)


def _require_small(n_params: int, of_what: str) -> None:
    if n_params > MAX_UNPROJECTED:
        raise InputError(
            f"`dim=None` would need a Gram matrix of {n_params} x {n_params}{of_what}; up to {MAX_UNPROJECTED} "
            "parameters are done without a projection. Pass `dim`, for instance 512, or use influence_gn, which has a "
            "dual form."
        )


def _require_enough_rows(one: Map, output: ModelOutput, n_train: int) -> None:
    """Refuse before any gradient what cannot have an inverse."""
    rows, n_params = output.n_rows, one.n_params
    if one.dim < rows and one.dim <= n_params:
        return
    what = f"dim = {one.dim}" if one.projection is not None else f"dim = None, that is {n_params} parameters"
    found = f"n_train = {n_train}" + (f" with {rows // n_train} outputs each" if rows > n_train else "")
    if one.dim > n_params:
        found += f" and {n_params} parameters"
    raise NumericalError(
        f"trak without a ridge needs fewer dimensions than rows of gradients, and no more than parameters; got {what} "
        f"for {found}: its Gram matrix is singular and its inverse noise. Pass `dim` well below "
        f"{min(rows, n_params + 1)}, or `ridge=Damping.relative(0.1)`."
    )


TRAK = Preset(
    "trak",
    "projected output gradients, inverse of their Gram matrix",
    trak,
    curvature="projected output Gram",
    filter="damped_inverse",
    train_side="projected loss gradient",
)
