"""What one section of a report shows."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import pandas as pd

from whence.checks import require_count
from whence.data import Examples
from whence.errors import DataError, InputError
from whence.scores import ScoreMatrix, TopK

Interval = Sequence[float]  # value, low, high; NaN where one does not exist


@final
@dataclass(frozen=True, eq=False)
class ReportCase:
    """Scores of one method on one data set, with all that a reader needs to judge them.

    Args:
        title: Heading of the section.
        train: The scored train examples; more than the scored ones do no harm.
        queries: The explained examples, likewise.
        scores: The method shown. Rows of `scores` are shown in their order, the first `n_queries` of them.
        agreement: {method: {amount of further training: (value, low, high)}}, as `Agreement.to_dict` gives it.
        agreement_metric: What these values are.
        point_unit: What the amounts count.
        ceiling: {amount: value} or {amount: (value, low, high)}, as `Reliability.ceiling` gives it: the agreement of
            perfect scores.
        notes: Sentences shown as a list.
        facts: Settings shown as a table, above those the scores carry in their provenance.
        labels: Class names; those of `train` or `queries` where it is None.
        n_queries: How many queries are shown.
        k: How many supporters and how many opposers of each; a `TopK` shows no more than it kept.
        suspects: Columns id (of train examples), score (higher is more suspicious), given (its label) and, where the
            truth is known, true. Shown most suspicious first.
    Raises:
        DataError: A scored id, or a suspect, is not among the examples.
        InputError: Another value cannot be shown; the message says how it should look.
    """

    title: str
    train: Examples
    queries: Examples
    scores: ScoreMatrix | TopK
    agreement: Mapping[str, Mapping[int, Interval]] | None = None
    agreement_metric: str = "cosine"
    point_unit: str = "epochs"
    ceiling: Mapping[int, float | Interval] | None = None
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    n_queries: int = 8
    k: int = 5
    suspects: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        require_count(self.n_queries, "n_queries")
        require_count(self.k, "k")
        if isinstance(self.notes, str):
            raise InputError("`notes` must be a list of sentences; got one text. Put it in a list.")
        _require_known(self.scores.train_ids, self.train, "train")
        _require_known(self.scores.query_ids, self.queries, "query")
        if self.agreement is not None:
            curves = {name: _curve(curve, f"agreement[{name!r}]") for name, curve in self.agreement.items()}
            object.__setattr__(self, "agreement", curves)
        if self.ceiling is not None:
            object.__setattr__(self, "ceiling", _curve(self.ceiling, "ceiling"))
        if self.suspects is not None:
            _check_suspects(self.suspects, self.train)

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, where there are any."""
        return self.labels or self.train.class_names or self.queries.class_names

    @property
    def shown_ids(self) -> Sequence[int | str]:
        """Ids of the queries shown."""
        return self.scores.query_ids[: self.n_queries]


def _require_known(ids: Iterable[Any], examples: Examples, what: str) -> None:
    known = set(examples.ids)
    missing = [id for id in ids if id not in known]
    if missing:
        raise DataError(
            f"{len(missing)} {what} ids are not among the {len(examples)} examples, such as {missing[0]!r}. Pass the "
            "same examples that were scored."
        )


def _curve(curve: Mapping[int, float | Interval], what: str) -> dict[int, tuple[float, float, float]]:
    """A curve by amount, in ascending order; a value alone has no interval."""
    try:
        entries = {operator.index(point): _interval(value) for point, value in curve.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"`{what}` must be {{amount: (value, low, high)}} with whole amounts, NaN where there is no number; "
            f"{error}."
        ) from error
    return dict(sorted(entries.items()))


def _interval(value: float | Interval) -> tuple[float, float, float]:
    if not isinstance(value, Iterable):
        return float(value), float("nan"), float("nan")
    middle, low, high = value
    return float(middle), float(low), float(high)


def _check_suspects(suspects: pd.DataFrame, train: Examples) -> None:
    missing = {"id", "score", "given"} - set(suspects.columns)
    if missing:
        raise InputError(
            f"`suspects` needs the columns id, score and given (and true, where it is known); it lacks "
            f"{', '.join(sorted(missing))}."
        )
    _require_known(suspects["id"].tolist(), train, "suspect")
