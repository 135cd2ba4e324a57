"""LiSSA: a truncated Neumann series of the damped inverse, on batches drawn at random or on the whole train set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, final

import torch
from torch import Tensor

from whence.algebra import CallbackOperator, DampedInverse, Damping, FactorOperator, LanczosBasis, SymmetricOperator
from whence.algebra.spectral import rounding_tolerance
from whence.batches import Batch, cast_batch
from whence.checks import require_count, require_positive
from whence.curvature import KrylovForm, hessian_operator, hessian_products, matrix_free_product
from whence.data import Examples
from whence.errors import InputError, NotPositiveDefiniteError, NumericalError
from whence.gradients import can_vmap, loss_gradients, loss_products, pull_back
from whence.methods.filters import DEFAULT_DAMPING, damping_filter
from whence.methods.inputs import Inputs
from whence.methods.preset import Preset, Result
from whence.rng import torch_generator
from whence.scores import ScoreBlock
from whence.task import Task, model_state, working_dtype

LANCZOS_STEPS = 30  # a default scale has a margin of 2: a few percent are enough
PROBES = 8  # batches whose largest eigenvalues decide the default scale
GROWTH = 10.0  # slack over the norm that a convergent series cannot exceed, for the noise of drawn batches
EXAMPLES = 512  # examples a Hessian product differentiates at once


def lissa(
    inputs: Inputs,
    *,
    damping: Damping | None = None,
    depth: int = 5000,
    scale: float | None = None,
    batch_size: int | None = 128,
    repeats: int = 1,
    seed: int = 0,
) -> Result:
    """(o_q / n) x_q . b_i, where x_q comes near (C + damping I)^-1 a_q with C the Gauss-Newton curvature.

    h_0 = a_q; h_t = a_q + h_{t-1} - (C_B h_{t-1} + damping h_{t-1}) / scale with a new batch B in every step;
    x_q = h_depth / scale, averaged over `repeats`. With the whole train set as batch this is the Neumann series of
    depth + 1 terms: the horizon of depth + 1 steps of gradient descent with step size 1 / scale on C + damping. So the
    depth acts as damping too: eigenvalues below about scale / depth are not resolved.

    Args:
        inputs: Task, train set, queries.
        damping: Default a tenth of C's mean eigenvalue.
        depth: Number of steps; 5,000 is the published choice.
        scale: One over the step size. Default the largest eigenvalue, of C or of a few drawn batches' curvatures if
            that is larger, and damping. Half as much is the limit where the series on all examples diverges.
        batch_size: Examples drawn, with replacement, for each step; all queries share them. With None, or as many as
            there are train examples or more, every step takes the whole train set: nothing is drawn.
        repeats: Independent runs that are averaged; the whole train set is run once.
        seed: Of the draws.
    Raises:
        InputError: An option has no such value.
        NumericalError: The series diverges. Found before the first step where the largest eigenvalue tells, otherwise
            in the step that exceeds what a convergent series can reach; the message says which scale to use.
    Cost:
        depth * repeats products of `batch_size` examples' curvature with all queries, and 30 products of the whole
        curvature with one vector. Jacobian rows are kept where they fit 4 GiB.
    Reference:
        Agarwal, Bullins and Hazan (2017), arXiv:1602.03943; Koh and Liang (2017), arXiv:1703.04730, section 3.
    """
    plan = _Plan.checked(inputs.n_train, depth, scale, batch_size, repeats, seed)
    asked = DEFAULT_DAMPING if damping is None else damping
    chosen = damping_filter(asked)
    curvature = inputs.gauss_newton("krylov")
    assert isinstance(curvature.form, KrylovForm)
    used = curvature.resolve(chosen)
    assert isinstance(used, DampedInverse)
    return _solved(inputs, _GaussNewtonOfRows(curvature.form), used.damping, plan)


def lissa_hessian(
    inputs: Inputs,
    *,
    damping: Damping,
    depth: int = 5000,
    scale: float | None = None,
    batch_size: int | None = 128,
    repeats: int = 1,
    seed: int = 0,
) -> Result:
    """As `lissa`, with the true Hessian of the mean loss of each batch in the place of its Gauss-Newton matrix.

    The Hessian of a network is indefinite away from a minimum: the damping must exceed its most negative eigenvalue, so
    it has no default.

    Args:
        inputs: Task, train set, queries; any loss that can be differentiated twice.
        damping: Absolute, or `Damping.mean_square_gradient`; the mean eigenvalue of the Hessian is not computed.
        depth, scale, batch_size, repeats, seed: As in `lissa`.
    Raises:
        InputError: An option has no such value, or the damping is relative to the mean eigenvalue.
        NotPositiveDefiniteError: An eigenvalue below -damping was found.
        NumericalError: The series diverges; see `lissa`.
    Cost:
        depth * repeats Hessian-vector products of `batch_size` examples for each query, and 30 of the whole train set.
    Reference:
        Koh and Liang (2017), arXiv:1703.04730, section 3.
    """
    plan = _Plan.checked(inputs.n_train, depth, scale, batch_size, repeats, seed)
    damping_filter(damping)  # refuses a number without a unit
    if damping.unit == "relative":
        raise InputError(
            f"lissa_hessian got damping {damping}, but does not know the mean eigenvalue of the Hessian, which may be "
            "negative. Use `Damping.absolute(...)` or `Damping.mean_square_gradient(...)`."
        )
    dtype = working_dtype(inputs.task.model)
    statistic = _mean_square_gradient(inputs, dtype) if damping.unit == "mean_square_gradient" else None
    shift = damping.resolve(mean_square_gradient=statistic)
    return _solved(inputs, _HessianOfRows(inputs.task, inputs.train, dtype), shift, plan)


class _Curvature(Protocol):
    """Mean curvature of some of the train examples."""

    @property
    def operator(self) -> SymmetricOperator:
        """That of all."""
        ...

    def of_batch(self, positions: Tensor, rows: Tensor) -> Tensor:
        """That of the examples at `positions` (b,), repeats allowed, applied to rows (m, n_params)."""
        ...


@final
@dataclass(frozen=True)
class _Plan:
    """Checked options. `batch_size` is None where nothing is drawn."""

    n_train: int
    depth: int
    scale: float | None
    batch_size: int | None
    repeats: int
    seed: int

    @classmethod
    def checked(
        cls, n_train: int, depth: int, scale: float | None, batch_size: int | None, repeats: int, seed: int
    ) -> _Plan:
        """Refuse before any work what has no meaning."""
        require_count(depth, "depth")
        require_count(repeats, "repeats")
        require_count(seed, "seed", minimum=0)
        if scale is not None:
            require_positive(scale, "scale")
        if batch_size is not None:
            require_count(batch_size, "batch_size")
        if batch_size is None or batch_size >= n_train:
            return cls(n_train, depth, scale, None, 1, seed)
        return cls(n_train, depth, scale, batch_size, repeats, seed)

    def draws(self, *stream: object) -> Iterator[Tensor | None]:
        """Positions of one batch after another, without end; None for all examples."""
        generator = torch_generator(self.seed, "lissa", *stream)
        while True:
            if self.batch_size is None:
                yield None
            else:
                yield torch.randint(self.n_train, (self.batch_size,), generator=generator)


def _solved(inputs: Inputs, curvature: _Curvature, shift: float, plan: _Plan) -> Result:
    dtype = curvature.operator.dtype
    step = _Step.chosen(curvature, shift, plan)
    solved = step.average(inputs.query_gradients_in(dtype))
    directions = inputs.orientation / inputs.n_train * solved

    def blocks() -> Iterator[ScoreBlock]:
        for part, products in loss_products(inputs.task, inputs.train, directions, dtype=dtype):
            yield ScoreBlock(part, products)

    return Result(blocks, step.describe())


@final
@dataclass(frozen=True, eq=False)
class _Step:
    """One step of the series, and its repetition.

    Attributes:
        curvature: C and its batches.
        shift: Damping, a number.
        scale: One over the step size.
        largest: Largest eigenvalue of C, from below.
        plan: Depth, batches, repeats.
    """

    curvature: _Curvature
    shift: float
    scale: float
    largest: float
    plan: _Plan

    @classmethod
    def chosen(cls, curvature: _Curvature, shift: float, plan: _Plan) -> _Step:
        """With the default scale where none is given.

        Raises:
            NotPositiveDefiniteError, NumericalError: It diverges for certain, by the eigenvalues found.
        """
        smallest, largest = _extreme_eigenvalues(curvature.operator)
        rounding = rounding_tolerance(curvature.operator.dtype) * abs(largest)
        if smallest + shift < -rounding or largest + shift <= 0:
            raise NotPositiveDefiniteError(
                f"The curvature has an eigenvalue of {smallest:.4g} or below, and the damping is {shift:.4g}: their "
                f"sum is negative, so LiSSA diverges at every scale. Use a damping above {-smallest:.4g}, or the "
                "Gauss-Newton method lissa."
            )
        step = cls(curvature, shift, 0.0 if plan.scale is None else float(plan.scale), largest, plan)
        if plan.scale is None:
            return cls(curvature, shift, step.safe_scale, largest, plan)
        if 2 * step.scale <= largest + shift:
            raise NumericalError(
                f"LiSSA with scale {step.scale:.6g} (step size {1 / step.scale:.6g}) diverges: the largest eigenvalue "
                f"of the curvature is {largest:.6g} and the damping {shift:.6g}, so the scale must exceed "
                f"{(largest + shift) / 2:.6g}. {_advice(step.safe_scale)}"
            )
        return step

    @cached_property
    def safe_scale(self) -> float:
        """At which no batch looked at stretches a vector: largest eigenvalue, of C or of a drawn batch, and damping."""
        return self.shift + max(self.largest, self._largest_of_batches)

    @cached_property
    def _largest_of_batches(self) -> float:
        """Over a few drawn batches; 0 where nothing is drawn."""
        if self.plan.batch_size is None:
            return 0.0
        draws = self.plan.draws("probe")
        return max(_extreme_eigenvalues(self._operator_of(next(draws)))[1] for _ in range(PROBES))

    def average(self, rows: Tensor) -> Tensor:
        """x for each row v (m, n_params), the mean over the repeats."""
        total = torch.zeros_like(rows)
        for repeat in range(self.plan.repeats):
            total += self._run(rows, repeat)
        return total / (self.plan.repeats * self.scale)

    def _run(self, rows: Tensor, repeat: int) -> Tensor:
        draws, norms = self.plan.draws(repeat), torch.linalg.vector_norm(rows, dim=1)
        h = rows
        for step in range(1, self.plan.depth + 1):
            h = rows + h - (self._operator_of(next(draws)).apply(h) + self.shift * h) / self.scale
            self._require_bounded(h, norms, step)
        return h

    def _operator_of(self, positions: Tensor | None) -> SymmetricOperator:
        whole = self.curvature.operator
        if positions is None:
            return whole
        return CallbackOperator(
            whole.dim, lambda rows: self.curvature.of_batch(positions, rows), whole.dtype, whole.device
        )

    def _require_bounded(self, h: Tensor, norms: Tensor, step: int) -> None:
        """A convergent series adds at most |v| a step: the norm of h_t stays below (t + 1) |v|."""
        found = torch.linalg.vector_norm(h, dim=1)
        bad = ~(found <= GROWTH * (step + 1) * norms)
        if not bool(bad.any()):
            return
        query = int(bad.nonzero()[0])
        # At a scale that was thought safe, batches are more unlike each other than those looked at.
        safe = self.safe_scale if self.scale < self.safe_scale else 2 * self.scale
        raise NumericalError(
            f"LiSSA with scale {self.scale:.6g} (step size {1 / self.scale:.6g}) diverges: in step {step} of "
            f"{self.plan.depth} vector {query} has {float(found[query] / norms[query]):.3g} times its first norm. "
            f"{_advice(safe)} If it diverges at any scale, use a larger damping or larger batches."
        )

    def describe(self) -> dict[str, Any]:
        """JSON facts: all that a second run needs, and the eigenvalue that the scale is to be judged by."""
        return {
            "filter": "neumann",
            "damping": self.shift,
            "scale": self.scale,
            "depth": self.plan.depth,
            "batch_size": self.plan.batch_size,
            "repeats": self.plan.repeats,
            "seed": self.plan.seed,
            "largest_eigenvalue": self.largest,
        }


def _advice(scale: float) -> str:
    return f"Use `scale={scale:.6g}` (step size {1 / scale:.6g}) or more."


def _extreme_eigenvalues(operator: SymmetricOperator) -> tuple[float, float]:
    """Smallest and largest Ritz value of a random vector: inside the spectrum, and near its ends."""
    # Its own seed: where no batch is drawn, the seed of the draws must not matter, not even by rounding of the scale.
    start = torch.randn(1, operator.dim, generator=torch_generator(0, "lissa", "spectrum"), dtype=torch.float64)
    basis = LanczosBasis(operator, start.to(operator.device, operator.dtype))
    basis.extend(min(LANCZOS_STEPS, operator.dim))
    if not bool(torch.isfinite(basis.alphas).all()):
        raise NumericalError("The curvature gave NaN or infinite values. Check the model and its gradients.")
    values = basis.ritz()[0]
    return float(values.min()), float(values.max())


def _mean_square_gradient(inputs: Inputs, dtype: torch.dtype) -> float:
    """Mean squared entry of the per-example loss gradients."""
    blocks = loss_gradients(inputs.task, inputs.train, dtype=dtype)
    total = sum(float(rows.double().square().sum()) for _, rows in blocks)
    return total / (inputs.n_train * inputs.task.layout.n_params)


@final
@dataclass(frozen=True, eq=False)
class _GaussNewtonOfRows:
    """(1/b) sum over a batch of J_i^T V_i J_i: from the stored factor, or from rows computed for each batch."""

    form: KrylovForm

    @property
    def operator(self) -> SymmetricOperator:
        """That of all."""
        return self.form.operator

    def of_batch(self, positions: Tensor, rows: Tensor) -> Tensor:
        """That of the examples at `positions` (b,) applied to rows (m, n_params)."""
        whole, linear = self.operator, self.form.linear
        if not isinstance(whole, FactorOperator):
            free = can_vmap(linear.task, linear.train)
            return matrix_free_product(linear, rows, positions) if free else self._recomputed(positions, rows)
        stored = whole.factor.reshape(linear.n_train, linear.n_contrasts, linear.n_params)
        factor = stored[positions.to(stored.device)].flatten(0, 1)  # holds 1 / sqrt(n_train)
        return (rows @ factor.T) @ factor * (linear.n_train / len(positions))

    def _recomputed(self, positions: Tensor, rows: Tensor) -> Tensor:
        linear = self.form.linear
        counts = torch.bincount(positions, minlength=linear.n_train)
        drawn = counts.nonzero().flatten()
        at = drawn.to(linear.roots.device)
        weights = (counts[drawn].double() / len(positions)).sqrt().to(at.device)
        cotangents = weights[:, None, None] * (linear.roots[at].transpose(1, 2) @ linear.basis.T)
        total = torch.zeros_like(rows)
        some = linear.train.subset(drawn)
        for _, block in pull_back(linear.task, some, cotangents, path="loop", dtype=linear.dtype):
            factor = block.flatten(0, 1)
            total += (rows @ factor.T) @ factor
        return total


@final
@dataclass(frozen=True, eq=False)
class _HessianOfRows:
    """Hessian of the mean loss of a batch, by forward over reverse differentiation."""

    task: Task
    train: Examples
    dtype: torch.dtype

    @cached_property
    def operator(self) -> SymmetricOperator:
        """That of all."""
        return hessian_operator(self.task, self.train, dtype=self.dtype)

    def of_batch(self, positions: Tensor, rows: Tensor) -> Tensor:
        """That of the examples at `positions` (b,) applied to rows (m, n_params)."""
        total = torch.zeros_like(rows)
        for some in torch.split(positions, EXAMPLES):
            total += self._product(self.train.batch(some), rows)
        return total / len(positions)

    def _product(self, rows_of_data: Batch, rows: Tensor) -> Tensor:
        """Hessian of the summed loss of a few examples applied to rows (m, n_params)."""
        batch = cast_batch(rows_of_data, self.dtype, self.task.device)
        return hessian_products(self.task, *self._state, batch, rows, vectorized=self._is_vectorizable)

    @cached_property
    def _state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return model_state(self.task.model, self.dtype)

    @cached_property
    def _is_vectorizable(self) -> bool:
        """Whether the model can be vmapped, tried on two examples."""
        return can_vmap(self.task, self.train)


LISSA = Preset(
    "lissa",
    "influence function, damped Gauss-Newton inverse by a sampled Neumann series (LiSSA)",
    lissa,
    curvature="gauss_newton",
    filter="neumann",
    has_unit=True,
)
LISSA_HESSIAN = Preset(
    "lissa_hessian",
    "influence function, damped inverse of the true Hessian by a sampled Neumann series (LiSSA)",
    lissa_hessian,
    curvature="hessian",
    filter="neumann",
    has_unit=True,
)
