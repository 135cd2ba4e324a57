"""TRAK with the final model only: projected gradients of the model's output, and the inverse of their Gram matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from whence.algebra import Damping, Projection, pairwise
from whence.algebra.spectral import ROUNDING, ROUNDING_UNITS
from whence.checks import require_count
from whence.data import Examples
from whence.errors import InputError, NumericalError, UnsupportedError
from whence.gradients import loss_gradients, outputs_of, pull_back, slopes
from whence.methods.filters import damping_filter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.rng import derive_seed
from whence.scores import ScoreBlock
from whence.task import CrossEntropy, SquaredError, Task, working_dtype
from whence.task.losses import logit_margin

# Without a projection the Gram matrix is (n_params, n_params): 2 GiB in float64 at this size.
MAX_UNPROJECTED = 16_384


def trak(
    inputs: Inputs,
    *,
    dim: int | None = 512,
    seed: int = 0,
    n_projections: int = 1,
    projection: str = "rademacher",
    ridge: Damping | None = None,
) -> Result:
    """(o_q / n) m'_q phi_q^T (Phi^T Phi / n + ridge I)^-1 phi_i l'_i with phi = P^T grad f; only ranks.

    f is what the loss is a function of: for cross-entropy the margin log(p / (1 - p)) of the true class, for any loss
    of a single output that output. Squared error of c outputs has a phi for each of them and the sum over them in
    the place of each product. l'_i = d loss / d f and m'_q = d measure / d f, so phi_i l'_i is the projected loss
    gradient and m'_q phi_q that of the measure: positive supports, for regression and classification alike. (As
    published, f_q itself is explained and l'_i has its sign turned: the same scores for the measure "margin".)

    It is influence with the Hessian of the loss left out of the curvature and a random sketch in the place of damping.
    It degrades as `dim` comes near the number of train examples, and is noise without a ridge from there on.

    Args:
        inputs: Task, train set, queries.
        dim: Length k of phi; None for no projection, which a softmax classifier then needs a ridge for, because its
            margins do not change when one number is added to all logits.
        seed: Of the projections.
        n_projections: Scores are the mean over that many projections.
        projection: "rademacher" or "normal".
        ridge: In a mean over the train set; relative to the mean eigenvalue of Phi^T Phi / n. Default none.
    Raises:
        InputError: An option has no such value, or the Gram matrix would be too large without a projection.
        NumericalError: The Gram matrix is singular and there is no ridge.
        UnsupportedError: The loss is no function of a known model output.
    Cost:
        One pass of gradients (with squared error one for each output), n n_params k n_projections products, and k^3
        for each projection; memory n k n_projections. Without a projection two passes, and memory n_params^2.
    Reference:
        Park et al. (2023), arXiv:2303.14186, with one model (M = 1).
    """
    train, n = inputs.train, inputs.n_train
    output = ModelOutput.of(inputs.task, train)
    maps = _maps(inputs.task.layout.n_params, dim, seed, n_projections, projection)
    if ridge is not None:
        damping_filter(ridge)  # refuses a number without a unit
    else:
        _require_enough_rows(maps[0], output, n)
    dtype = working_dtype(inputs.task.model)
    features = Features.of(inputs.task, train, output, maps, dtype)
    side = inputs.query_gradients_in(dtype)
    directions, shifts = [], []
    for one, gram, square in zip(maps, features.grams, features.mean_squares, strict=True):
        spectrum = GramSpectrum.of(gram, n, dtype)
        shifts.append(0.0 if ridge is None else spectrum.resolve(ridge, square))
        directions.append(inputs.orientation / n * spectrum.solve(one(side), shifts[-1]))

    def blocks() -> Iterator[ScoreBlock]:
        for part, rows in features.gradients():
            each = [pairwise(d, r) for d, r in zip(directions, rows, strict=True)]  # one for each projection
            yield ScoreBlock(part, torch.stack(each).mean(0))

    settings = {"dim": dim, "seed": seed, "n_projections": n_projections, "projection": projection}
    asked = None if ridge is None else ridge.to_dict()
    return Result(blocks, {**settings, "model_output": output.name, "ridge": asked, "resolved_ridge": shifts})


@dataclass(frozen=True, eq=False)
class ModelOutput:
    """f of every train example, by its slope: r numbers for each example, functions of its c model outputs.

    Attributes:
        name: "margin" or "output".
        cotangents: (n, r, c), d f / d outputs.
        loss_slopes: (n, r), d loss / d f.
    """

    name: str
    cotangents: Tensor
    loss_slopes: Tensor

    @classmethod
    def of(cls, task: Task, train: Examples) -> ModelOutput:
        """The output function that the task's loss is a function of.

        Raises:
            UnsupportedError: There is none.
        """
        now = outputs_of(task, train, dtype=torch.float64)
        if isinstance(task.loss, CrossEntropy):
            target = task.loss.target
            margins = slopes(lambda z, batch: logit_margin(z, target(batch)), now, train)
            batch = train.all()
            labels = target(batch).to(now.device)
            # loss = log(1 + exp(-margin)): its slope is -(1 - p), without the difference that rounds to 0.
            return cls("margin", margins[:, None], -torch.sigmoid(-logit_margin(now, labels))[:, None])
        slope = slopes(task.loss, now, train)
        n_outputs = slope.shape[1]
        if n_outputs == 1 or isinstance(task.loss, SquaredError):
            each = torch.eye(n_outputs, dtype=now.dtype, device=now.device).expand(len(train), -1, -1)
            return cls("output", each, slope)
        raise UnsupportedError(
            "trak needs a model output that the loss is a function of: the margin for cross-entropy, or the outputs "
            f"for squared error or a model with one output. For the loss {task.loss.name!r} of {n_outputs} outputs "
            "none is known. Build the task with Task.classification or Task.regression, or use grad_dot, or "
            "influence_gn with `output_hessian=` in the task."
        )

    @property
    def n_rows(self) -> int:
        """Rows of Phi."""
        return self.loss_slopes.numel()


@dataclass(frozen=True)
class Map:
    """P^T of one projection, or nothing at all."""

    n_params: int
    projection: Projection | None

    @property
    def dim(self) -> int:
        """Length of phi."""
        return self.n_params if self.projection is None else self.projection.dim

    def __call__(self, rows: Tensor) -> Tensor:
        return rows.double() if self.projection is None else self.projection.project(rows)


@dataclass(frozen=True, eq=False)
class Features:
    """What the scores need of the train set, for each projection.

    Attributes:
        task: Model and loss.
        train: Train examples.
        dtype: Precision of gradients.
        grams: Phi^T Phi / n, (k, k) each, float64.
        mean_squares: Mean squared entry of phi_i l'_i.
        kept: (slice, phi_i l'_i (b, k) for each projection); None without a projection, where they are computed anew.
    """

    task: Task
    train: Examples
    dtype: torch.dtype
    grams: list[Tensor]
    mean_squares: list[float]
    kept: list[tuple[slice, list[Tensor]]] | None

    @classmethod
    def of(cls, task: Task, train: Examples, output: ModelOutput, maps: Sequence[Map], dtype: torch.dtype) -> Features:
        """One pass over the train set."""
        n, device = len(train), task.device
        grams = [torch.zeros(one.dim, one.dim, dtype=torch.float64, device=device) for one in maps]
        squares = [0.0 for _ in maps]
        kept: list[tuple[slice, list[Tensor]]] = []
        for part, rows in pull_back(task, train, output.cotangents, dtype=dtype):
            found = []
            for k, one in enumerate(maps):
                phi = one(rows.flatten(0, 1))
                grams[k] += phi.T @ phi / n
                phi = phi.reshape(*rows.shape[:2], -1)
                found.append(torch.einsum("brk,br->bk", phi, output.loss_slopes[part].to(phi.device)))
                squares[k] += float(found[k].square().sum()) / (n * one.dim)
            if maps[0].projection is not None:
                kept.append((part, found))
        return cls(task, train, dtype, grams, squares, kept or None)

    def gradients(self) -> Iterator[tuple[slice, list[Tensor]]]:
        """(slice of examples, phi_i l'_i (b, k) for each projection)."""
        if self.kept is not None:
            yield from self.kept
            return
        for part, rows in loss_gradients(self.task, self.train, dtype=self.dtype):
            yield part, [rows.double()]


@dataclass(frozen=True, eq=False)
class GramSpectrum:
    """Phi^T Phi / n in its eigenbasis.

    Attributes:
        eigenvalues: (k,), ascending, not negative.
        vectors: (k, k), one eigenvector a column.
        n_train: For messages.
        rounding: What is 0 up to rounding.
    """

    eigenvalues: Tensor
    vectors: Tensor
    n_train: int
    rounding: float

    @classmethod
    def of(cls, gram: Tensor, n_train: int, dtype: torch.dtype) -> GramSpectrum:
        """Diagonalise; `dtype` is the precision of the gradients."""
        values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
        # Errors of the gradients are squared in a Gram matrix, those of its own sums are not.
        units = max(ROUNDING, (ROUNDING_UNITS * torch.finfo(dtype).eps) ** 2)
        # `eigh` returns tiny negatives for a Gram matrix: clamp, or a small ridge would meet a pole.
        return cls(values.clamp_min(0.0), vectors, n_train, units * max(float(values[-1]), 0.0))

    def resolve(self, ridge: Damping, mean_square: float) -> float:
        """The ridge as a number."""
        return ridge.resolve(mean_eigenvalue=float(self.eigenvalues.mean()), mean_square_gradient=mean_square)

    def solve(self, rows: Tensor, shift: float) -> Tensor:
        """(Phi^T Phi / n + shift I)^-1 applied to rows (m, k).

        Raises:
            NumericalError: The matrix is singular and `shift` too small to mend it.
        """
        rank, dim = int((self.eigenvalues + shift > self.rounding).sum()), len(self.eigenvalues)
        if rank < dim:
            raise NumericalError(
                f"TRAK's Gram matrix of dim = {dim} over n_train = {self.n_train} examples has rank {rank}: without a "
                "ridge that is larger than rounding its inverse is noise. Pass a smaller `dim` (below the rank), or "
                "`ridge=Damping.relative(0.1)`."
            )
        solved: Tensor = (rows @ self.vectors / (self.eigenvalues + shift)) @ self.vectors.T
        return solved


def _maps(n_params: int, dim: int | None, seed: int, n_projections: int, kind: str) -> list[Map]:
    require_count(n_projections, "n_projections")
    require_count(seed, "seed", minimum=0)
    if dim is not None:
        seeds = [derive_seed(seed, "trak", k) for k in range(n_projections)]
        return [Map(n_params, Projection(n_params, dim, one, kind)) for one in seeds]
    if n_projections > 1:
        raise InputError(f"`dim=None` asks for no projection, `n_projections={n_projections}` for several; give one.")
    if n_params > MAX_UNPROJECTED:
        raise InputError(
            f"`dim=None` would need a Gram matrix of {n_params} x {n_params}; up to {MAX_UNPROJECTED} parameters are "
            "done without a projection. Pass `dim`, for instance 512, or use influence_gn, which has a dual form."
        )
    return [Map(n_params, None)]


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
