"""Contributions that are never all there: blocks of train examples, walked as often as learning needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor

from whence.data import Examples
from whence.methods import Call, Inputs
from whence.scores import Ids
from whence.task import Grouping, NameOf, ParameterGroups, Task
from whence.weights.by_group import Contributions, collected, group_blocks

# Slices in any order, (n_groups, n_query, b); a block may be overwritten when the next is asked for.
ContributionBlocks = Callable[[], Iterator[tuple[slice, Tensor]]]


@final
@dataclass(frozen=True, eq=False)
class ContributionStream:
    """What each parameter group contributes to each score, as `Contributions`, a block of train examples at a time.

    Attributes:
        blocks: Starts a pass over all train examples: (slice, (n_groups, n_query, b)), each slice once, in any order.
            A block may be overwritten when the next is asked for.
        groups, query_ids, train_ids, method, orientation, unit, provenance: As in `Contributions`.
    """

    blocks: ContributionBlocks
    groups: ParameterGroups
    query_ids: Ids
    train_ids: Ids
    method: str = "unnamed"
    orientation: float = 1.0
    unit: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_query, n_train, n_groups)."""
        return len(self.query_ids), len(self.train_ids), len(self.groups)

    def collect(self) -> Contributions:
        """All of them at once: n_query x n_train x n_groups numbers."""
        values = collected(self.blocks(), self.shape)
        facts = {name: getattr(self, name) for name in ("method", "orientation", "unit", "provenance")}
        return Contributions(values, self.groups, self.query_ids, self.train_ids, **facts)

    @classmethod
    def of(cls, found: Contributions, block: int = 1024) -> ContributionStream:
        """Contributions that are in memory, as a stream."""
        n_train = len(found.train_ids)

        def blocks() -> Iterator[tuple[slice, Tensor]]:
            for start in range(0, n_train, block):
                part = slice(start, min(start + block, n_train))
                yield part, found.values[:, part].permute(2, 0, 1)

        facts = {name: getattr(found, name) for name in ("method", "orientation", "unit", "provenance")}
        return cls(blocks, found.groups, found.query_ids, found.train_ids, **facts)


def stream_contributions(
    task: Task,
    train: Examples,
    queries: Examples,
    method: str = "grad_dot",
    *,
    groups: str | NameOf | Grouping | ParameterGroups = "tensor",
    at: int | None = None,
    **options: Any,
) -> ContributionStream:
    """As `contributions`, without holding them: each pass walks over the train set's gradients again.

    Args:
        task, train, queries, method, groups, at, options: As in `contributions`.
    Raises:
        InputError: The method is not linear, or something does not fit; before any long work.
    Cost:
        As the method with n_groups times as many queries, and each pass the method's own pass over the train set.
        Memory n_query x n_groups x n_params for the query side, and n_query x n_groups numbers for each train example
        of a block.
    """
    call = Call.of(method, at, options, linear=True)
    inputs = Inputs(task, train, queries)
    found = ParameterGroups.of(task.layout, groups)
    blocks, facts = group_blocks(call, inputs, found)
    return ContributionStream(blocks, found, **facts)
