"""Inner products of per-example gradients with given directions, layer by layer: no row of all parameters is formed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from whence.batches import take
from whence.data import Examples
from whence.gradients.layer_pass import LayerGradient
from whence.gradients.layers import KroneckerRule
from whence.gradients.loop import pull_back_loop
from whence.gradients.passes import PASS_EXAMPLES, Block, blocks, slope_of
from whence.gradients.route import route_of, to_check, tolerance
from whence.gradients.rows import loss_gradients
from whence.task import Task, working_dtype

BUFFER = 32 * 2**20  # bytes of one layer's gradients that live at once


def loss_products(
    task: Task, examples: Examples, directions: Tensor, *, dtype: torch.dtype | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Inner products of each example's own loss gradient with directions.

    Args:
        task: Model and contract, in eval mode.
        examples: `n` examples.
        directions: (m, n_params).
        dtype: Precision of gradients and of products within a layer; default the parameters' own, never below float32.
            Layers are added up in float64.
    Yields:
        (slice of examples, (m, b) float64), in order.
    Raises:
        NonFiniteError: A gradient is NaN or infinite; the message names the example and the parameter.
    Cost:
        One forward and one backward pass and m n n_params products; fewer where directions are zero in whole layers, as
        those of single parameter groups are. Memory: activations of one block, one layer's
        gradients of at most 32 MiB; where a parameter has no layer rule, blocks of whole rows as in `loss_gradients`.
    """
    dtype = working_dtype(task.model, dtype)
    given = directions.to(task.device, dtype)
    plan = route_of(task, examples).plan
    if plan is None:
        yield from _by_rows(task, examples, given)
        return
    parts = _Parts(task.layout.unflatten(given))
    for block in blocks(task, examples, slope_of(task.loss), plan, dtype=dtype, size=PASS_EXAMPLES):
        found = _of_block(block, given, parts)
        if found is None:  # not as planned, or not finite: the rows are right, or say what is wrong
            some = examples.subset(range(block.part.start, block.part.stop))
            found = torch.cat([values for _, values in _by_rows(task, some, given, path="loop")], 1)
        yield block.part, found


def _by_rows(task: Task, examples: Examples, directions: Tensor, path: str = "auto") -> Iterator[tuple[slice, Tensor]]:
    for part, rows in loss_gradients(task, examples, path=path, dtype=directions.dtype):
        yield part, (directions @ rows.T).double()


class _Parts:
    """Directions by parameter, for products with one layer after the other.

    Args:
        whole: Parameter -> (m, *shape).
    """

    def __init__(self, whole: Mapping[str, Tensor]) -> None:
        self._whole = whole
        self._known: dict[tuple[str, ...], tuple[Tensor | None, dict[str, Tensor]]] = {}

    def of(self, names: Mapping[str, str]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Positions (p,) of the directions that are not zero in these parameters, {own name: name}, and their parts.

        None stands for all: so also where none of them is, or a gradient that is not finite would go unseen.
        """
        key = tuple(names.values())
        if key not in self._known:
            self._known[key] = self._chosen(key)
        positions, parts = self._known[key]
        return positions, dict(zip(names, parts.values(), strict=True))

    def _chosen(self, names: tuple[str, ...]) -> tuple[Tensor | None, dict[str, Tensor]]:
        used = torch.stack([self._whole[name].reshape(len(self._whole[name]), -1).any(1) for name in names]).any(0)
        if bool(used.all()) or not bool(used.any()):
            # In one piece, or every block would copy it for its product.
            return None, {name: self._whole[name].contiguous() for name in names}
        return used.nonzero().flatten(), {name: self._whole[name][used] for name in names}


def _of_block(block: Block, directions: Tensor, parts: _Parts) -> Tensor | None:
    """Products (m, b); None where the layers do not account for all parameters of this block, or do so wrongly."""
    (gradients,) = block.gradients()
    if len(block.names) < len(block.task.layout.names):
        return None
    total = torch.zeros(len(directions), len(block.cotangents), dtype=torch.float64, device=directions.device)
    for gradient in gradients:
        positions, own = parts.of(gradient.names)
        found = product_of_layer(gradient, own)
        total = total + found if positions is None else total.index_add_(0, positions, found)
    return total if products_are_right(block, directions, total) else None


def product_of_layer(gradient: LayerGradient, directions: dict[str, Tensor]) -> Tensor:
    """Products (m, b) of one call of a layer, with directions (m, *shape) of its own parameters."""
    some = next(iter(directions.values()))
    if gradient.rule is not None:
        a, g = gradient.factors(some.dtype)
        # Forming the gradients (b, o, i) costs more memory traffic than (b, m, o) numbers.
        if a.shape[1] == 1 and len(some) <= a.shape[2]:
            return _of_factors(gradient.rule, a[:, 0], g[:, 0], directions)
    return _of_gradients(gradient, directions)


def _of_factors(rule: KroneckerRule, a: Tensor, g: Tensor, directions: dict[str, Tensor]) -> Tensor:
    """Products (m, b) of gradients g_i a_i^T: inputs a (b, i), output gradients g (b, o)."""
    total = torch.zeros(len(next(iter(directions.values()))), len(a), dtype=torch.float64, device=a.device)
    if "bias" in directions:
        total += directions["bias"] @ g.T
    if "weight" in directions:
        matrices = rule.as_matrix(directions["weight"])  # (m, o, i)
        size = max(1, BUFFER // (a.dtype.itemsize * g.numel()))
        for first in range(0, len(matrices), size):
            some = matrices[first : first + size]
            moved = (a @ some.reshape(-1, a.shape[1]).T).reshape(len(a), len(some), -1)  # (b, m, o)
            total[first : first + len(some)] += torch.bmm(moved, g[:, :, None])[:, :, 0].T
    return total


def _of_gradients(gradient: LayerGradient, directions: dict[str, Tensor]) -> Tensor:
    """Products (m, b) with the gradients of one layer, a few examples at a time."""
    m, dtype = len(next(iter(directions.values()))), next(iter(directions.values())).dtype
    flat = {own: x.reshape(m, -1) for own, x in directions.items()}
    size = max(1, BUFFER // (dtype.itemsize * sum(x.shape[1] for x in flat.values())))
    total = torch.zeros(m, gradient.n, dtype=torch.float64, device=gradient.g.device)
    for first in range(0, gradient.n, size):
        part = gradient.of_examples(first, min(first + size, gradient.n))
        out = {own: x.new_empty(part.n, *x.shape[1:]) for own, x in directions.items()}
        part.fill(out)
        for own, rows in out.items():
            total[:, first : first + part.n] += flat[own] @ rows.reshape(part.n, -1).T
    return total


def products_are_right(block: Block, directions: Tensor, found: Tensor) -> bool:
    """Whether all products are finite, and those of one example, where one is due, what plain autograd gives."""
    if not bool(torch.isfinite(found).all()):
        return False
    example = to_check(block.part)
    if example is None:
        return True
    one = torch.tensor([example])
    row = pull_back_loop(block.task, *block.state, take(block.batch, one), block.cotangents[one])[0, 0]
    gap = (directions @ row - found[:, example]).abs()
    scale = torch.linalg.vector_norm(row) * torch.linalg.vector_norm(directions, dim=1)
    return bool((gap <= tolerance(directions.dtype) * scale).all())
