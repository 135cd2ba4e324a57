"""Where coefficients and eigen-decompositions are computed: float64, on the CPU where a device has none."""

from __future__ import annotations

import torch
from torch import Tensor

from whence.errors import ShapeError

FLOAT64 = torch.float64


def as_float64(x: Tensor) -> Tensor:
    """`x` in float64, moved to the CPU only from devices that have no float64."""
    if x.device.type == "mps":
        x = x.cpu()
    return x.detach().to(FLOAT64)


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each row, accumulated in float64. `rows` (..., dim) -> (...)."""
    norms: Tensor = torch.linalg.vector_norm(rows.detach(), dim=-1, dtype=FLOAT64)
    return norms


def row_products(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of matching rows, in float64. `x`, `y` (m, dim) -> (m,)."""
    return (x.to(FLOAT64) * y.to(FLOAT64)).sum(-1)


def require_square(matrix: Tensor, name: str) -> None:
    """Refuse anything but a square matrix."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(f"`{name}` must be a square matrix; got shape {tuple(matrix.shape)}.")


def require_shape(x: Tensor, shape: tuple[int | None, ...], name: str, meaning: str) -> None:
    """Refuse a tensor whose shape differs; `None` in `shape` matches any size."""
    fits = x.ndim == len(shape) and all(w is None or w == g for w, g in zip(shape, x.shape, strict=False))
    if not fits:
        wanted = ", ".join("*" if w is None else str(w) for w in shape)
        raise ShapeError(f"`{name}` must be {meaning} = ({wanted}); got {tuple(x.shape)}.")
