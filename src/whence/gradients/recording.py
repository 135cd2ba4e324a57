"""What the layers of a model see during one pass of a batch: their inputs, and where a backward pass may stop."""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from whence.batches import Batch, batch_size
from whence.gradients.layers import Captured, LayerRule, Part
from whence.task import Task

Layers = dict[nn.Module, tuple[LayerRule, dict[str, str]]]  # layer -> its rule, and own parameter -> name in the layout


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer.

    Attributes:
        module: The layer.
        rule: Its layer rule.
        owners: Own parameter -> the name in the layout.
        shapes: Own parameter -> its shape; empty for a call of an unknown form.
        x: What the rule keeps of the input.
        rows: First dimension of input and output, -1 where they differ or the call is of an unknown form.
        edge: Where the backward pass stops; None where nothing flows back.
    """

    module: nn.Module
    rule: LayerRule
    owners: dict[str, str]
    shapes: dict[str, torch.Size]
    x: Captured
    rows: int
    edge: GradientEdge | None

    def input_as(self, dtype: torch.dtype) -> Captured:
        """`x` in another precision, where it is a tensor of floating numbers."""
        return self.x.to(dtype) if isinstance(self.x, Tensor) and self.x.is_floating_point() else self.x

    def fill(self, g: Tensor, out: Mapping[str, Tensor]) -> None:
        """Write the gradients of own parameters, in the precision of `out`."""
        some = next(iter(out.values()))
        self.rule.fill(self.module, self.input_as(some.dtype), g.to(some.dtype), len(some), out)


@dataclass(eq=False)
class Recorder:
    """While entered, keeps every call of the given layers, and gives each call parameters of its own.

    With a fresh leaf for each call, a parameter's own leaf is in the graph only if something else uses it.

    Attributes:
        leaves: Parameters of the pass.
        layers: Which calls are kept.
        shared: Layers called once for all examples with an input (1, ...), such as embeddings of positions: that input
            is repeated for each of them, so that each has a gradient of its own.
        n: Number of examples.
    """

    leaves: Mapping[str, Tensor]
    layers: Layers
    shared: Set[nn.Module]
    n: int
    calls: dict[nn.Module, list[Call]] = field(default_factory=dict)
    inputs: list[tuple[Tensor, int]] = field(default_factory=list)
    replaced: dict[nn.Module, dict[str, Any]] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        for whole in dict.fromkeys(layer.whole for layer in self.layers if isinstance(layer, Part)):
            self.stack.enter_context(whole.running())
        for module in self.layers:
            self.calls[module] = []
            before = module.register_forward_pre_hook(self._before)
            self.stack.callback(before.remove)
            after = module.register_forward_hook(self._after, prepend=True, with_kwargs=True, always_call=True)
            self.stack.callback(after.remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stack.close()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        slots: dict[str, Any] = module._parameters  # not `setattr`, which refuses tensors that are not parameters
        kept = {own: slots[own] for own, owner in self.layers[module][1].items() if slots[own] is self.leaves[owner]}
        self.replaced[module] = kept
        slots.update({own: leaf.detach().requires_grad_() for own, leaf in kept.items()})
        if module in self.shared and len(args) == 1 and isinstance(args[0], Tensor) and args[0].shape[:1] == (1,):
            return (args[0].expand(self.n, *args[0].shape[1:]),)
        return None

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        rule, owners = self.layers[module]
        kept = self.replaced.pop(module, {})
        module._parameters.update(kept)
        if isinstance(output, Tensor):
            if output.requires_grad:
                inputs = (*args, *kwargs.values()) if kept.keys() == owners.keys() else ()
                self.calls[module].append(self._call(module, inputs, output))
        elif output is not None:  # None after an error
            self.calls[module].append(Call(module, rule, owners, {}, None, -1, None))

    def _call(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Call:
        rule, owners = self.layers[module]
        edge = get_gradient_edge(output)
        known = len(args) == 1 and isinstance(args[0], Tensor) and args[0].ndim > 0 and output.ndim > 0
        if not known or args[0].shape[0] != output.shape[0]:
            return Call(module, rule, owners, {}, None, -1, edge)
        with torch.no_grad():
            captured = rule.capture(module, args[0])
        self.inputs.append((args[0], args[0]._version))
        slots: dict[str, Any] = module._parameters  # a part has its parameters only now
        shapes = {own: slots[own].shape for own in owners}
        return Call(module, rule, owners, shapes, captured, args[0].shape[0], edge)

    @property
    def overwritten(self) -> bool:
        """Whether an input was changed in place after its layer had used it."""
        return any(x._version != version for x, version in self.inputs)

    def with_edges(self, names: Set[str]) -> list[Call]:
        """The calls that something flows back to, of layers that hold one of these parameters."""
        calls = [call for found in self.calls.values() for call in found]
        return [call for call in calls if call.edge is not None and not names.isdisjoint(call.owners.values())]


def forward(
    task: Task,
    trainable: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    batch: Batch,
    layers: Layers,
    shared: Set[nn.Module] = frozenset(),
) -> tuple[Tensor, Recorder]:
    """Outputs of one batched pass, and what the layers saw of it; `shared` as in `Recorder`."""
    owners = {owner for _, owned in layers.values() for owner in owned.values()}
    state = {name: x.detach() for name, x in trainable.items()}
    leaves = {name: state[name].requires_grad_() for name in owners}
    with torch.enable_grad(), Recorder(leaves, layers, shared, batch_size(batch)) as recorder:
        outputs = task.call({**state, **fixed}, batch)
    return outputs, recorder


def backward(
    outputs: Tensor, ends: list[GradientEdge | Tensor], v: Tensor, *, retain_graph: bool
) -> tuple[Tensor | None, ...]:
    """Gradients where the pass ends; None where it does not come by."""
    mixed: Any = ends  # torch takes tensors and edges in one list; its annotation does not
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        outputs, mixed, v, retain_graph=retain_graph, allow_unused=True
    )
    return found
