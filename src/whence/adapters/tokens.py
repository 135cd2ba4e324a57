"""Losses and measures of sequences of tokens: sums over the words that count, each with a prediction of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from whence.adapters.logits import optional_part, part
from whence.batches import Batch
from whence.errors import DataError, ShapeError, UnsupportedError
from whence.task import Loss, Measure, Pick
from whence.task.losses import Target, draw_classes, draw_uniform, logit_margin, softmax_slopes

IGNORED = -100  # the label of a token that does not count, as torch and transformers have it
LARGEST_HESSIAN = 2 * 2**30  # bytes


@dataclass(frozen=True)
class NextTokens:
    """`batch -> (b, t - 1)`: the token that follows each position, `IGNORED` where it does not count.

    Attributes:
        input_ids, attention_mask: Where these (b, t) are in a batch; the mask is 1 where a token is, 0 at padding.
        target: Where labels (b, t) are, which are those of the same position; None for "labels" where batches have
            them, else the input ids.
        padding_id: What padding holds, where nothing else is written with it.
    """

    input_ids: Pick
    attention_mask: Pick
    target: Pick | None
    padding_id: int | None

    def __call__(self, batch: Batch) -> Tensor:
        labels, mask = self._labels(batch), optional_part(batch, self.attention_mask)
        if mask is not None:
            labels = labels.where(mask != 0, IGNORED)
        return labels[:, 1:]

    def _labels(self, batch: Batch) -> Tensor:
        if self.target is not None:
            return part(batch, self.target, "target")
        found = optional_part(batch, Pick("labels"))
        return part(batch, self.input_ids, "input_ids") if found is None else found

    def check(self, batch: Batch, ids: Sequence[object]) -> None:
        """Refuse padding that would be read as text, and sequences without a token that counts.

        Raises:
            ShapeError: Ids, mask and labels have not one shape (b, t), t at least 2.
            DataError: Labels are no integers; padding stands before a token, or has no mask; or nothing counts. The
                first example is named.
        """
        tokens, labels = part(batch, self.input_ids, "input_ids"), self._labels(batch)
        mask = optional_part(batch, self.attention_mask)
        for name, x in (("labels", labels), ("the mask", tokens if mask is None else mask)):
            if tokens.ndim != 2 or tokens.shape[1] < 2 or x.shape != tokens.shape:
                raise ShapeError(
                    f"A language model needs token ids (b, t) of two tokens at least, and {name} of that shape; got "
                    f"{tuple(tokens.shape)} and {tuple(x.shape)}."
                )
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise DataError(f"Labels of tokens must be integers; got {labels.dtype}. Use `labels.long()`.")
        if mask is not None:
            _refuse(
                ((mask[:, 1:] != 0) & (mask[:, :-1] == 0)).any(1),
                ids,
                "has padding before a token: it would be read as text, and move the positions of what follows. Pad at "
                'the end, with `tokenizer.padding_side = "right"`.',
            )
        elif self.padding_id is not None and labels is tokens:
            _refuse(
                (tokens == self.padding_id).any(1),
                ids,
                f"holds the padding id {self.padding_id}, and the batch has no mask {self.attention_mask.key!r}: "
                "padding would be learned. Keep the tokenizer's `attention_mask` in the examples.",
            )
        _refuse(
            (self(batch) == IGNORED).all(1),
            ids,
            "has no token to be predicted: a first token, padding and labels of -100 do not count. Drop it.",
        )


@dataclass(frozen=True)
class SpanTokens:
    """The tokens of `targets` that a part (b, t) of the batch marks, by 1 at the places of the tokens themselves."""

    targets: NextTokens
    span: Pick

    def __call__(self, batch: Batch) -> Tensor:
        return self.targets(batch).where(part(batch, self.span, "span")[:, 1:] != 0, IGNORED)

    def check(self, batch: Batch, ids: Sequence[object]) -> None:
        """Refuse spans that no token is in that counts; batches without spans, as those of train examples, pass.

        Raises:
            ShapeError: Spans are not (b, t).
            DataError: A span marks nothing that counts; the first example is named.
        """
        span = optional_part(batch, self.span)
        if span is None:
            return
        shape = part(batch, self.targets.input_ids, "input_ids").shape
        if span.shape != shape:
            raise ShapeError(f"Spans {self.span.key!r} must be (b, t) = {tuple(shape)}; got {tuple(span.shape)}.")
        _refuse(
            (self(batch) == IGNORED).all(1),
            ids,
            f"has a span {self.span.key!r} without a token to be predicted: a first token, padding and labels of -100 "
            "do not count. Mark the tokens to be explained.",
        )


def _refuse(bad: Tensor, ids: Sequence[object], what: str) -> None:
    where = bad.nonzero().flatten().tolist()
    if where:
        raise DataError(f"Example {ids[where[0]]!r} {what}")


def token_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each token, 0 where it does not count; (b, s, vocabulary), (b, s) -> (b, s).

    As `CrossEntropy` in the form log1p(exp(-margin)), which does not round to 0 for words that the model is sure of.
    """
    if outputs.ndim != 3 or outputs.shape[:2] != targets.shape:
        raise ShapeError(
            f"A language model must give logits (b, t - 1, vocabulary) for t - 1 = {targets.shape[1]} next tokens; got "
            f"{tuple(outputs.shape)} and targets {tuple(targets.shape)}."
        )
    counts = targets != IGNORED
    margins = logit_margin(outputs.flatten(0, 1), targets.where(counts, 0).flatten()).reshape(targets.shape)
    return torch.where(counts, -F.logsigmoid(margins), 0.0)


