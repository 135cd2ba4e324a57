"""Tasks on causal language models: the loss of a sequence is the sum over its next tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from whence.adapters.logits import head_input, logits, optional_part, part, require_attention
from whence.adapters.tokens import IGNORED, NextTokens, SequenceMargin, SpanTokens, TokenCrossEntropy
from whence.batches import Batch, batch_size, take
from whence.checks import look_up
from whence.errors import InputError, UnsupportedError
from whence.task import Measure, Pick, Task
from whence.task.losses import PerExample
from whence.task.measures import LogProbability, LossMeasure
from whence.task.task import Outputs

EMBEDDED_AT_ONCE = 16  # sequences, whose logits come along
MEASURES: dict[str, Callable[[TokenCrossEntropy], Measure]] = {
    "loss": LossMeasure,
    "log_probability": LogProbability,
    "margin": lambda loss: SequenceMargin(loss.targets),
}


def causal_language_model(
    model: nn.Module,
    *,
    input_ids: int | str = "input_ids",
    attention_mask: int | str = "attention_mask",
    target: int | str | None = None,
    span: int | str | None = None,
    reduction: Literal["sum", "mean"] = "sum",
    measure: str | Measure | PerExample = "loss",
    lower_is_better: bool | None = None,
    embedding: Outputs | None = None,
    factory: str | None = None,
) -> Task:
    """A `Task` on a `...ForCausalLM` or `...LMHeadModel` of transformers, or on any module called like one.

    The loss of a sequence of t tokens is the cross-entropy of tokens 2 to t, each given those before it, **summed**
    over the tokens that count: no padding, no label of -100. transformers' own loss is the mean over all tokens of a
    batch; the sum is what each sequence contributes to it, up to one factor for all.

    The model is called as `model(input_ids=)` with all tokens but the last, never with labels or the mask: padding
    comes last, and in a causal model no token sees what comes after it. So sequences may be padded to any length, and
    the model must really be causal. Attention runs by its plain formula (see `logits`). Dropout that is no `nn.Dropout`
    module asks for `Recipe(dropout=False)`. A tied head counts once, with the embedding, and has no layer of its own in
    logra, trackstar, kfac and ekfac; one that is not tied has an output moment of vocabulary^2 numbers in the last two
    (leave it out by `requires_grad_(False)` where that is too large).

    Which train sequences made the model say *these words*? With `span`, measures count only the tokens that a part
    (b, t) of the queries marks; `span_queries` and `token_queries` make such queries. Sums over spans that share no
    token add up to that of their union, and so do their scores.

    Outputs are (b, t - 1, vocabulary), and exist for a block of examples only, except in methods with an exact
    Gauss-Newton matrix or a Fisher matrix of whole gradients (influence_gn, influence_fisher, ekfac with
    fisher="exact", and what is built on them), which refuse all but toy sizes. fisher="sampled" draws a label for each
    token. trak, which needs a number that the loss is a function of, is refused.

    Args:
        model: In eval mode.
        input_ids, attention_mask: Where these (b, t) are in a batch: key, field or position. The mask, which batches
            may lack, is 1 where a token is and 0 where padding is, at the end.
        target: Where labels (b, t) are, which are those of the same position, -100 where they do not count; default
            "labels" where batches have it, else the input ids.
        span: Where queries mark the tokens to be explained, (b, t) of 0 and 1; default all that count.
        reduction: "sum" over tokens or "mean", of losses and of the measures "loss" and "log_probability".
        measure: "loss", "log_probability", "margin" (see `SequenceMargin`), or as in `Task`.
        lower_is_better, factory: As in `Task`.
        embedding: As in `Task`; default what the last linear layer sees, mean over the tokens that predict one.
    Raises:
        UnsupportedError: An encoder and decoder, or an attention without the derivatives that methods need.
        UnknownNameError: No such measure of sequences.
        InputError: `reduction` is neither.
    """
    config: Any = getattr(model, "config", None)
    require_attention(config)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(
            "The model has an encoder and a decoder, whose tokens see each other; this adapter is for decoders alone. "
            "Use `Task(model, outputs=..., loss=...)`."
        )
    if reduction not in ("sum", "mean"):
        raise InputError(f"`reduction` must be 'sum' or 'mean' over the tokens of a sequence; got {reduction!r}.")
    mean = reduction == "mean"
    targets = NextTokens(
        Pick(input_ids), Pick(attention_mask), None if target is None else Pick(target), _padding_id(config)
    )
    marked = targets if span is None else SpanTokens(targets, Pick(span))
    if isinstance(measure, str):
        measure = look_up(MEASURES, measure, "measure of sequences")(TokenCrossEntropy(marked, mean=mean))
    outputs = NextTokenLogits(Pick(input_ids), Pick(attention_mask), hasattr(config, "use_cache"))
    return Task(
        model,
        outputs=outputs,
        loss=TokenCrossEntropy(targets, tuple(dict.fromkeys((targets, marked))), mean),
        measure=measure,
        lower_is_better=lower_is_better,
        embedding=MeanTokenEmbedding(outputs, targets) if embedding is None else embedding,
        factory=factory,
    )


@dataclass(frozen=True)
class NextTokenLogits:
    """`(model, batch) -> (b, t - 1, vocabulary)`: the logits of each next token.

    Padding is read as if it were the first token: what stands there has no say, be it no token at all.
    """

    input_ids: Pick
    attention_mask: Pick
    has_cache: bool

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens, mask = part(batch, self.input_ids, "input_ids"), optional_part(batch, self.attention_mask)
        if mask is not None:
            tokens = tokens.where(mask != 0, tokens[:, :1])
        arguments: dict[str, object] = {"input_ids": tokens[:, :-1]}
        if self.has_cache:
            arguments["use_cache"] = False
        return logits(model, arguments)


@dataclass(frozen=True)
class MeanTokenEmbedding:
    """What the model's last linear layer sees, mean over the positions whose next token counts: (b, d).

    Raises:
        InputError: The model has no linear layer, or does not use its last one.
    """

    outputs: NextTokenLogits
    targets: NextTokens

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        parts = torch.split(torch.arange(batch_size(batch)), EMBEDDED_AT_ONCE)
        return torch.cat([self._of_few(model, take(batch, part)) for part in parts])

    def _of_few(self, model: nn.Module, batch: Batch) -> Tensor:
        seen = head_input(model, self.outputs, batch)
        counts = (self.targets(batch) != IGNORED).to(seen.dtype)
        return (seen * counts[..., None]).sum(1) / counts.sum(1, keepdim=True)


def _padding_id(config: Any) -> int | None:
    """The padding id of a configuration, unless it ends texts as well; None where there is none."""
    found = getattr(config, "pad_token_id", None)
    ends = (getattr(config, "eos_token_id", None), getattr(config, "bos_token_id", None))
    return None if found is None or found in ends else int(found)
