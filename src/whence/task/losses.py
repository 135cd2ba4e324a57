"""Per-example losses, each with the square root of its Hessian in the model's outputs.

A Gauss-Newton curvature is `C = (1/n) sum_i J_i^T V_i J_i` with `V_i` the Hessian of example i's loss in its outputs.
Here `V_i = H S_i S_i^T H^T`: a fixed orthonormal basis `H` (n_outputs, n_contrasts) of the directions that can
matter at all, and a root `S_i` inside it. Cross-entropy ignores a shift of all logits, so it has one contrast fewer
than outputs, and a binary classifier costs one Jacobian row per example instead of two.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.batches import Batch
from whence.errors import DataError, ShapeError, UnsupportedError

PerExample = Callable[[Tensor, Batch], Tensor]
Target = Callable[[Batch], Tensor]
LARGEST_BASIS = 4096  # outputs of an example, of which Gauss-Newton methods take a gradient each


class Loss(ABC):
    """A per-example loss and what its curvature needs. Called as `loss(outputs (b, ...), batch) -> (b,)`, unreduced.

    Attributes:
        name: Name in `LOSSES`, or the user's.
        has_hessian: `hessian` is known, so that Gauss-Newton methods work.
        shift_invariant: The loss does not change when one number is added to all outputs of an example.
    """

    name: str
    has_hessian: bool = True
    shift_invariant: bool = False

    @abstractmethod
    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Per-example losses (b,)."""

    @abstractmethod
    def hessian(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Hessian in the outputs (b, c) of each example: (b, c, c), positive semi-definite."""

    def sample_labels(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """Labels drawn from the model's own predictive distribution, exp(-loss) normalised.

        The generator is asked example by example, in order: blocks of examples, one after another, have the labels
        that all of them at once would have.

        Args:
            outputs: (b, ...).
            batch: The examples; what their labels are does not matter, which of them count does.
            generator: Draws one label for each example; on any device.
        Returns:
            (b, ...), on the device of `outputs`.
        Raises:
            UnsupportedError: The loss is not known to be a negative log-likelihood.
        """
        raise UnsupportedError(
            f"The loss {self.name!r} has no known predictive distribution to draw labels from, which a sampled Fisher "
            "matrix needs. Use the empirical Fisher matrix, or 'mse' or 'cross_entropy'."
        )

    def slopes_at(self, outputs: Tensor, batch: Batch, labels: Tensor) -> Tensor:
        """Slopes of the loss in the outputs, (b, ...) as these, at labels of `sample_labels`.

        Their second moment over such labels is the loss's Hessian in the outputs: E[slope slope^T] = V, exactly. So
        outer products of gradients at drawn labels average to the Gauss-Newton matrix (the true Fisher matrix).

        Reference:
            Kunstner, Balles and Hennig (2019), arXiv:1905.12558.
        """
        raise UnsupportedError(
            f"The loss {self.name!r} has no slopes at drawn labels. Use the empirical Fisher matrix."
        )

    def check_targets(self, outputs: Tensor, batch: Batch, ids: Sequence[object]) -> None:
        """Refuse targets that would give a number without a meaning; called on every batch, before any work."""
        return None


@dataclass(frozen=True)
class SquaredError(Loss):
    """Mean over the outputs of the squared error, as `torch.nn.MSELoss` per example. Hessian (2 / c) I."""

    target: Target
    name = "mse"

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        y = self.target(batch)
        if y.shape != outputs.shape:
            raise ShapeError(
                f"Squared error needs outputs and targets of one shape; got {tuple(outputs.shape)} and "
                f"{tuple(y.shape)}. Add or drop the last dimension of the target, e.g. `y[:, None]`."
            )
        return (outputs - y).square().flatten(1).mean(1) if outputs.ndim > 1 else (outputs - y).square()

    def hessian(self, outputs: Tensor, batch: Batch) -> Tensor:
        b, c = outputs.shape
        eye = torch.eye(c, dtype=outputs.dtype, device=outputs.device)
        return (2.0 / c * eye).expand(b, c, c)

    def sample_labels(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        # Normal around the outputs with variance c / 2. Not `randn`, whose numbers depend on how many are asked for.
        uniform = draw_uniform(outputs.shape, generator).clamp_min(2.0**-54)
        noise = torch.special.ndtri(uniform).to(device=outputs.device, dtype=outputs.dtype)
        labels: Tensor = outputs + noise * math.sqrt(outputs[0].numel() / 2.0)
        return labels

    def slopes_at(self, outputs: Tensor, batch: Batch, labels: Tensor) -> Tensor:
        return 2.0 / outputs[0].numel() * (outputs - labels.to(outputs.dtype))


def draw_uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Numbers in [0, 1), float64: two calls give what one call for as many would."""
    found: Tensor = torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device=generator.device)
    return found