@dataclass(frozen=True)
class TokenCrossEntropy(Loss):
    """Softmax cross-entropy summed over the tokens of a sequence that count, or their mean.

    Attributes:
        targets: `batch -> (b, s)`, `IGNORED` where a token does not count.
        checks: What looks at every batch before any work.
        mean: Mean over the tokens of each sequence, which gives tokens of short sequences more weight.
    """

    targets: Target
    checks: tuple[NextTokens | SpanTokens, ...] = ()
    mean: bool = False
    name = "token_cross_entropy"
    shift_invariant = True

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = self.targets(batch)
        losses = token_losses(outputs, targets).sum(1)
        return losses / (targets != IGNORED).sum(1) if self.mean else losses

    def weights(self, batch: Batch, dtype: torch.dtype) -> Tensor:
        """How much each token counts, (b, s)."""
        counts = (self.targets(batch) != IGNORED).to(dtype)
        return counts / counts.sum(1, keepdim=True) if self.mean else counts

    def check_targets(self, outputs: Tensor, batch: Batch, ids: Sequence[object]) -> None:
        """Refuse what would give a number without a meaning.

        Raises:
            ShapeError, DataError: See `NextTokens.check`, `SpanTokens.check`; or a label is outside the vocabulary.
        """
        for one in self.checks:
            one.check(batch, ids)
        targets = self.targets(batch)
        token_losses(outputs, targets.clamp(0, outputs.shape[-1] - 1))
        wrong = (targets != IGNORED) & ((targets < 0) | (targets >= outputs.shape[-1]))
        _refuse(
            wrong.any(1),
            ids,
            f"has a label outside 0 .. {outputs.shape[-1] - 1}, the model's vocabulary; tokens that do not count have "
            f"{IGNORED}.",
        )

    def hessian(self, outputs: Tensor, batch: Batch) -> Tensor:
        weights = self.weights(batch, outputs.dtype)
        n, s = weights.shape
        size = n * outputs.shape[1] ** 2 * outputs.dtype.itemsize
        if size > LARGEST_HESSIAN:
            raise UnsupportedError(
                f"The Hessian of the loss in {outputs.shape[1]} outputs (tokens times vocabulary) of {n} sequences "
                f"would take {size / 2**30:.0f} GiB. Use ekfac or kfac with fisher='sampled' or 'empirical'."
            )
        p = outputs.reshape(n, s, -1).softmax(2)
        off = p[..., :, None] * p[..., None, :]
        off = off - torch.diag_embed(off.diagonal(dim1=2, dim2=3))
        blocks = weights[..., None, None] * (torch.diag_embed(off.sum(3)) - off)  # (n, s, v, v)
        eye = torch.eye(s, dtype=outputs.dtype, device=outputs.device)
        return torch.einsum("nsvw,st->nsvtw", blocks, eye).reshape(n, outputs.shape[1], outputs.shape[1])

    def sample_labels(self, outputs: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """A label for each token that counts, `IGNORED` elsewhere: padding takes no numbers from the generator."""
        counts = self.targets(batch) != IGNORED
        uniform = torch.zeros(counts.shape, dtype=torch.float64, device=outputs.device)
        uniform[counts] = draw_uniform([int(counts.sum())], generator).to(outputs.device)
        return draw_classes(outputs, uniform).where(counts, IGNORED)

    def slopes_at(self, outputs: Tensor, batch: Batch, labels: Tensor) -> Tensor:
        """Slopes of the sum; of the mean over k tokens, sqrt(k) times its own, whose second moment is too small."""
        return softmax_slopes(outputs, labels.clamp_min(0)) * self.weights(batch, outputs.dtype).sqrt()[..., None]


@dataclass(frozen=True)
class SequenceMargin(Measure):
    """log(p / (1 - p)) with log p the mean log-probability of the tokens: TRAK's output of a language model.

    Park et al. (2023), arXiv:2303.14186, state the margin for classes; this is its form for sequences, with p the
    geometric mean of the probabilities of the tokens.
    """

    targets: Target
    name = "margin"
    lower_is_better = False

    def __call__(self, outputs: Tensor, batch: Batch) -> Tensor:
        mean = TokenCrossEntropy(self.targets, mean=True)(outputs, batch)
        return -mean - torch.log(-torch.expm1(-mean))
