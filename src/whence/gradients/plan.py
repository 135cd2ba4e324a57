"""Which parameters have a layer rule that is right on this model and its data."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.batches import Batch, batch_size, take
from whence.gradients.layers import BareParameters, LocalRule, Part, layers_of
from whence.gradients.recording import Call, Layers, Recorder, backward, forward
from whence.task import ParameterLayout, Task

FAILURES = (RuntimeError, NotImplementedError, ValueError)


@dataclass(frozen=True, eq=False)
class HookPlan:
    """The layers to hook.

    Attributes:
        layers: Layer -> its rule and its parameters.
        per_example: Layer -> how many rows of its input each example has, call by call.
        shared: Layers whose input (1, ...) is repeated for each example.
        fallback: Parameter -> why it has no rule.
    """

    layers: Layers
    per_example: dict[nn.Module, tuple[int, ...]]
    shared: frozenset[nn.Module]
    fallback: dict[str, str]

    def followed_by(self, recorder: Recorder, n: int) -> set[str]:
        """The planned parameters, less those of layers that `n` examples went through otherwise than the probes."""
        if recorder.overwritten:
            return set()
        good, bad = set[str](), set[str]()
        for module, (_, owned) in self.layers.items():
            rows = tuple(call.rows for call in recorder.calls[module])
            expected = tuple(n * per_example for per_example in self.per_example[module])
            (good if rows == expected else bad).update(owned.values())
        return good - bad

    def n_entries(self, layout: ParameterLayout) -> int:
        """Entries of all parameters with a rule, in layers that the probes went through."""
        sizes = dict(zip(layout.names, layout.sizes, strict=True))
        called = [owned for module, (_, owned) in self.layers.items() if self.per_example[module]]
        return sum(sizes[name] for name in {name for owned in called for name in owned.values()})


def plan_hooks(task: Task, trainable: Mapping[str, Tensor], fixed: Mapping[str, Tensor], batch: Batch) -> HookPlan:
    """Find the layers whose rule is right on this model, by one pass of two and one of three examples of the batch."""
    layers, fallback = _candidates(task.model, trainable.keys())
    try:
        return _judged(task, trainable, fixed, batch, layers, fallback)
    except FAILURES:
        bare = dict.fromkeys(_bare(layers), "the model does not run with one for each example")
        if not bare:
            raise
        return _judged(task, trainable, fixed, batch, _without(layers, bare), fallback | bare)


def _judged(
    task: Task,
    trainable: Mapping[str, Tensor],
    fixed: Mapping[str, Tensor],
    batch: Batch,
    layers: Layers,
    fallback: dict[str, str],
) -> HookPlan:
    """The layers that the probes find right, and why other parameters have none."""
    fallback = dict(fallback)
    pair, triple = (Probe.of(task, trainable, fixed, batch, n, layers) for n in (2, 3))
    shared = frozenset(module for module in layers if _is_shared(pair.rows[module] + triple.rows[module]))
    if shared:
        pair, triple = (Probe.of(task, trainable, fixed, batch, n, layers, shared) for n in (2, 3))
    for name in pair.strays:
        fallback.setdefault(name, "it is used outside the calls of its layer")
    faults = {module: _fault_of_rows(pair.rows[module], triple.rows[module]) or pair.fault(module) for module in layers}
    for module, (_, owned) in layers.items():
        for name in owned.values() if faults[module] else ():
            fallback.setdefault(name, f"in its {_type_name(module)}, {faults[module]}")
    layers = _without(layers, fallback)
    per_example = {module: tuple(rows // 2 for rows in pair.rows[module]) for module in layers}
    return HookPlan(
        layers, per_example, shared & layers.keys(), {name: fallback[name] for name in trainable if name in fallback}
    )


def _candidates(model: nn.Module, names: Set[str]) -> tuple[Layers, dict[str, str]]:
    """Layers with a rule, and why other parameters have none. Tied parameters have one name, and several layers."""
    by_id = {id(p): name for name, p in model.named_parameters() if name in names}
    layers: Layers = {}
    fallback: dict[str, str] = {}
    for module in model.modules():
        left = {by_id[id(p)] for p in module._parameters.values() if id(p) in by_id}
        for layer, rule, parameters in layers_of(module):
            owned = {own: by_id[id(p)] for own, p in parameters.items() if id(p) in by_id}
            layers[layer] = (rule, owned)
            left.difference_update(owned.values())
        fallback |= dict.fromkeys(left, f"{type(module).__name__} has no rule")
    return _without(layers, fallback), fallback


def _bare(layers: Layers) -> set[str]:
    """Parameters that a module uses itself, and that were tried with a row for each example."""
    parts = [(layer, owned) for layer, (_, owned) in layers.items() if isinstance(layer, Part)]
    return {name for part, owned in parts if isinstance(part.whole, BareParameters) for name in owned.values()}


def _type_name(module: nn.Module) -> str:
    """Of a layer, or of the module that it is a part of."""
    return type(module.whole.module if isinstance(module, Part) else module).__name__


def _without(layers: Layers, names: Collection[str]) -> Layers:
    """The layers less these parameters."""
    kept = {
        module: (rule, {own: name for own, name in owned.items() if name not in names})
        for module, (rule, owned) in layers.items()
    }
    return {module: entry for module, entry in kept.items() if entry[1]}


def _is_shared(rows: tuple[int, ...]) -> bool:
    """Whether a layer had an input of one row in every call, whatever the number of examples."""
    return bool(rows) and set(rows) == {1}


def _fault_of_rows(pair: tuple[int, ...], triple: tuple[int, ...]) -> str:
    """What is wrong with the rows that 2 and 3 examples have in each call of a layer; "" if nothing."""
    if len(pair) != len(triple):
        return "the number of calls depends on the batch"
    if any(two <= 0 or two % 2 or 3 * two != 2 * three for two, three in zip(pair, triple, strict=True)):
        return "the first dimension of an input is not the examples"
    return ""


@dataclass(frozen=True, eq=False)
class Probe:
    """What the layers saw of the first few examples.

    Attributes:
        rows: Layer -> first dimension of its input, call by call.
        mixed: Layers where an example reaches into the rows of another.
        failed: Layers whose rule raised.
        strays: Parameters that something else than their layer uses.
    """

    rows: dict[nn.Module, tuple[int, ...]]
    mixed: set[nn.Module]
    failed: set[nn.Module]
    strays: set[str]

    @classmethod
    def of(
        cls,
        task: Task,
        trainable: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        batch: Batch,
        n: int,
        layers: Layers,
        shared: Set[nn.Module] = frozenset(),
    ) -> Probe:
        """Run the model on `n` examples of the batch, the last one repeated where there are fewer."""
        last = batch_size(batch) - 1
        few = take(batch, torch.tensor([min(i, last) for i in range(n)]))
        outputs, recorder = forward(task, trainable, fixed, few, layers, shared)
        rows = {module: tuple(call.rows for call in calls) for module, calls in recorder.calls.items()}
        probe = cls(rows, set(), set(), set())
        if outputs.requires_grad:
            for i in range(n if n == 2 else 0):  # the second probe is there for its shapes
                probe._look_at(i, n, outputs, recorder)
        return probe

    def _look_at(self, i: int, n: int, outputs: Tensor, recorder: Recorder) -> None:
        """Send the gradient of example i alone back: it may reach only the rows of example i."""
        one = torch.zeros_like(outputs)
        one[i] = waves(outputs)[i]
        calls = recorder.with_edges(recorder.leaves.keys())
        ends = [call.edge for call in calls if call.edge is not None]
        found = backward(outputs, [*ends, *(recorder.leaves.values() if i == 0 else ())], one, retain_graph=i + 1 < n)
        if i == 0:
            leaves = zip(recorder.leaves, found[len(ends) :], strict=True)
            self.strays.update(name for name, g in leaves if g is not None)
        for call, g in zip(calls, found, strict=False):
            if g is not None and call.rows > 0 and call.rows % n == 0:
                self._judge(call, g.detach(), i, n)

    def _judge(self, call: Call, g: Tensor, i: int, n: int) -> None:
        others = [j for j in range(n) if j != i]
        if bool(g.reshape(n, -1)[others].ne(0).any()):  # so is NaN
            self.mixed.add(call.module)
        if i == 0 and isinstance(call.rule, LocalRule):
            out = {own: g.new_empty(n, *shape) for own, shape in call.shapes.items()}
            try:
                call.fill(g, out)
            except FAILURES:
                self.failed.add(call.module)

    def fault(self, module: nn.Module) -> str:
        """What is wrong with a layer; "" if nothing."""
        if module in self.failed:
            return "its rule cannot be run"
        return "the rows of an input are not in the order of the examples" if module in self.mixed else ""


def waves(outputs: Tensor) -> Tensor:
    """Numbers without pattern, of the shape of `outputs`: a fixed cotangent for probes."""
    n = outputs.numel()
    return torch.cos(1.7 * torch.arange(n, device=outputs.device) + 0.3).to(outputs.dtype).reshape(outputs.shape)
