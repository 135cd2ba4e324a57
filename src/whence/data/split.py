"""What a loader returns: train and test examples, and what kind of problem they pose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from whence.data.examples import Examples


@dataclass(frozen=True)
class Split:
    """A data set in two parts. Batches are `(x, y)`; of texts dicts of ids, mask and labels.

    `x` is float32; `y` is float32 (n, 1) for regression, int64 (n,) for classification; for a language the next token
    is asked for, one of `n_classes`. Ids are row numbers of the source, so that a row can be found there again.
    """

    train: Examples
    test: Examples
    kind: Literal["regression", "classification", "language"]
    n_classes: int | None
    name: str
    notes: str
