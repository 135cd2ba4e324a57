"""Losses and their Hessians against torch, autograd and closed forms."""

import math

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from whence.errors import DataError, ShapeError, UnsupportedError
from whence.task import CallableLoss, CrossEntropy, Pick, SquaredError, Task
from whence.task.losses import contrast_basis, hessian_root, logit_margin, output_basis
from whence.testing.problems import classifier, mlp

EXACT = {"rtol": 1e-12, "atol": 0.0}  # a handful of float64 operations, no cancellation
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}  # sums of terms of both signs
LABELS, VALUES = CrossEntropy(Pick(0)), SquaredError(Pick(0))


def logits(b=6, c=4, scale=1.0):
    z = scale * torch.randn(b, c, generator=torch.Generator().manual_seed(b + c), dtype=torch.float64)
    y = torch.randint(c, (b,), generator=torch.Generator().manual_seed(1))
    return z, y


def with_margin(margin, c):
    """Logits of c classes, label 0, with the given margin to the others taken together."""
    z = torch.full((1, c), -math.log(c - 1), dtype=torch.float64)
    z[0, 0] = margin
    return z, torch.tensor([0])


@pytest.mark.parametrize("c", [2, 5])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_cross_entropy_is_torchs_in_the_ordinary_range(c, scale):
    z, y = logits(c=c, scale=scale)
    assert_close(LABELS(z, (y,)), F.cross_entropy(z, y, reduction="none"), **ROUNDING)


@pytest.mark.parametrize("c", [2, 5])
@pytest.mark.parametrize("margin", [-700.0, -40.0, -1.0, 0.0, 1.0, 20.0, 40.0, 300.0, 700.0])
def test_cross_entropy_of_sure_rows_is_right_and_above_zero(margin, c):
    z, y = with_margin(margin, c)
    loss = float(LABELS(z, (y,)))
    assert loss == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-12)
    assert loss > 0


def test_log_softmax_would_lose_the_loss_of_sure_rows():
    z, y = with_margin(40.0, 2)
    assert float(F.cross_entropy(z, y)) == 0.0  # why the loss is not torch's own


@pytest.mark.parametrize("margin", [40.0, 300.0, 700.0])
def test_slope_of_sure_rows(margin):
    """d loss / d z = (-(1 - p), (1 - p) / (c - 1), ...) with 1 - p = exp(-margin) to relative 1e-17."""
    z, y = with_margin(margin, 4)
    (slope,) = torch.autograd.grad(LABELS(z.requires_grad_(), (y,)).sum(), z)
    off = math.exp(-margin)
    assert_close(slope, torch.tensor([[-off, off / 3, off / 3, off / 3]], dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("c", [2, 5])
@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
def test_cross_entropy_gradient_and_hessian_are_autograds(c, scale):
    z, y = logits(c=c, scale=scale)

    def one(z, y):
        return F.cross_entropy(z[None], y[None])

    (slope,) = torch.autograd.grad(LABELS(leaf := z.clone().requires_grad_(), (y,)).sum(), leaf)
    assert_close(slope, torch.func.vmap(torch.func.grad(one))(z, y), **ROUNDING)
    assert_close(LABELS.hessian(z, (y,)), torch.func.vmap(torch.func.hessian(one))(z, y), **ROUNDING)


@pytest.mark.parametrize("margin", [40.0, 300.0])
def test_cross_entropy_hessian_of_sure_rows(margin):
    """With label 0 and m others of equal share e/m each, e = exp(-margin): V_00 = e, V_0k = -e/m, V_kk = e/m."""
    z, y = with_margin(margin, 4)
    e = math.exp(-margin)
    expected = torch.diag(torch.tensor([e, e / 3, e / 3, e / 3], dtype=torch.float64))
    expected[0, 1:] = expected[1:, 0] = -e / 3
    found = LABELS.hessian(z, (y,))[0]
    # Between the others V_kl = -(e/m)^2, nothing beside e; each row still sums to zero.
    assert_close(found, expected, rtol=1e-12, atol=2 * e * e)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 3), (6, 2, 3)])
def test_squared_error_is_torchs_with_its_gradient(shape):
    out = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    losses = VALUES(out, (y,))
    assert_close(losses, torch.stack([F.mse_loss(a, b) for a, b in zip(out, y, strict=True)]), **ROUNDING)
    (slope,) = torch.autograd.grad(losses.sum(), out)
    assert_close(slope, 2 * (out - y).detach() * 6 / out.numel(), **ROUNDING)


