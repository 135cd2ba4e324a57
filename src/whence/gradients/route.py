"""Which path the gradients of a task take on its data, found once and kept."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from whence.batches import Batch, cast_batch, flatten
from whence.data import Examples
from whence.errors import UnsupportedError
from whence.gradients.hooks import pull_back_hooks
from whence.gradients.loop import pull_back_loop
from whence.gradients.plan import FAILURES, HookPlan, plan_hooks, waves
from whence.gradients.vectorized import pull_back_vmap
from whence.task import Task, model_state, working_dtype

EVERY = 64  # of so many examples one is computed again by the loop


@dataclass(frozen=True)
class HookCoverage:
    """Which parameters have a layer rule on a model and its data.

    Attributes:
        ruled: Parameters with a rule.
        fallback: Parameter -> why it goes through the vmap or loop path.
    """

    ruled: tuple[str, ...]
    fallback: dict[str, str]


@dataclass(frozen=True, eq=False)
class Route:
    """How gradients are computed.

    Attributes:
        path: "hooks", "vmap" or "loop".
        plan: The layers to hook, where the path is "hooks".
    """

    path: str
    plan: HookPlan | None = None


@dataclass(frozen=True, eq=False)
class _Found:
    """What the first examples of a data set say of a task.

    Attributes:
        route: How gradients are computed.
        plan: Layers whose rules are right, also where other parameters have none; None where rules are wrong.
    """

    route: Route
    plan: HookPlan | None


_KNOWN: WeakKeyDictionary[Task, dict[Hashable, _Found]] = WeakKeyDictionary()
_N_OUTPUTS: WeakKeyDictionary[Task, dict[Hashable, int]] = WeakKeyDictionary()


def route_of(task: Task, examples: Examples) -> Route:
    """Hooks where they are right and of use, else vmap, else the loop.

    They are of use if no parameter falls back, for that costs a whole vmap pass however small the parameter, and if at
    least half of the entries of all parameters belong to layers that the examples go through.
    """
    return _found(task, examples).route


def layer_plan(task: Task, examples: Examples) -> HookPlan:
    """The layers with a rule, which may be few.

    Raises:
        UnsupportedError: Gradients by rules differ from plain autograd on this model.
    """
    plan = _found(task, examples).plan
    if plan is None:
        raise UnsupportedError(
            "Layer by layer, the gradients of this model differ from plain autograd: its examples mix, or a layer runs "
            "in a way that its type does not say. `whence.gradients.check_gradients` shows more. Use a method without "
            "layers, such as influence_cg."
        )
    return plan


def _found(task: Task, examples: Examples) -> _Found:
    """Looked for on the first three examples and kept with the task, for examples of these shapes, while its modules
    are the same."""
    batch = _few(task, examples)
    key = _key(task, batch)
    known = _KNOWN.setdefault(task, {})
    if key not in known:
        plan = right_plan(task, batch)
        if plan is not None and not plan.fallback and 2 * plan.n_entries(task.layout) >= task.layout.n_params:
            known[key] = _Found(Route("hooks", plan), plan)
        else:
            known[key] = _Found(Route("vmap" if _can_vmap(task, batch) else "loop"), plan)
    return known[key]


def _key(task: Task, batch: Batch) -> Hashable:
    """What must be the same for something found once to be still true."""
    leaves, _ = flatten(batch)
    shapes = tuple((x.shape[1:], x.dtype) for x in leaves)
    return (shapes, task.layout.names, tuple((id(module), module.training) for module in task.model.modules()))


def n_outputs(task: Task, examples: Examples) -> int:
    """How many numbers the model gives for each example; found on the first one and kept with the task."""
    one = _few(task, examples, 1)
    key, known = _key(task, one), _N_OUTPUTS.setdefault(task, {})
    if key not in known:
        trainable, fixed = model_state(task.model, working_dtype(task.model))
        with torch.no_grad():
            known[key] = task.call({**trainable, **fixed}, one).numel()
    return known[key]


def choose_path(task: Task, examples: Examples) -> str:
    """The path that "auto" takes."""
    return route_of(task, examples).path


def can_vmap(task: Task, examples: Examples) -> bool:
    """Whether the model can be vmapped, tried on three examples."""
    return _can_vmap(task, _few(task, examples))


def hook_coverage(task: Task, examples: Examples) -> HookCoverage:
    """Which parameters of the task have a rule, and why the others have none; found on three examples."""
    trainable, fixed = model_state(task.model, working_dtype(task.model))
    plan = plan_hooks(task, trainable, fixed, _few(task, examples))
    return HookCoverage(tuple(name for name in task.layout.names if name not in plan.fallback), plan.fallback)


def right_plan(task: Task, batch: Batch) -> HookPlan | None:
    """The layers to hook, if the rows they give agree with plain autograd on the batch."""
    dtype = working_dtype(task.model)
    trainable, fixed = model_state(task.model, dtype)
    try:
        with torch.no_grad():
            outputs = task.call({**trainable, **fixed}, batch)
        v = waves(outputs).reshape(outputs.shape[0], 1, -1).to(dtype)
        plan = plan_hooks(task, trainable, fixed, batch)
        found = pull_back_hooks(task, trainable, fixed, batch, v, plan=plan)
    except FAILURES:
        return None
    return plan if agrees(found, pull_back_loop(task, trainable, fixed, batch, v)) else None


def agrees(found: Tensor, reference: Tensor) -> bool:
    """Whether both are equal to rounding, of the largest entry; not for NaN."""
    gap, scale = (found - reference).abs().max(), reference.abs().max().clamp_min(torch.finfo(found.dtype).tiny)
    return bool(gap <= tolerance(found.dtype) * scale)


def tolerance(dtype: torch.dtype) -> float:
    """What counts as rounding, of the largest entry: sums of thousands of products in another order."""
    return 1e-10 if dtype == torch.float64 else 1e-4


def to_check(part: slice) -> int | None:
    """Which example of a block, counted from its first, is computed again by the loop: one in `EVERY`, and the first.

    The layers were found on three examples; a model may treat others in another way.
    """
    due = -(-part.start // EVERY) * EVERY
    return due - part.start if due < part.stop else None


def _can_vmap(task: Task, batch: Batch) -> bool:
    trainable, fixed = model_state(task.model, working_dtype(task.model))
    with torch.no_grad():
        outputs = task.call({**trainable, **fixed}, batch)
    try:
        pull_back_vmap(task, trainable, fixed, batch, torch.ones_like(outputs).reshape(outputs.shape[0], 1, -1))
    except FAILURES:
        return False
    return True


def _few(task: Task, examples: Examples, n: int = 3) -> Batch:
    first = examples.batch(range(min(n, len(examples))))
    return cast_batch(first, working_dtype(task.model), task.device)