def draw_classes(outputs: Tensor, uniform: Tensor) -> Tensor:
    """The class in whose stretch of the cumulative softmax a number of [0, 1) falls; (..., c), (...,) -> (...,)."""
    sums = outputs.softmax(-1).double().cumsum(-1)
    level = uniform.to(sums.device) * sums[..., -1]
    found: Tensor = torch.searchsorted(sums, level[..., None], right=True)[..., 0]
    return found.clamp_max(outputs.shape[-1] - 1)


def softmax_slopes(outputs: Tensor, labels: Tensor) -> Tensor:
    """p - onehot(y), the slopes of cross-entropy; (..., c), (...,) -> (..., c)."""
    own = labels[..., None]
    others = outputs.softmax(-1).scatter(-1, own, 0.0)
    # Not p - 1: for a sure row that rounds to 0, and the sum over the other classes does not.
    return others.scatter(-1, own, -others.sum(-1, keepdim=True))


def logit_margin(outputs: Tensor, labels: Tensor) -> Tensor:
    """`z_y - logsumexp_{k != y} z_k`, which equals log(p_y / (1 - p_y)); (b, c), (b,) -> (b,)."""
    if outputs.ndim != 2 or outputs.shape[1] < 2 or labels.ndim != 1 or labels.shape[0] != outputs.shape[0]:
        raise ShapeError(
            f"Classification needs outputs (b, classes), two classes at least, and integer labels (b,); got "
            f"{tuple(outputs.shape)} and {tuple(labels.shape)}. Give a binary classifier two logits, such as (0, z)."
        )
    columns = torch.arange(outputs.shape[1], device=outputs.device)
    own = columns == labels[:, None]
    chosen = torch.where(own, outputs, torch.zeros((), dtype=outputs.dtype, device=outputs.device)).sum(1)
    return chosen - torch.logsumexp(outputs.masked_fill(own, -torch.inf), 1)


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy as log1p(exp(-margin)): it stays above 0 for rows the model is sure of.

    log-softmax rounds to exactly 0 there, even in float64, and differences of such losses are noise.
    Hessian diag(p) - p p^T.
    """

    target: Target
    name = "cross_entropy"
    shift_invariant = True

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        return -F.logsigmoid(logit_margin(outputs, self.target(batch)))

    def check_targets(self, outputs: Tensor, batch: Batch, ids: Sequence[object]) -> None:
        """Refuse labels that are no integers in 0 .. classes - 1.

        Raises:
            DataError: A label is not; the message names the first example.
        """
        labels = self.target(batch)
        logit_margin(outputs, labels)
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise DataError(f"Class labels must be integers; got {labels.dtype}. Use `labels.long()`.")
        wrong = ((labels < 0) | (labels >= outputs.shape[1])).nonzero().flatten()
        if len(wrong):
            k = int(wrong[0])
            raise DataError(
                f"Class labels must lie in 0 .. {outputs.shape[1] - 1}, one for each of the model's {outputs.shape[1]} "
                f"outputs; example {ids[k]!r} has {int(labels[k])}."
            )

    def hessian(self, outputs: Tensor, batch: Batch) -> Tensor:
        p = outputs.softmax(1)
        off = p[:, :, None] * p[:, None, :]
        off = off - torch.diag_embed(off.diagonal(dim1=1, dim2=2))
        # Not p (1 - p): for a sure row 1 - p rounds to 0, and the sum over the other classes does not.
        return torch.diag_embed(off.sum(2)) - off

    def sample_labels(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        return draw_classes(outputs, draw_uniform(outputs.shape[:1], generator))

    def slopes_at(self, outputs: Tensor, batch: Batch, labels: Tensor) -> Tensor:
        return softmax_slopes(outputs, labels)


@dataclass(frozen=True)
class CallableLoss(Loss):
    """A user's own per-example loss, with its Hessian in the outputs where it is given."""

    fn: PerExample
    output_hessian: PerExample | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """The callable's own name."""
        return getattr(self.fn, "__name__", "loss")

    @property
    def has_hessian(self) -> bool:  # type: ignore[override]
        """Whether `output_hessian` was given."""
        return self.output_hessian is not None

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.fn(outputs, batch)

    def hessian(self, outputs: Tensor, batch: Batch) -> Tensor:
        if self.output_hessian is None:
            raise UnsupportedError(
                f"The loss {self.name!r} has no known Hessian in the outputs, which Gauss-Newton methods need. "
                "Pass `output_hessian=` to Task, or use a first-order method such as grad_dot."
            )
        return self.output_hessian(outputs, batch)


