"""What the adapters share: calling a model of the transformers kind, and reading its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.batches import Batch, named_leaves
from whence.errors import InputError, ShapeError, UnsupportedError
from whence.task import Pick
from whence.task.task import Outputs

ATTENTION = ("sdpa", "eager")  # implementations with all derivatives
Kind = Literal["classification", "regression"]


def logits(model: nn.Module, arguments: Mapping[str, object]) -> Tensor:
    """`model(**arguments)`, of which: the field or key "logits", the first of a tuple, or the tensor itself.

    torch's fused attention has no second derivatives and no forward mode: its plain formula, equal to rounding, is
    taken instead, and the model itself stays as it is. Masked texts go through the hooks path, or the loop: the masks
    of transformers ask whether anything is masked at all, which `vmap` over examples cannot answer.

    Cost:
        The plain formula holds t^2 numbers for each head and text of t tokens.
    """
    with sdpa_kernel(SDPBackend.MATH):
        found: Any = model(**arguments)
    if isinstance(found, Tensor):
        return found
    if hasattr(found, "logits"):
        found = found.logits
    elif isinstance(found, Mapping) and "logits" in found:
        found = found["logits"]
    elif isinstance(found, Sequence) and len(found) > 0:
        found = found[0]
    if not isinstance(found, Tensor):
        raise ShapeError(
            f"The model's answer must be a tensor, have `logits`, or be a tuple that begins with them; got a "
            f"{type(found).__name__}. Use `Task(model, outputs=...)` with a callable that gives the logits."
        )
    return found


def part(batch: Batch, pick: Pick, argument: str) -> Tensor:
    """A part that every batch must have.

    Raises:
        ShapeError: It is not there; the message names what is, and the argument that says where to look.
    """
    found = optional_part(batch, pick)
    if found is None:
        places = ", ".join(place.removeprefix("batch") or "one tensor" for place, _ in named_leaves(batch))
        raise ShapeError(
            f"The batch has no `{argument}` under {pick.key!r}; it has {places}. Add it to the examples, or name its "
            f"place: `{argument}=...` of the adapter."
        )
    return found


def optional_part(batch: Batch, pick: Pick) -> Tensor | None:
    """A part that a batch may lack."""
    try:
        found: Tensor = pick(batch)
    except ShapeError:
        return None
    return found


def head_input(model: nn.Module, outputs: Outputs, batch: Batch) -> Tensor:
    """What the model's last linear layer sees during `outputs(model, batch)`.

    Raises:
        InputError: The model has no linear layer, or does not use its last one.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    seen: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda module, args: seen.append(args[0])) for layer in layers[-1:]]
    try:
        outputs(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise InputError("The model uses no last nn.Linear in its forward pass; pass `embedding=` to the adapter.")
    return seen[-1]


@dataclass(frozen=True)
class Labels:
    """Labels (b,) of a classifier, or targets of a regression as the outputs are: (b, 1) where they come as (b,)."""

    pick: Pick
    kind: Kind

    def __call__(self, batch: Batch) -> Tensor:
        found = part(batch, self.pick, "target")
        return found[:, None] if self.kind == "regression" and found.ndim == 1 else found


def kind_of(model: nn.Module) -> Kind:
    """What the model was trained for, by its `config` as transformers read it; a classifier where there is none.

    Raises:
        UnsupportedError: Several labels at once, or an attention without the derivatives that methods need.
        InputError: A classifier of one label.
    """
    config = getattr(model, "config", None)
    problem, n_labels = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
    require_attention(config)
    if problem == "multi_label_classification":
        raise UnsupportedError(
            'The model has problem_type "multi_label_classification", and this adapter knows one label an example. Use '
            "`Task(model, outputs=..., loss=...)` with a binary cross-entropy averaged over labels, example by example."
        )
    if problem == "regression" or (problem is None and n_labels == 1):
        return "regression"
    if n_labels == 1:
        raise InputError(
            f"The model has problem_type {problem!r} and one output; a classifier needs two at least. Set "
            '`model.config.problem_type = "regression"`, or load it with `num_labels=2`.'
        )
    return "classification"


def require_attention(config: Any) -> None:
    """Refuse an attention without the derivatives that methods need.

    Raises:
        UnsupportedError: It is neither of `ATTENTION`.
    """
    found = getattr(config, "_attn_implementation", None)
    if found is not None and found not in ATTENTION:
        raise UnsupportedError(
            f"The model runs attention as {found!r}, which has no derivatives of the gradient, and none at all in full "
            'precision. Load it with `attn_implementation="sdpa"` or "eager"; the weights are the same.'
        )
