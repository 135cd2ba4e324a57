"""Inner products of the gradients of two data sets, from the factors of their layers where that is cheapest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from whence.data import Examples
from whence.gradients.layer_pass import LayerGradient
from whence.gradients.passes import PASS_EXAMPLES, Block, blocks, slope_of
from whence.gradients.plan import HookPlan
from whence.gradients.products import loss_products, product_of_layer, products_are_right
from whence.gradients.route import route_of
from whence.gradients.rows import measure_gradients
from whence.gradients.sites import Site, by_site, sites_of
from whence.task import Task, working_dtype


def gradient_products(task: Task, queries: Examples, train: Examples) -> Iterator[tuple[slice, Tensor]]:
    """a_q . b_i: gradients of the queries' measure times those of the train examples' loss.

    A layer that sees each example at one position has the gradient g a^T, and the product of two of them is
    (g . g')(a . a'): (i + o) operations instead of i o. Other layers go through `loss_products`.

    Args:
        task: Model and contract, in eval mode.
        queries: `m` queries.
        train: `n` train examples.
    Yields:
        (slice of train examples, (m, b) float64), in order.
    Raises:
        NonFiniteError: A gradient is NaN or infinite; the message names the example and the parameter.
    Cost:
        One forward and one backward pass of both; then see above and `loss_products`.
    """
    dtype = working_dtype(task.model)
    plan = route_of(task, train).plan
    rows = measure_gradients(task, queries)
    single = None if plan is None or route_of(task, queries).plan is None else _single(task, queries, plan, dtype)
    if plan is None or single is None or not single.pairs:
        yield from loss_products(task, train, rows)
        return
    rest = {name: x.contiguous() for name, x in task.layout.unflatten(rows).items() if name not in single.names}
    for block in blocks(task, train, slope_of(task.loss), plan, dtype=dtype, size=PASS_EXAMPLES):
        found = _of_block(block, single, rest, rows)
        if found is None:
            some = train.subset(range(block.part.start, block.part.stop))
            found = torch.cat([values for _, values in loss_products(task, some, rows)], 1)
        yield block.part, found


@final
@dataclass(frozen=True, eq=False)
class _Single:
    """What the queries bring to layers that see each of them at one position.

    Attributes:
        pairs: Site -> inputs (m, i), ones for a bias included, and output gradients (m, o).
    """

    pairs: Mapping[Site, tuple[Tensor, Tensor]]

    @property
    def names(self) -> set[str]:
        """Parameters of these sites."""
        return {name for site in self.pairs for name in site.names}


def _single(task: Task, queries: Examples, plan: HookPlan, dtype: torch.dtype) -> _Single | None:
    """None where some queries go through the model in another way than the others."""
    sites = sites_of(plan, task.layout)
    parts: dict[Site, list[tuple[Tensor, Tensor]]] = {site: [] for site in sites}
    n_blocks = 0
    for block in blocks(task, queries, slope_of(task.measure), plan, dtype=dtype, size=PASS_EXAMPLES):
        (gradients,) = block.gradients()
        if len(block.names) < len(task.layout.names):
            return None
        n_blocks += 1
        for site, calls in by_site(gradients, sites).items():
            if _is_single(calls):
                a, g = site.factors(calls, dtype)
                parts[site].append((a[:, 0], g[:, 0]))
    whole = {site: found for site, found in parts.items() if len(found) == n_blocks}
    return _Single({site: (torch.cat([a for a, _ in f]), torch.cat([g for _, g in f])) for site, f in whole.items()})


def _is_single(calls: list[LayerGradient]) -> bool:
    """Whether a site is called once, with one position an example."""
    return len(calls) == 1 and calls[0].n_positions == 1


def _of_block(block: Block, single: _Single, rest: Mapping[str, Tensor], rows: Tensor) -> Tensor | None:
    """Products (m, b); None where they are not right, or a site of the queries is not so here."""
    (gradients,) = block.gradients()
    if len(block.names) < len(block.task.layout.names):
        return None
    total = torch.zeros(len(rows), len(block.cotangents), dtype=torch.float64, device=rows.device)
    for site, calls in by_site(gradients, single.pairs).items():
        if not _is_single(calls):
            return None
        a, g = site.factors(calls, rows.dtype)
        of_queries = single.pairs[site]
        total += (of_queries[0] @ a[:, 0].T) * (of_queries[1] @ g[:, 0].T)
    for gradient in gradients:
        own = {own: rest[name] for own, name in gradient.names.items() if name in rest}
        total += product_of_layer(gradient, own) if own else 0.0
    return total if products_are_right(block, rows, total) else None
