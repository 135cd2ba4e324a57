"""Fast path: one ordinary batched pass with hooks, and one rule a layer for the gradients of its parameters.

A hook at each layer keeps the input of every call; the backward pass stops at the outputs of these calls and never
forms a summed parameter gradient. Two probes of two and three examples find the layers for which this is right: those
that see the examples one after the other in their first dimension, and whose parameters are used nowhere else. All
other parameters take the vmap path, or the loop.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from whence.batches import Batch, batch_size, take
from whence.data import Examples
from whence.gradients.layers import Captured, LayerRule, LocalRule, rule_for
from whence.gradients.loop import pull_back_loop
from whence.gradients.vectorized import pull_back_vmap
from whence.task import ParameterLayout, Task, model_state, working_dtype

FAILURES = (RuntimeError, NotImplementedError, ValueError)
AGREEMENT = {torch.float64: 1e-10}  # of the largest entry; in other precisions:
AGREEMENT_LOW = 1e-4  # sums of thousands of float32 products in another order
Layers = dict[nn.Module, tuple[LayerRule, dict[str, str]]]  # layer -> its rule, and own parameter -> name in the layout


@dataclass(frozen=True)
class HookCoverage:
    """Which parameters have a layer rule on a model and its data.

    Attributes:
        ruled: Parameters with a rule.
        fallback: Parameter -> why it goes through the vmap or loop path.
    """

    ruled: tuple[str, ...]
    fallback: dict[str, str]


def pull_back_hooks(
    task: Task,
    trainable: dict[str, Tensor],
    fixed: dict[str, Tensor],
    batch: Batch,
    cotangents: Tensor,
    *,
    plan: HookPlan | None = None,
) -> Tensor:
    """`J_i^T v` for every example i and every cotangent v of it; same arguments and result as `pull_back_loop`.

    Wrong where a model reorders or routes its examples by their values in a way that the first three examples of the
    batch, or those that `plan` was made on, do not show. Outputs that mix the examples of a batch are refused by
    `check_gradients`.

    Args:
        task: How the model is run.
        trainable: Tracked parameters, named as in `task.layout`.
        fixed: Frozen parameters and buffers.
        batch: `b` examples.
        cotangents: (b, r, c), vectors in the space of the c flattened outputs.
        plan: What `plan_hooks` found on other examples of the same data; default found on this batch.
    Returns:
        (b, r, n_params).
    Cost:
        One forward and r backward passes of the batch, two small passes for the plan where it is not given, and r
        vmapped passes for parameters without a rule; memory b * r * n_params and the activations of b examples.
    """
    plan = plan_hooks(task, trainable, fixed, batch) if plan is None else plan
    rows = _Rows(task.layout, cotangents)
    ruled = _run_rules(task, trainable, fixed, batch, cotangents, plan, rows)
    _fall_back(task, trainable, fixed, batch, cotangents, trainable.keys() - ruled, rows)
    return rows.flat


def hook_coverage(task: Task, examples: Examples) -> HookCoverage:
    """Which parameters of the task have a rule, and why the others have none; found on three examples."""
    dtype = working_dtype(task.model)
    trainable, fixed = model_state(task.model, dtype)
    plan = plan_hooks(task, trainable, fixed, _few(task, examples, dtype))
    return HookCoverage(tuple(name for name in task.layout.names if name not in plan.fallback), plan.fallback)


def supports_hooks(task: Task, examples: Examples) -> bool:
    """Whether `pull_back_hooks` is right and of use on this model.

    It is right if it agrees with plain autograd on the first three examples. It is of use if no parameter falls back,
    for that costs a whole vmap pass however small the parameter, and if at least half of the entries of all parameters
    belong to layers that these examples go through.
    """
    dtype = working_dtype(task.model)
    trainable, fixed = model_state(task.model, dtype)
    batch = _few(task, examples, dtype)
    try:
        with torch.no_grad():
            outputs = task.call({**trainable, **fixed}, batch)
        v = waves(outputs).reshape(outputs.shape[0], 1, -1).to(dtype)
        plan = plan_hooks(task, trainable, fixed, batch)
        if plan.fallback or 2 * plan.n_entries(task.layout) < task.layout.n_params:
            return False
        found = pull_back_hooks(task, trainable, fixed, batch, v, plan=plan)
    except FAILURES:
        return False
    reference = pull_back_loop(task, trainable, fixed, batch, v)
    gap, scale = (found - reference).abs().max(), reference.abs().max().clamp_min(torch.finfo(dtype).tiny)
    return bool(gap <= AGREEMENT.get(dtype, AGREEMENT_LOW) * scale)  # False for NaN


def _few(task: Task, examples: Examples, dtype: torch.dtype) -> Batch:
    from whence.gradients.rows import cast_batch  # `rows` lists this path in its table

    return cast_batch(examples.batch(range(min(3, len(examples)))), dtype, task.device)


# --- recording --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a layer.

    Attributes:
        rule: Its layer rule.
        owners: Own parameter -> the name in the layout.
        x: What the rule keeps of the input.
        rows: First dimension of input and output, -1 where they differ or the call is of an unknown form.
        edge: Where the backward pass stops; None where nothing flows back.
    """

    module: nn.Module
    rule: LayerRule
    owners: dict[str, str]
    x: Captured
    rows: int
    edge: GradientEdge | None

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Own parameter -> its shape."""
        return {own: self.module._parameters[own].shape for own in self.owners}  # type: ignore[union-attr]

    def fill(self, g: Tensor, out: Mapping[str, Tensor]) -> None:
        """Write the gradients of own parameters, in the precision of `out`."""
        some = next(iter(out.values()))
        self.rule.fill(self.module, _cast(self.x, some.dtype), g.to(some.dtype), len(some), out)


def _cast(x: Captured, dtype: torch.dtype) -> Captured:
    return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x


@dataclass(eq=False)
class _Recorder:
    """While entered, keeps every call of the given layers, and gives each call parameters of its own.

    With a fresh leaf for each call, a parameter's own leaf is in the graph only if something else uses it.
    """

    leaves: Mapping[str, Tensor]
    layers: Layers
    calls: dict[nn.Module, list[_Call]] = field(default_factory=dict)
    inputs: list[tuple[Tensor, int]] = field(default_factory=list)
    replaced: dict[nn.Module, dict[str, Any]] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        for module in self.layers:
            self.calls[module] = []
            before = module.register_forward_pre_hook(self._before)
            self.stack.callback(before.remove)
            after = module.register_forward_hook(self._after, prepend=True, with_kwargs=True, always_call=True)
            self.stack.callback(after.remove)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stack.close()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        slots: dict[str, Any] = module._parameters  # not `setattr`, which refuses tensors that are not parameters
        kept = {own: slots[own] for own, owner in self.layers[module][1].items() if slots[own] is self.leaves[owner]}
        self.replaced[module] = kept
        slots.update({own: leaf.detach().requires_grad_() for own, leaf in kept.items()})

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        rule, owners = self.layers[module]
        kept = self.replaced.pop(module, {})
        module._parameters.update(kept)
        if isinstance(output, Tensor):
            if output.requires_grad:
                inputs = (*args, *kwargs.values()) if kept.keys() == owners.keys() else ()
                self.calls[module].append(self._call(module, rule, owners, inputs, output))
        elif output is not None:  # None after an error
            self.calls[module].append(_Call(module, rule, owners, None, -1, None))

    def _call(
        self, module: nn.Module, rule: LayerRule, owners: dict[str, str], args: tuple[Any, ...], output: Tensor
    ) -> _Call:
        edge = get_gradient_edge(output)
        known = len(args) == 1 and isinstance(args[0], Tensor) and args[0].ndim > 0 and output.ndim > 0
        if not known or args[0].shape[0] != output.shape[0]:
            return _Call(module, rule, owners, None, -1, edge)
        with torch.no_grad():
            captured = rule.capture(module, args[0])
        self.inputs.append((args[0], args[0]._version))
        return _Call(module, rule, owners, captured, args[0].shape[0], edge)

    @property
    def overwritten(self) -> bool:
        """Whether an input was changed in place after its layer had used it."""
        return any(x._version != version for x, version in self.inputs)

    def with_edges(self, names: Set[str]) -> list[_Call]:
        """The calls that something flows back to, of layers that hold one of these parameters."""
        calls = [call for found in self.calls.values() for call in found]
        return [call for call in calls if call.edge is not None and not names.isdisjoint(call.owners.values())]


def _forward(
    task: Task, trainable: Mapping[str, Tensor], fixed: Mapping[str, Tensor], batch: Batch, layers: Layers
) -> tuple[Tensor, _Recorder]:
    """Outputs of one batched pass, and what the layers saw of it."""
    owners = {owner for _, owned in layers.values() for owner in owned.values()}
    state = {name: x.detach() for name, x in trainable.items()}
    leaves = {name: state[name].requires_grad_() for name in owners}
    with torch.enable_grad(), _Recorder(leaves, layers) as recorder:
        outputs = task.call({**state, **fixed}, batch)
    return outputs, recorder


# --- the plan: which parameters have a rule that is right here --------------------------------------------------------


@dataclass(frozen=True, eq=False)
class HookPlan:
    """The layers to hook.

    Attributes:
        layers: Layer -> its rule and its parameters.
        per_example: Layer -> how many rows of its input each example has, call by call.
        fallback: Parameter -> why it has no rule.
    """

    layers: Layers
    per_example: dict[nn.Module, tuple[int, ...]]
    fallback: dict[str, str]

    def n_entries(self, layout: ParameterLayout) -> int:
        """Entries of all parameters with a rule, in layers that the probes went through."""
        sizes = dict(zip(layout.names, layout.sizes, strict=True))
        called = [owned for module, (_, owned) in self.layers.items() if self.per_example[module]]
        return sum(sizes[name] for name in {name for owned in called for name in owned.values()})


def plan_hooks(task: Task, trainable: Mapping[str, Tensor], fixed: Mapping[str, Tensor], batch: Batch) -> HookPlan:
    """Find the layers whose rule is right on this model, by one pass of two and one of three examples of the batch."""
    layers, fallback = _candidates(task.model, trainable.keys())
    pair = _Probe.of(task, trainable, fixed, batch, 2, layers)
    triple = _Probe.of(task, trainable, fixed, batch, 3, layers)
    for name in pair.strays:
        fallback.setdefault(name, "it is used outside the calls of its layer")
    faults = {module: _fault_of_rows(pair.rows[module], triple.rows[module]) or pair.fault(module) for module in layers}
    for module, (_, owned) in layers.items():
        for name in owned.values() if faults[module] else ():
            fallback.setdefault(name, f"in its {type(module).__name__}, {faults[module]}")
    layers = _without(layers, fallback)
    per_example = {module: tuple(rows // 2 for rows in pair.rows[module]) for module in layers}
    return HookPlan(layers, per_example, {name: fallback[name] for name in trainable if name in fallback})


def _candidates(model: nn.Module, names: Set[str]) -> tuple[Layers, dict[str, str]]:
    """Layers with a rule, and why other parameters have none. Tied parameters have one name, and several layers."""
    by_id = {id(p): name for name, p in model.named_parameters()}
    layers: Layers = {}
    fallback: dict[str, str] = {}
    for module in model.modules():
        own = {leaf: by_id[id(p)] for leaf, p in module._parameters.items() if p is not None}
        owned = {leaf: name for leaf, name in own.items() if name in names}
        rule = rule_for(module) if owned else None
        if rule is not None:
            layers[module] = (rule, owned)
        else:
            fallback |= dict.fromkeys(owned.values(), f"{type(module).__name__} has no rule")
    return _without(layers, fallback), fallback


def _without(layers: Layers, names: Collection[str]) -> Layers:
    """The layers less these parameters."""
    kept = {
        module: (rule, {own: name for own, name in owned.items() if name not in names})
        for module, (rule, owned) in layers.items()
    }
    return {module: entry for module, entry in kept.items() if entry[1]}


def _fault_of_rows(pair: tuple[int, ...], triple: tuple[int, ...]) -> str:
    """What is wrong with the rows that 2 and 3 examples have in each call of a layer; "" if nothing."""
    if len(pair) != len(triple):
        return "the number of calls depends on the batch"
    if any(two <= 0 or two % 2 or 3 * two != 2 * three for two, three in zip(pair, triple, strict=True)):
        return "the first dimension of an input is not the examples"
    return ""


@dataclass(frozen=True, eq=False)
class _Probe:
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
    ) -> _Probe:
        """Run the model on `n` examples of the batch, the last one repeated where there are fewer."""
        last = batch_size(batch) - 1
        few = take(batch, torch.tensor([min(i, last) for i in range(n)]))
        outputs, recorder = _forward(task, trainable, fixed, few, layers)
        rows = {module: tuple(call.rows for call in calls) for module, calls in recorder.calls.items()}
        probe = cls(rows, set(), set(), set())
        if outputs.requires_grad:
            for i in range(n if n == 2 else 0):  # the second probe is there for its shapes
                probe._look_at(i, n, outputs, recorder)
        return probe

    def _look_at(self, i: int, n: int, outputs: Tensor, recorder: _Recorder) -> None:
        """Send the gradient of example i alone back: it may reach only the rows of example i."""
        one = torch.zeros_like(outputs)
        one[i] = waves(outputs)[i]
        calls = recorder.with_edges(recorder.leaves.keys())
        ends = [call.edge for call in calls if call.edge is not None]
        found = _backward(outputs, [*ends, *(recorder.leaves.values() if i == 0 else ())], one, retain_graph=i + 1 < n)
        if i == 0:
            leaves = zip(recorder.leaves, found[len(ends) :], strict=True)
            self.strays.update(name for name, g in leaves if g is not None)
        for call, g in zip(calls, found, strict=False):
            if g is not None and call.rows > 0 and call.rows % n == 0:
                self._judge(call, g.detach(), i, n)

    def _judge(self, call: _Call, g: Tensor, i: int, n: int) -> None:
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


def _backward(
    outputs: Tensor, ends: list[GradientEdge | Tensor], v: Tensor, *, retain_graph: bool
) -> tuple[Tensor | None, ...]:
    """Gradients where the pass ends; None where it does not come by."""
    mixed: Any = ends  # torch takes tensors and edges in one list; its annotation does not
    found: tuple[Tensor | None, ...] = torch.autograd.grad(
        outputs, mixed, v, retain_graph=retain_graph, allow_unused=True
    )
    return found


def waves(outputs: Tensor) -> Tensor:
    """Numbers without pattern, of the shape of `outputs`: a fixed cotangent for probes."""
    n = outputs.numel()
    return torch.cos(1.7 * torch.arange(n, device=outputs.device) + 0.3).to(outputs.dtype).reshape(outputs.shape)


# --- the passes ------------------------------------------------------------------------------------------------------


class _Rows:
    """Rows (b, r, n_params) that are filled parameter by parameter."""

    def __init__(self, layout: ParameterLayout, cotangents: Tensor) -> None:
        self.flat = cotangents.new_empty(*cotangents.shape[:2], layout.n_params)
        pieces = torch.split(self.flat, list(layout.sizes), dim=-1)
        shaped = zip(layout.names, layout.shapes, pieces, strict=True)
        # Not `reshape`: `view` would rather fail than fill a copy.
        self.pieces = {name: piece.view(*self.flat.shape[:2], *shape) for name, shape, piece in shaped}
        self.started: set[tuple[str, int]] = set()

    def add(self, call: _Call, k: int, g: Tensor, names: Set[str]) -> None:
        """Add what a call contributes to the rows of cotangent k."""
        wanted = {own: name for own, name in call.owners.items() if name in names}
        places = {own: self.pieces[name][:, k] for own, name in wanted.items()}
        # The first contribution goes straight to its place: rows are large, and copies of them slow.
        again = {own for own, name in wanted.items() if (name, k) in self.started}
        targets = {own: torch.empty_like(place) if own in again else place for own, place in places.items()}
        call.fill(g, targets)
        for own in again:
            places[own] += targets[own]
        self.started.update((name, k) for name in wanted.values())

    def finish(self, names: Collection[str]) -> None:
        """Zero where nothing was added."""
        for name in names:
            for k in range(self.flat.shape[1]):
                if (name, k) not in self.started:
                    self.pieces[name][:, k].zero_()


def _run_rules(
    task: Task,
    trainable: dict[str, Tensor],
    fixed: dict[str, Tensor],
    batch: Batch,
    cotangents: Tensor,
    plan: HookPlan,
    rows: _Rows,
) -> set[str]:
    """Fill the rows of the parameters with a rule; returns their names."""
    if not plan.layers:
        return set()
    outputs, recorder = _forward(task, trainable, fixed, batch, plan.layers)
    names = _as_planned(recorder, plan, cotangents.shape[0])
    calls = recorder.with_edges(names)
    ends = [call.edge for call in calls if call.edge is not None]
    for k in range(cotangents.shape[1] if names and outputs.requires_grad else 0):
        v = cotangents[:, k].reshape(outputs.shape).to(outputs.dtype)
        # The parameters themselves cost nothing: nothing leads to them, or the probes would have seen it.
        watched = [recorder.leaves[name] for name in names] if k == 0 else []
        more = k + 1 < cotangents.shape[1]
        if not (ends or watched):
            break
        found = _backward(outputs, [*ends, *watched], v, retain_graph=more)
        names -= {name for name, g in zip(list(names), found[len(ends) :], strict=False) if g is not None}
        for call, g in zip(calls, found, strict=False):
            if g is not None and not names.isdisjoint(call.owners.values()):
                rows.add(call, k, g, names)
    rows.finish(names)
    return names


def _as_planned(recorder: _Recorder, plan: HookPlan, n: int) -> set[str]:
    """The planned parameters, less those of layers that this batch goes through in another way than the probes did."""
    if recorder.overwritten:
        return set()
    good, bad = set[str](), set[str]()
    for module, (_, owned) in plan.layers.items():
        rows = tuple(call.rows for call in recorder.calls[module])
        expected = tuple(n * per_example for per_example in plan.per_example[module])
        (good if rows == expected else bad).update(owned.values())
    return good - bad


def _fall_back(
    task: Task,
    trainable: dict[str, Tensor],
    fixed: dict[str, Tensor],
    batch: Batch,
    cotangents: Tensor,
    names: Set[str],
    rows: _Rows,
) -> None:
    """Fill the rows of these parameters by the vmap path, or by the loop where the model cannot be vmapped."""
    if not names:
        return
    part = copy.copy(task)
    kept = [(name, shape) for name, shape in zip(task.layout.names, task.layout.shapes, strict=True) if name in names]
    part.layout = ParameterLayout(tuple(name for name, _ in kept), tuple(shape for _, shape in kept))
    tracked = {name: trainable[name] for name, _ in kept}
    others = {**fixed, **{name: x for name, x in trainable.items() if name not in names}}
    try:
        found = pull_back_vmap(part, tracked, others, batch, cotangents)
    except FAILURES:
        # All of them: an example may go past these parameters, and autograd refuses outputs without any.
        part, found = task, pull_back_loop(task, trainable, fixed, batch, cotangents)
    pieces = part.layout.unflatten(found.detach())
    for name in tracked:
        rows.pieces[name].copy_(pieces[name])
