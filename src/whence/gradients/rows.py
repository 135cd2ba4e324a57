"""Per-example gradients of a whole data set, in blocks under a memory budget.

Everything a gradient method needs is a pull-back `J_i^T v`: with v the slope of the loss it is the loss gradient,
with the slope of the measure the query's gradient, with a root of the loss's Hessian a row of the curvature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from whence.batches import Batch, cast_batch, take
from whence.checks import look_up, require_finite
from whence.data import Examples
from whence.errors import NonFiniteError, ShapeError, UnsupportedError
from whence.gradients.hooks import pull_back_hooks
from whence.gradients.loop import pull_back_loop
from whence.gradients.passes import Cotangents, fitting_outputs, slope_of
from whence.gradients.route import Route, agrees, n_outputs, route_of, to_check
from whence.gradients.vectorized import pull_back_vmap, push_forward
from whence.task import Task, model_state, working_dtype

PullBack = Callable[[Task, dict[str, Tensor], dict[str, Tensor], Batch, Tensor], Tensor]
PATHS: dict[str, PullBack] = {"hooks": pull_back_hooks, "vmap": pull_back_vmap, "loop": pull_back_loop}
DEFAULT_MEMORY = 256 * 2**20  # bytes that one block of gradients may take
MANY = 64  # examples in a block, beyond which a pass is no faster
FORWARD_EXAMPLES = 4096  # of a pass without gradients, at most
ALL_OUTPUTS = 4 * 2**30  # bytes of the outputs of a whole data set, where a method needs them all at once
PASSES = 4  # copies of a block that live at once: the vmapped gradient, its flattening, and the consumer's product


def chunk_size(n_rows: int, n_params: int, dtype: torch.dtype, memory: int = DEFAULT_MEMORY) -> int:
    """How many examples with `n_rows` gradient rows each fit the memory budget; at least one.

    More than `MANY` only where they take no more than a quarter of it.
    """
    fitting = memory // (PASSES * n_rows * n_params * dtype.itemsize)
    return max(1, min(fitting, MANY), fitting // 4)


def pull_back(
    task: Task,
    examples: Examples,
    cotangents: Tensor | Cotangents,
    *,
    path: str = "auto",
    dtype: torch.dtype | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of `J_i^T v` over a data set, in order.

    Args:
        task: Model and contract, in eval mode.
        examples: `n` examples.
        cotangents: (n, r, c) or (n, c): vectors in the space of the c flattened outputs of each example. Or what makes
            one vector an example of the outputs of a block, (b, ...) -> (b, 1, c): then no more than the outputs of a
            block exist at any time, and each block costs one more forward pass.
        path: "hooks" (layer by layer, see `hook_coverage`), "vmap", "loop", or "auto": hooks where every parameter has
            a rule and they agree with plain autograd, else vmap, and the loop where a model cannot be vmapped.
        dtype: Precision; default the parameters' own, never below float32.
        memory: Bytes that one block may take.
    Yields:
        (slice of examples, (b, r, n_params)).
    Raises:
        NonFiniteError: A gradient is NaN or infinite; the message names the example and the parameter.
    """
    vectors = cotangents[:, None] if isinstance(cotangents, Tensor) and cotangents.ndim == 2 else cotangents
    if isinstance(vectors, Tensor) and vectors.shape[0] != len(examples):
        raise ShapeError(f"`cotangents` must have one entry per example, {len(examples)}; got {vectors.shape[0]}.")
    dtype = working_dtype(task.model, dtype)
    state = model_state(task.model, dtype)
    n_rows = vectors.shape[1] if isinstance(vectors, Tensor) else 1
    size = min(chunk_size(n_rows, task.layout.n_params, dtype, memory), fitting_outputs(task, examples, dtype))
    if path != "auto":
        look_up(PATHS, path, "gradient path")
    route = route_of(task, examples) if path == "auto" else Route(path)
    for positions, found in examples.batches(size):
        part = slice(int(positions[0]), int(positions[-1]) + 1)
        batch = cast_batch(found, dtype, task.device)
        if isinstance(vectors, Tensor):
            v = vectors[part]
        else:
            v = vectors(_outputs(task, state, batch, examples, part), batch, part)
        rows = _run(route, task, state, batch, v.to(device=task.device, dtype=dtype), to_check(part))
        _require_finite_rows(rows, task, examples, part)
        yield part, rows.detach()


def _run(
    route: Route,
    task: Task,
    state: tuple[dict[str, Tensor], dict[str, Tensor]],
    batch: Batch,
    cotangents: Tensor,
    example: int | None,
) -> Tensor:
    """Rows of one block; those by a plan of hooks are compared with the loop on one example."""
    if route.plan is None:
        return PATHS[route.path](task, *state, batch, cotangents)
    rows = pull_back_hooks(task, *state, batch, cotangents, plan=route.plan)
    if example is None:
        return rows
    one = torch.tensor([example])
    if agrees(rows[one], pull_back_loop(task, *state, take(batch, one), cotangents[one])):
        return rows
    return pull_back_loop(task, *state, batch, cotangents)


