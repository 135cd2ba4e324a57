"""Second pass: mean squared entries of per-example gradients, in the layers' eigenbases or as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import TypeVar

import torch
from torch import Tensor

from whence.gradients import Block, LayerGradient
from whence.gradients.sites import Site, by_site

BUFFER = 32 * 2**20  # bytes of one layer's gradients that live at once
Key = TypeVar("Key")
Bases = Mapping[Site, tuple[Tensor, Tensor]]  # U_A (i, i), U_G (o, o)


def squares_of(blocks: Iterable[Block], bases: Bases, rest: Set[str]) -> tuple[dict[Site, Tensor], dict[str, Tensor]]:
    """Sums over examples and cotangents.

    Args:
        blocks: A data set.
        bases: Eigenvectors of the sites that are looked at in them.
        rest: Parameters that are looked at as they are.
    Returns:
        Site -> squares (o, i) of U_G^T gradient U_A; parameter -> squares (size,). Both float64.
    """
    rotated: dict[Site, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for block in blocks:
        for gradients in block.gradients():
            for site, calls in by_site(gradients, bases).items():
                a, g = site.factors(calls, block.cotangents.dtype)
                _add(rotated, site, rotated_squares(a, g, *bases[site]))
            for name, calls in _by_name(gradients, rest).items():
                _add(plain, name, _plain_squares(calls, name))
        for name, rows in block.rows_of(rest - block.names).items():
            _add(plain, name, rows.reshape(*rows.shape[:2], -1).double().square().sum((0, 1)))
    return rotated, plain


def rotated_squares(a: Tensor, g: Tensor, u_a: Tensor, u_g: Tensor) -> Tensor:
    """Sum over examples of the squares of U_G^T (sum_s g_s a_s^T) U_A: (n, s, i) and (n, s, o) to (o, i), float64."""
    s, i, o = a.shape[1], a.shape[2], g.shape[2]
    u_a, u_g = u_a.to(a.dtype), u_g.to(g.dtype)
    if s == 1:  # one outer product: its squares are outer products of squares
        return ((g[:, 0] @ u_g).square().T @ (a[:, 0] @ u_a).square()).double()
    total = torch.zeros(o, i, dtype=torch.float64, device=a.device)
    first_factors = s * (i * i + o * o) <= o * i * (i + o)
    if first_factors:
        a, g = a @ u_a, g @ u_g
    size = max(1, BUFFER // (o * i * a.dtype.itemsize))
    for some_a, some_g in zip(torch.split(a, size), torch.split(g, size), strict=True):
        gradient = some_g.transpose(1, 2) @ some_a
        total += (gradient if first_factors else u_g.T @ gradient @ u_a).square().sum(0).double()
    return total


def _plain_squares(calls: list[LayerGradient], name: str) -> Tensor:
    """Sum over examples of the squared gradient of a parameter that these calls use: (size,), float64."""
    total: Tensor | None = None
    n = calls[0].n
    shape = calls[0].shape_of(name)
    size = max(1, BUFFER // (calls[0].g.dtype.itemsize * shape.numel()))
    for first in range(0, n, size):
        rows = torch.zeros(min(size, n - first), *shape, dtype=calls[0].g.dtype, device=calls[0].g.device)
        for call in calls:
            rows += call.of_examples(first, first + len(rows)).of_parameter(name)
        found = rows.reshape(len(rows), -1).double().square().sum(0)
        total = found if total is None else total + found
    assert total is not None
    return total


def _by_name(gradients: list[LayerGradient], wanted: Set[str]) -> dict[str, list[LayerGradient]]:
    found: dict[str, list[LayerGradient]] = {}
    for gradient in gradients:
        for name in wanted & set(gradient.names.values()):
            found.setdefault(name, []).append(gradient)
    return found


def _add(total: dict[Key, Tensor], key: Key, values: Tensor) -> None:
    total[key] = total[key] + values if key in total else values
