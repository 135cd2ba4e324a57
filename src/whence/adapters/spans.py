"""Queries about some words of a sequence, for a task of `causal_language_model(..., span="span")`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from whence.data import Examples
from whence.errors import InputError, ShapeError

Span = tuple[int, int, int]  # position of the sequence, first token, the one after the last


def span_queries(
    sequences: Examples, spans: Sequence[Span], *, name: str = "span", input_ids: str = "input_ids"
) -> Examples:
    """A query for each span: its sequence, with the span's tokens marked by 1 under `name`, int64 (n, t).

    Ids are "<id>:<first>-<last>", both included. Texts for showing are those of the sequences.

    Args:
        sequences: Batches are dicts.
        spans: (position in `sequences`, first token, the one after the last), counted from 0. The first token of a
            sequence is never predicted, so that spans begin at 1.
        name: Key of the marks.
        input_ids: Key of the token ids.
    Raises:
        ShapeError: Batches are no dicts, or have no token ids.
        InputError: There is no span, one does not lie in its sequence, or marks the first token.
    """
    batch = sequences.all()
    if not isinstance(batch, dict) or input_ids not in batch:
        raise ShapeError(f"Batches must be dicts with token ids under {input_ids!r}; got a {type(batch).__name__}.")
    length = batch[input_ids].shape[1]
    for row, first, stop in spans:
        if not (0 <= row < len(sequences) and 1 <= first < stop <= length):
            raise InputError(
                f"A span is (sequence, first token, the one after the last) with sequence < {len(sequences)} and "
                f"1 <= first < stop <= {length}; got {(row, first, stop)}. The first token has nothing before it that "
                "could predict it."
            )
    if not spans:
        raise InputError("No span was given. Name one at least.")
    rows = [row for row, _, _ in spans]
    places = torch.arange(length)
    marks = torch.stack([((places >= first) & (places < stop)).long() for _, first, stop in spans])
    return Examples(
        {**{key: x[rows] for key, x in batch.items()}, name: marks},
        ids=[f"{sequences.ids[row]}:{first}-{stop - 1}" for row, first, stop in spans],
        name=sequences.name,
        texts=None if sequences.texts is None else [sequences.texts[row] for row in rows],
    )


def token_queries(
    sequences: Examples, row: int, *, attention_mask: str = "attention_mask", name: str = "span"
) -> Examples:
    """A query for each token of one sequence but the first and padding; otherwise as `span_queries`."""
    batch = sequences.batch([row])
    length = batch["input_ids"].shape[1]
    mask = batch.get(attention_mask)
    seen = length if mask is None else int((mask[0] != 0).sum())
    return span_queries(sequences, [(row, k, k + 1) for k in range(1, seen)], name=name)
