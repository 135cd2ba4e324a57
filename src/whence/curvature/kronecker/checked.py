"""A pass over the train set for what looks at whole layers."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from whence.data import Examples
from whence.errors import UnsupportedError
from whence.gradients import Block, Cotangents, HookPlan, blocks
from whence.progress import stage
from whence.task import Task


def checked_blocks(
    task: Task, train: Examples, cotangents: Cotangents, plan: HookPlan, dtype: torch.dtype, what: str
) -> Iterator[Block]:
    """The train set, passed through the model; every parameter with a rule must be seen by its rule.

    Args:
        task, train, cotangents, plan, dtype: As in `whence.gradients.blocks`.
        what: Names the pass in the progress shown.
    Raises:
        UnsupportedError: The model treats some examples in another way than the first three.
    """
    planned = {name for _, owned in plan.layers.values() for name in owned.values()}
    with stage(what, total=len(train), unit="examples") as progress:
        for block in blocks(task, train, cotangents, plan, dtype=dtype):
            yield block
            if not planned <= block.names:
                first, last = train.ids[block.part.start], train.ids[block.part.stop - 1]
                raise UnsupportedError(
                    f"Between examples {first!r} and {last!r} the model uses {sorted(planned - block.names)[:3]} in "
                    "another way than for the first three examples, so their layers have no Kronecker form. Use a "
                    "method without layers, such as influence_cg."
                )
            progress.advance(len(block.cotangents))
