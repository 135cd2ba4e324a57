"""The contract between a user's model and everything else: outputs, a per-example loss, and a measure."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from whence.batches import Batch, batch_size, map_tensors, to_device
from whence.checks import require_finite
from whence.errors import InputError, ModeError, ShapeError
from whence.task.losses import CallableLoss, CrossEntropy, Loss, PerExample, SquaredError, Target
from whence.task.measures import Measure, make_measure
from whence.task.parameters import ParameterLayout

Outputs = Callable[[nn.Module, Batch], Tensor]
CHECKED_AT_ONCE = 256  # examples in a pass of `Task.check`, whose memory does not grow with the data
CHECKED_FIRST = 16  # examples in its first pass, which shows how large their outputs are
CHECKED_OUTPUTS = 2**22  # numbers in the outputs of a pass, which makes later passes of language models small


@dataclass(frozen=True)
class Pick:
    """Takes one part of a batch: a position of a tuple, a key of a dict or the name of a field."""

    key: int | str

    def __call__(self, batch: Batch) -> Any:
        try:
            if isinstance(self.key, str) and not isinstance(batch, dict):
                return getattr(batch, self.key)
            return batch[self.key]
        except (KeyError, IndexError, AttributeError, TypeError) as error:
            raise ShapeError(
                f"A batch of type {type(batch).__name__} has no part {self.key!r}. Say where inputs and targets "
                'are, e.g. `Task.classification(model, inputs="image", target="label")`.'
            ) from error


@dataclass(frozen=True)
class ModelOutputs:
    """`model(inputs(batch))`: the outputs of a model that takes one tensor."""

    inputs: Pick

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(self.inputs(batch))  # type: ignore[no-any-return]


class _Caller(nn.Module):
    """Lets `functional_call` run `outputs(model, batch)` with other parameters."""

    def __init__(self, model: nn.Module, outputs: Outputs) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs

    def forward(self, batch: Batch) -> Tensor:
        return self.outputs(self.model, batch)


@final
class Task:
    """A trained model, how it is run, what it was trained on and what is to be explained.

    Args:
        model: The final model, in eval mode.
        outputs: `(model, batch) -> (b, ...)`: one pass; batches are what `Examples` gives.
        loss: `(outputs, batch) -> (b,)`: the training loss of each example, unreduced; or a `Loss`.
        measure: What is explained of a query: "loss", "margin", "log_probability", "logit", a `Measure`, or a
            callable `(outputs, batch) -> (b,)`.
        lower_is_better: Whether a lower measure is better; needed with a callable measure, refused otherwise.
        output_hessian: `(outputs (b, c), batch) -> (b, c, c)`: Hessian of a callable loss in the outputs, positive
            semi-definite. Known by itself for squared error and cross-entropy.
        target: `batch -> labels`, for the measures of classifiers.
        embedding: `(model, batch) -> (b, d)` for the similarity baseline; default the input of the last linear layer.
        factory: "package.module:function" that builds this task again, for worker processes that cannot unpickle it.
    Raises:
        InputError: The measure does not fit the loss, or no parameter requires a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        outputs: Outputs,
        loss: Loss | PerExample,
        measure: str | Measure | PerExample = "loss",
        lower_is_better: bool | None = None,
        output_hessian: PerExample | None = None,
        target: Target | None = None,
        embedding: Outputs | None = None,
        factory: str | None = None,
    ) -> None:
        if isinstance(loss, Loss) and output_hessian is not None:
            raise InputError(f"The loss {loss.name!r} knows its own Hessian; leave out `output_hessian`.")
        self.model = model
        self.outputs = outputs
        self.loss = loss if isinstance(loss, Loss) else CallableLoss(loss, output_hessian)
        self.measure = make_measure(measure, lower_is_better, self.loss, target)
        self.embedding = embedding
        self.factory = factory
        self.layout = ParameterLayout.of(model)

    @classmethod
    def classification(
        cls,
        model: nn.Module,
        *,
        inputs: int | str = 0,
        target: int | str = 1,
        measure: str | Measure | PerExample = "loss",
        lower_is_better: bool | None = None,
        embedding: Outputs | None = None,
        factory: str | None = None,
    ) -> Task:
        """A classifier: `model(batch[inputs])` gives logits (b, classes), `batch[target]` integer labels (b,)."""
        pick = Pick(target)
        return cls(
            model,
            outputs=ModelOutputs(Pick(inputs)),
            loss=CrossEntropy(pick),
            measure=measure,
            lower_is_better=lower_is_better,
            target=pick,
            embedding=embedding,
            factory=factory,
        )

    @classmethod
    def regression(
        cls,
        model: nn.Module,
        *,
        inputs: int | str = 0,
        target: int | str = 1,
        measure: str | Measure | PerExample = "loss",
        lower_is_better: bool | None = None,
        embedding: Outputs | None = None,
        factory: str | None = None,
    ) -> Task:
        """A regression: `model(batch[inputs])` and `batch[target]` have one shape, (b, k) or (b,)."""
        pick = Pick(target)
        return cls(
            model,
            outputs=ModelOutputs(Pick(inputs)),
            loss=SquaredError(pick),
            measure=measure,
            lower_is_better=lower_is_better,
            target=pick,
            embedding=embedding,
            factory=factory,
        )

    @property
    def device(self) -> torch.device:
        """Where the model's parameters are."""
        return next(self.model.parameters()).device

    def with_model(self, model: nn.Module) -> Task:
        """The same task on another model of the same architecture."""
        twin = copy.copy(self)
        twin.model = model
        twin.layout = ParameterLayout.of(model)
        return twin

    def call(self, state: dict[str, Tensor], batch: Batch) -> Tensor:
        """Outputs (b, ...) of one pass with the given parameters and buffers in place of the model's own."""
        caller = _Caller(self.model, self.outputs)
        renamed = {f"model.{slot}": state[owner] for slot, owner in _slots(self.model).items() if owner in state}
        # Not `tie_weights=True`: where one module has two names it swaps tensors twice, and puts back the wrong ones.
        return functional_call(caller, renamed, (batch,), tie_weights=False)  # type: ignore[no-any-return]

    def require_eval(self) -> None:
        """Refuse a model in train mode: its answers depend on chance or on the batch."""
        noisy = [name or type(m).__name__ for name, m in self.model.named_modules() if m.training]
        if noisy:
            raise ModeError(
                f"The model is in train mode ({', '.join(noisy[:3])}{', ...' if len(noisy) > 3 else ''}): dropout and "
                "batch statistics would change the scores. Call `model.eval()` first."
            )

    def check(self, batch: Batch, ids: Sequence[object], role: str = "train example") -> None:
        """Run the model once on every example and refuse anything that cannot be attributed.

        Args:
            batch: A batch of `len(ids)` examples.
            ids: Their ids, for the messages.
            role: "train example" or "query".
        Raises:
            ModeError: The model is in train mode.
            ShapeError: Outputs, loss or measure do not have the examples as first dimension, or the model cannot
                take the batch.
            DataError: A class label is no integer, or names no output.
            NonFiniteError: A parameter, an output, a loss or a measure is NaN or infinite.
        Cost:
            A forward pass, and the memory of one of `CHECKED_AT_ONCE` examples, fewer where their outputs are large,
            which alone go to the model's device.
        """
        self.require_eval()
        for name, p in self.model.named_parameters():
            require_finite(p.detach(), f"Parameter {name!r}")
        start, size = 0, min(CHECKED_FIRST, CHECKED_AT_ONCE)
        while start < batch_size(batch):
            few = slice(start, start + size)
            part = to_device(map_tensors(lambda x, few=few: x[few], batch), self.device)  # type: ignore[misc]
            n_outputs = self._check_part(part, list(ids[few]), role)
            start, size = few.stop, max(1, min(CHECKED_AT_ONCE, CHECKED_OUTPUTS // max(1, n_outputs)))

    @torch.no_grad()
    def _check_part(self, batch: Batch, ids: list[object], role: str) -> int:
        """Check some examples; returns how many outputs each has."""
        n = batch_size(batch)
        outputs = self._try_outputs(batch, role)
        _require_rows(outputs, n, "`outputs`", "(b, ...)")
        require_finite(outputs, "`outputs`", rows=role, ids=ids)
        self.loss.check_targets(outputs, batch, ids)
        for name, fn in (("loss", self.loss), ("measure", self.measure)):
            if name == "measure" and role == "train example":
                continue
            values = fn(outputs, batch)
            _require_per_example(values, n, name)
            require_finite(values, f"The {name}", rows=role, ids=ids)
        return outputs.numel() // n

    def _try_outputs(self, batch: Batch, role: str) -> Tensor:
        try:
            return self.outputs(self.model, batch)
        except (RuntimeError, IndexError, TypeError) as error:
            shapes: list[str] = []
            map_tensors(lambda x: shapes.append(f"{tuple(x.shape)} {x.dtype}") or x, batch)  # type: ignore[func-returns-value]
            raise ShapeError(
                f"The model cannot run on a {role} batch of tensors {', '.join(shapes)}: {error}"
            ) from error


def _slots(model: nn.Module) -> dict[str, str]:
    """Each place of each module that holds a tensor, once -> the name of that tensor in `named_parameters()`."""
    owners: dict[int, str] = {}
    slots = {}
    for prefix, module in model.named_modules(prefix=""):
        for leaf, x in (*module._parameters.items(), *module._buffers.items()):
            if x is not None:
                slot = f"{prefix}.{leaf}" if prefix else leaf
                slots[slot] = owners.setdefault(id(x), slot)
    return slots


def _require_rows(x: object, n: int, what: str, shape: str) -> None:
    if not isinstance(x, Tensor):
        raise ShapeError(
            f"{what} must return one tensor {shape}; got a {type(x).__name__}. Return e.g. `model(...).logits`."
        )
    if x.ndim == 0 or x.shape[0] != n:
        raise ShapeError(f"{what} must have the {n} examples as first dimension, {shape}; got {tuple(x.shape)}.")


def _require_per_example(values: Tensor, n: int, name: str) -> None:
    if isinstance(values, Tensor) and values.ndim == 0:
        raise ShapeError(
            f"The {name} must give one number per example, ({n},); got one number for the whole batch. "
            'Use reduction="none" and average over the non-batch dimensions only.'
        )
    _require_rows(values, n, f"The {name}", "(b,)")
    if values.shape != (n,):
        raise ShapeError(f"The {name} must be ({n},), one number per example; got {tuple(values.shape)}.")