def _require_finite_rows(rows: Tensor, task: Task, examples: Examples, part: slice) -> None:
    # The sum of finite rows is finite but for overflow, and takes one pass instead of three.
    if bool(torch.isfinite(rows.sum())) or bool(torch.isfinite(rows).all()):
        return
    bad = (~torch.isfinite(rows)).any(1).nonzero()[0]
    offsets = torch.tensor(task.layout.offsets[1:])
    layer = task.layout.names[int(torch.searchsorted(offsets, bad[1].cpu(), right=True))]
    raise NonFiniteError(
        f"The gradient of example {examples.ids[part.start + int(bad[0])]!r} has NaN or infinite values in parameter "
        f"{layer!r}. Look at that example, or compute in float64."
    )


def output_blocks(
    task: Task, examples: Examples, *, dtype: torch.dtype | None = None
) -> Iterator[tuple[slice, Tensor, Batch]]:
    """Outputs of the final model, block by block.

    Args:
        task: Model and contract, in eval mode.
        examples: `n` examples.
        dtype: Precision; default the parameters' own, never below float32.
    Yields:
        (slice of examples, outputs (b, ...), the batch that gave them), in order.
    Raises:
        NonFiniteError: An output is NaN or infinite; the examples are named.
    """
    dtype = working_dtype(task.model, dtype)
    state = model_state(task.model, dtype)
    for positions, found in examples.batches(min(FORWARD_EXAMPLES, fitting_outputs(task, examples, dtype))):
        part = slice(int(positions[0]), int(positions[-1]) + 1)
        batch = cast_batch(found, dtype, task.device)
        yield part, _outputs(task, state, batch, examples, part), batch


def _outputs(
    task: Task, state: tuple[dict[str, Tensor], dict[str, Tensor]], batch: Batch, examples: Examples, part: slice
) -> Tensor:
    with torch.no_grad():
        outputs = task.call({**state[0], **state[1]}, batch)
    require_finite(outputs, "`outputs`", rows="example", ids=examples.ids[part])
    return outputs


def outputs_of(task: Task, examples: Examples, *, dtype: torch.dtype | None = None) -> Tensor:
    """Outputs of the final model on every example, (n, ...), in `dtype`.

    Raises:
        UnsupportedError: They would take more than `ALL_OUTPUTS` bytes, before the pass.
        NonFiniteError: An output is NaN or infinite; the examples are named.
    """
    each = n_outputs(task, examples)
    total = len(examples) * each * working_dtype(task.model, dtype).itemsize
    if total > ALL_OUTPUTS:
        raise UnsupportedError(
            f"The outputs of all {len(examples)} examples at once, {each} numbers each (for a language model tokens "
            f"times vocabulary), would take {total / 2**30:.0f} GiB. Use a method that goes block by block: grad_dot, "
            "tracin, datainf, logra, trackstar, or ekfac or kfac with fisher='sampled'."
        )
    return torch.cat([outputs for _, outputs, _ in output_blocks(task, examples, dtype=dtype)])


def moved_outputs(task: Task, examples: Examples, direction: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
    """Linearised outputs `f_i + J_i d` after the parameters move along `direction` (n_params,); (n, ...)."""
    dtype = working_dtype(task.model, dtype)
    trainable, fixed = model_state(task.model, dtype)
    blocks = []
    for _, now, batch in output_blocks(task, examples, dtype=dtype):
        blocks.append(now + push_forward(task, trainable, fixed, batch, direction.to(dtype)))
    return torch.cat(blocks)


def slopes(fn: Callable[[Tensor, Batch], Tensor], outputs: Tensor, examples: Examples) -> Tensor:
    """Derivative of a per-example scalar in that example's own outputs; (n, ...) -> (n, c) with c flattened outputs."""
    leaf = outputs.detach().requires_grad_()
    batch = cast_batch(examples.all(), outputs.dtype, outputs.device)
    (slope,) = torch.autograd.grad(fn(leaf, batch).sum(), leaf)
    return slope.reshape(outputs.shape[0], -1)


def loss_gradients(
    task: Task,
    examples: Examples,
    *,
    path: str = "auto",
    dtype: torch.dtype | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Iterator[tuple[slice, Tensor]]:
    """Blocks (slice, (b, n_params)) of the gradient of each example's own loss at the final parameters."""
    v = slope_of(task.loss)
    for part, rows in pull_back(task, examples, v, path=path, dtype=dtype, memory=memory):
        yield part, rows[:, 0]


def measure_gradients(
    task: Task,
    queries: Examples,
    *,
    outputs: Tensor | None = None,
    path: str = "auto",
    dtype: torch.dtype | None = None,
    memory: int = DEFAULT_MEMORY,
) -> Tensor:
    """Gradient of each query's measure, (n_query, n_params), with its slope taken at `outputs` where given.

    With `outputs` the linearised outputs after further training, this is the query side looked ahead.
    """
    v = slope_of(task.measure) if outputs is None else slopes(task.measure, outputs, queries)
    return torch.cat([rows[:, 0] for _, rows in pull_back(task, queries, v, path=path, dtype=dtype, memory=memory)])
