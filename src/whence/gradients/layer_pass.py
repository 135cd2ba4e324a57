"""One forward pass of a batch, and per layer what each of its backward passes brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from whence.batches import Batch
from whence.gradients.layers import KroneckerRule
from whence.gradients.plan import HookPlan
from whence.gradients.recording import Call, backward, forward
from whence.task import Task


@final
@dataclass(frozen=True, eq=False)
class LayerGradient:
    """The gradient that one call of one layer gets from one cotangent of each of the `n` examples.

    Attributes:
        call: What the layer saw.
        g: Gradient at the call's output.
        n: Number of examples.
        names: Own parameter, such as "weight" -> its name in the layout.
    """

    call: Call
    g: Tensor
    n: int
    names: Mapping[str, str]

    def fill(self, out: Mapping[str, Tensor]) -> None:
        """Write the gradients of some own parameters, (n, *shape) each."""
        self.call.fill(self.g, out)

    def of_examples(self, first: int, stop: int) -> LayerGradient:
        """The same for some of the examples."""
        x = self.call.rule.of_examples(self.call.x, first, stop, self.n)
        each = self.g.shape[0] // self.n
        return LayerGradient(replace(self.call, x=x), self.g[first * each : stop * each], stop - first, self.names)

    def shape_of(self, name: str) -> torch.Size:
        """Shape of a parameter of the layout that this layer uses."""
        own = next(own for own, owner in self.names.items() if owner == name)
        return self.call.shapes[own]

    def of_parameter(self, name: str) -> Tensor:
        """Gradients (n, *shape) of a parameter of the layout that this layer uses."""
        shapes = self.call.shapes
        out = {own: self.g.new_empty(self.n, *shapes[own]) for own, owner in self.names.items() if owner == name}
        self.fill(out)
        return torch.stack(list(out.values())).sum(0) if len(out) > 1 else next(iter(out.values()))

    @property
    def rule(self) -> KroneckerRule | None:
        """The rule of the layer, where the weight's gradient is a sum of outer products."""
        rule = self.call.rule
        return rule if isinstance(rule, KroneckerRule) and rule.is_kronecker(self.call.module) else None

    @property
    def n_positions(self) -> int:
        """At how many positions of each example the layer gives an output."""
        first = self.rule is not None and self.rule.channels_first
        per_row = self.g[0, 0].numel() if first else self.g[0, ..., 0].numel()
        return self.g.shape[0] // self.n * per_row

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Inputs (n, s, i) and output gradients (n, s, o), for a layer with a `rule` above."""
        assert self.rule is not None
        x = self.call.input_as(dtype)
        return self.rule.factors(self.call.module, x, self.g.to(dtype), self.n)


@final
class LayerPass:
    """A recorded forward pass of `n` examples.

    Attributes:
        outputs: Of the model, (n, ...), with their graph.
        names: Parameters whose layers this batch went through as planned; shrinks if the first backward pass finds
            that something else uses one.
    """

    def __init__(
        self, task: Task, trainable: dict[str, Tensor], fixed: dict[str, Tensor], batch: Batch, plan: HookPlan
    ) -> None:
        self.outputs, self._recorder = forward(task, trainable, fixed, batch, plan.layers, plan.shared)
        self.n = self.outputs.shape[0]
        self.names = plan.followed_by(self._recorder, self.n)
        self._calls = self._recorder.with_edges(self.names) if self.outputs.requires_grad else []
        self._watched = True

    def backward(self, cotangents: Tensor, *, last: bool = True) -> list[LayerGradient]:
        """What each call gets from `cotangents` (n, c); `last` gives the graph free.

        Calls that nothing flows back to are left out: their gradient is zero.
        """
        ends = [call.edge for call in self._calls if call.edge is not None]
        # The parameters themselves cost nothing: nothing leads to them, or the probes would have seen it.
        watched = [(name, self._recorder.leaves[name]) for name in self.names] if self._watched else []
        self._watched = False
        if not self.outputs.requires_grad or not (ends or watched):
            return []
        v = cotangents.reshape(self.outputs.shape).to(self.outputs.dtype)
        found = backward(self.outputs, [*ends, *(leaf for _, leaf in watched)], v, retain_graph=not last)
        self.names -= {name for (name, _), g in zip(watched, found[len(ends) :], strict=True) if g is not None}
        gradients = []
        for call, g in zip(self._calls, found, strict=False):
            names = {own: name for own, name in call.owners.items() if name in self.names}
            if g is not None and names:
                gradients.append(LayerGradient(call, g, self.n, names))
        return gradients