@pytest.mark.parametrize("c", [1, 3])
def test_squared_error_hessian_is_autograds(c):
    out, _ = logits(c=c)
    y = torch.zeros_like(out)
    expected = torch.func.vmap(torch.func.hessian(F.mse_loss))(out, y)
    assert_close(VALUES.hessian(out, (y,)), expected, **EXACT)


@pytest.mark.parametrize("loss, c", [(LABELS, 2), (LABELS, 5), (VALUES, 3)])
@pytest.mark.parametrize("scale", [1.0, 8.0, 60.0])
def test_root_of_the_hessian_multiplies_back(loss, c, scale):
    z, y = logits(c=c, scale=scale)
    hessian = loss.hessian(z, (y if loss is LABELS else z,))
    basis = output_basis(loss, c, torch.float64)
    root = hessian_root(hessian, basis)
    # eigh is accurate relative to the largest eigenvalue of each row.
    gap = (basis @ root @ root.transpose(1, 2) @ basis.T - hessian).abs().amax((1, 2))
    assert bool((gap <= 1e-13 * hessian.abs().amax((1, 2))).all())
    assert_close(root, root.transpose(1, 2), rtol=0, atol=1e-14)


def test_root_of_a_sure_binary_row_keeps_relative_accuracy():
    z, y = with_margin(300.0, 2)
    basis = output_basis(LABELS, 2, torch.float64)
    root = hessian_root(LABELS.hessian(z, (y,)), basis)
    assert float(root.square()) == pytest.approx(2 * math.exp(-300.0), rel=1e-12)


@pytest.mark.parametrize("c", [2, 3, 10])
def test_contrast_basis_is_orthonormal_and_orthogonal_to_a_shift(c):
    basis = contrast_basis(c, torch.float64)
    assert_close(basis.T @ basis, torch.eye(c - 1, dtype=torch.float64), rtol=0, atol=1e-14)
    assert_close(basis.sum(0), torch.zeros(c - 1, dtype=torch.float64), rtol=0, atol=1e-14)


def test_a_loss_without_shift_invariance_keeps_all_outputs():
    assert_close(output_basis(VALUES, 3, torch.float64), torch.eye(3, dtype=torch.float64))


def test_margin_is_the_log_odds():
    z, y = logits()
    p = z.softmax(1).gather(1, y[:, None])[:, 0]
    assert_close(logit_margin(z, y), torch.log(p / (1 - p)), **ROUNDING)


def test_a_callable_loss_knows_its_hessian_only_if_told():
    def halved(outputs, batch):
        return (outputs - batch[0]).square().sum(1) / 2

    loss = CallableLoss(halved)
    assert (loss.name, loss.has_hessian) == ("halved", False)
    with pytest.raises(UnsupportedError, match=r"'halved' has no known Hessian.*`output_hessian=`"):
        loss.hessian(torch.zeros(2, 3), (torch.zeros(2, 3),))
    told = CallableLoss(halved, lambda outputs, batch: torch.eye(3).expand(len(outputs), 3, 3))
    assert told.has_hessian
    assert_close(told.hessian(torch.zeros(2, 3), None), torch.eye(3).expand(2, 3, 3))


@pytest.mark.parametrize(
    "outputs, y, message",
    [
        (torch.zeros(3, 2), torch.zeros(3), r"\(3, 2\) and \(3,\).*`y\[:, None\]`"),
        (torch.zeros(3), torch.zeros(3, 1), r"\(3,\) and \(3, 1\)"),
    ],
)
def test_squared_error_never_broadcasts(outputs, y, message):
    with pytest.raises(ShapeError, match=message):
        VALUES(outputs, (y,))


@pytest.mark.parametrize(
    "outputs, y", [((3,), (3,)), ((3, 4), (3, 1)), ((3, 4), (2,)), ((3, 1), (3,)), ((3, 2, 4), (3,))]
)
def test_classification_names_the_shapes_it_needs(outputs, y):
    with pytest.raises(ShapeError, match=r"outputs \(b, classes\), two classes at least"):
        LABELS(torch.zeros(outputs), (torch.zeros(y, dtype=torch.int64),))


@pytest.mark.parametrize(
    "labels, message",
    [
        (torch.tensor([0, 1, 3, 0]), r"0 \.\. 2.*example 'c' has 3"),
        (torch.tensor([0, -100, 1, 0]), "example 'b' has -100"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), r"must be integers; got torch.float32.*long"),
    ],
)
def test_labels_that_are_no_class_are_refused(labels, message):
    """They would be taken for a class with logit 0, without an error."""
    task = Task.classification(mlp(3, 3))
    x = classifier(4, 1).train.all()[0]
    with pytest.raises(DataError, match=message):
        task.check((x, labels), "abcd")