LOSSES: dict[str, Callable[[Target], Loss]] = {"mse": SquaredError, "cross_entropy": CrossEntropy}


def contrast_basis(n_outputs: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Orthonormal basis (n_outputs, n_outputs - 1) of the vectors that sum to zero (Helmert's contrasts)."""
    basis = torch.zeros(n_outputs, n_outputs - 1, dtype=torch.float64)
    for k in range(1, n_outputs):
        basis[:k, k - 1] = 1.0
        basis[k, k - 1] = -float(k)
        basis[:, k - 1] /= (k * (k + 1)) ** 0.5
    return basis.to(dtype=dtype, device=device)


def n_contrasts(loss: Loss, n_outputs: int) -> int:
    """How many directions of the outputs the loss can have curvature in."""
    return n_outputs - 1 if loss.shift_invariant else n_outputs


def output_basis(loss: Loss, n_outputs: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """The basis `H` (n_outputs, n_contrasts) of output directions in which the loss can have curvature.

    Raises:
        UnsupportedError: More than `LARGEST_BASIS` outputs, as language models have.
    """
    require_few_outputs(n_outputs)
    if loss.shift_invariant:
        return contrast_basis(n_outputs, dtype, device)
    return torch.eye(n_outputs, dtype=dtype, device=device)


def require_few_outputs(n_outputs: int) -> None:
    """Refuse a Gauss-Newton matrix that would take a backward pass for each of very many outputs.

    Raises:
        UnsupportedError: More than `LARGEST_BASIS`.
    """
    if n_outputs > LARGEST_BASIS:
        raise UnsupportedError(
            f"The exact Gauss-Newton matrix needs a gradient for each of the {n_outputs} outputs of every example "
            f"(for a language model tokens times vocabulary); up to {LARGEST_BASIS} are done. Use ekfac or kfac with "
            "fisher='sampled' (one drawn label a token) or fisher='empirical'."
        )


def hessian_root(hessian: Tensor, basis: Tensor) -> Tensor:
    """`S` (b, n_contrasts, n_contrasts), symmetric, with `H S S^T H^T = V` for positive semi-definite V (b, c, c)."""
    inner = basis.T @ hessian @ basis
    if inner.shape[-1] == 1:
        return inner.clamp_min(0).sqrt()
    values, vectors = torch.linalg.eigh(inner)
    # `eigh` returns tiny negatives for a semi-definite matrix: clamp, or the square root below is NaN.
    root: Tensor = (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.transpose(1, 2)
    return root
