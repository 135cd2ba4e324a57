"""Tasks on classifiers of texts: token ids, a mask over the padding, one label a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from whence.adapters.logits import Labels, head_input, kind_of, logits, optional_part, part
from whence.batches import Batch
from whence.errors import DataError, InputError
from whence.task import CrossEntropy, Measure, Pick, SquaredError, Task
from whence.task.losses import PerExample
from whence.task.task import Outputs


def sequence_classification(
    model: nn.Module,
    *,
    input_ids: int | str = "input_ids",
    attention_mask: int | str = "attention_mask",
    token_type_ids: int | str = "token_type_ids",
    target: int | str = "labels",
    measure: str | Measure | PerExample = "loss",
    lower_is_better: bool | None = None,
    embedding: Outputs | None = None,
    factory: str | None = None,
) -> Task:
    """A `Task` on a `...ForSequenceClassification` of transformers, or on any module that is called like one.

    The model is called as `model(input_ids=, attention_mask=, token_type_ids=)`, the last two where batches have them,
    never with labels. A model whose `config` has one label or says "regression" has squared error, every other
    cross-entropy. The model is not changed; attention runs by its plain formula (see `logits`), fused or not.

    Texts that are padded need a mask. A model that reads the last token (GPT-2 and other decoders) finds it by
    `config.pad_token_id`, so that what is masked must hold this id. Dropout of attention weights is no `nn.Dropout`
    module: training asks for `Recipe(dropout=False)`, or for that probability to be 0 in the model's configuration.

    Args:
        model: In eval mode.
        input_ids, attention_mask, token_type_ids, target: Where these are in a batch: key, field or position. The mask
            is 1 where a token is, 0 where padding is.
        measure, lower_is_better, factory: As in `Task`.
        embedding: As in `Task`; default what the last linear layer sees, at the last token where it sees every token.
    Raises:
        UnsupportedError: Several labels at once, or an attention without the derivatives that methods need.
        InputError: The configuration has no padding id, or a classifier has one output.
    """
    kind = kind_of(model)
    inputs = Tokens(Pick(input_ids), Pick(attention_mask), Pick(token_type_ids), _padding_id(model))
    labels = Labels(Pick(target), kind)
    return Task(
        model,
        outputs=inputs,
        loss=TokensCrossEntropy(labels, inputs) if kind == "classification" else TokensSquaredError(labels, inputs),
        measure=measure,
        lower_is_better=lower_is_better,
        target=labels,
        embedding=LastTokenEmbedding(inputs) if embedding is None else embedding,
        factory=factory,
    )


@dataclass(frozen=True)
class Tokens:
    """`(model, batch) -> (b, classes)` of a model of token ids (b, t) and masks (b, t)."""

    input_ids: Pick
    attention_mask: Pick
    token_type_ids: Pick
    padding_id: int | None

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        arguments = {"input_ids": part(batch, self.input_ids, "input_ids")}
        for name, pick in (("attention_mask", self.attention_mask), ("token_type_ids", self.token_type_ids)):
            found = optional_part(batch, pick)
            if found is not None:
                arguments[name] = found
        return logits(model, arguments)

    def check(self, batch: Batch, ids: Sequence[object]) -> None:
        """Refuse padding that would be read as text, and texts without a token.

        Raises:
            DataError: Padding without a mask, or a mask of zeros; the first example is named.
        """
        tokens, mask = self.input_ids(batch), optional_part(batch, self.attention_mask)
        if mask is not None:
            empty = (mask == 0).flatten(1).all(1).nonzero().flatten().tolist()
            if empty:
                raise DataError(
                    f"The mask {self.attention_mask.key!r} of example {ids[empty[0]]!r} is 0 everywhere: no token is "
                    "left. Drop the example, or mark its tokens by 1."
                )
        elif self.padding_id is not None:
            padded = (tokens == self.padding_id).flatten(1).any(1).nonzero().flatten().tolist()
            if padded:
                raise DataError(
                    f"Example {ids[padded[0]]!r} holds the padding id {self.padding_id}, and the batch has no mask "
                    f"{self.attention_mask.key!r}: padding would be read as text. Keep the tokenizer's "
                    f"`attention_mask`, or add `input_ids != {self.padding_id}` to the examples under that name."
                )


@dataclass(frozen=True)
class TokensCrossEntropy(CrossEntropy):
    """`CrossEntropy` that looks at the mask as well before any work."""

    inputs: Tokens

    def check_targets(self, outputs: Tensor, batch: Batch, ids: Sequence[object]) -> None:
        """Refuse labels that are no classes, and padding that would be read as text."""
        self.inputs.check(batch, ids)
        super().check_targets(outputs, batch, ids)


@dataclass(frozen=True)
class TokensSquaredError(SquaredError):
    """`SquaredError` that looks at the mask before any work."""

    inputs: Tokens

    def check_targets(self, outputs: Tensor, batch: Batch, ids: Sequence[object]) -> None:
        """Refuse padding that would be read as text."""
        self.inputs.check(batch, ids)
        super().check_targets(outputs, batch, ids)


@dataclass(frozen=True)
class LastTokenEmbedding:
    """What the model's last linear layer sees (b, d); of inputs (b, t, d) the row of the last token that is no padding.

    Raises:
        InputError: The model has no linear layer, or does not use its last one.
    """

    inputs: Tokens

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        seen = head_input(model, self.inputs, batch)
        return seen if seen.ndim == 2 else self._at_last_token(seen, batch)

    def _at_last_token(self, x: Tensor, batch: Batch) -> Tensor:
        mask = optional_part(batch, self.inputs.attention_mask)
        if mask is None:
            return x[:, -1]
        places = torch.arange(mask.shape[1], device=mask.device)
        return x[torch.arange(len(x), device=x.device), (places * (mask != 0)).argmax(1)]


def _padding_id(model: nn.Module) -> int | None:
    """The padding id in the model's configuration; None where there is no configuration."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "pad_token_id"):
        return None
    if config.pad_token_id is None:
        raise InputError(
            "`model.config.pad_token_id` is None: a model that reads the last token would take padding for it. Set it, "
            "`model.config.pad_token_id = tokenizer.pad_token_id`, and pad with that id."
        )
    return int(config.pad_token_id)
