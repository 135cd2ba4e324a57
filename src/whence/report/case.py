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
from whence.task import GroupWeights
from whence.weights import Contributions

Interval = Sequence[float]  # value, low, high; NaN where one does not exist
Limits = tuple[float, float, float]  # the same, checked

PARTS = (
    "train",
    "queries",
    "scores",
    "agreement",
    "ceiling",
    "lds",
    "audit",
    "weights",
    "contributions",
    "group_lds",
    "suspects",
    "resources",
)


@final
@dataclass(frozen=True, eq=False)
class ReportCase:
    """Scores of one method on one data set, with all that a reader needs to judge them.

    Whatever is None or empty is left out, and its view says what would make it.

    Args:
        title: Heading of the section.
        train: The scored train examples; more than the scored ones do no harm. None shows their ids only.
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
        weights: Weights of parameter groups, such as rms and learned ones, of one or several methods.
        contributions: What each group contributes to the scores of the queries, or of some of them: lists by group.
        group_lds: {group: (value, low, high)}: the linear datamodeling score of each group alone.
        lds: {"method" or "method, weights": (value, low, high)}: linear datamodeling scores.
        lds_ceiling: (value, low, high): the linear datamodeling score of perfect scores.
        lds_differences: {"learned − uniform": (value, low, high)}: paired differences of two of them.
        lds_note: What they were computed from, such as "32 kept sets of half the data x 2 seeds".
        audit: Columns candidate, choice, verdict, seconds, peak_mb and note, as `Audit.table`.
        audit_summary: The sentences of `Audit.summary`.
        missing: {part: sentence}: what is missing or damaged, and what to do. A part called as a field of this class
            (`scores`, `weights`, ...) is also said in the view that lacks it.
        command: The command line that makes this again.
        resources: Columns step, seconds and peak_mb (megabytes); NaN where a number was not measured.
    Raises:
        DataError: A scored id, or a suspect, is not among the examples.
        InputError: Another value cannot be shown; the message says how it should look.
    """

    title: str
    train: Examples | None
    queries: Examples | None
    scores: ScoreMatrix | TopK | None
    agreement: Mapping[str, Mapping[int, Interval]] | None = None
    agreement_metric: str = "cosine"
    point_unit: str = "epochs"
    ceiling: Mapping[int, float | Interval] | None = None
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    n_queries: int = 200
    k: int = 10
    suspects: pd.DataFrame | None = None
    weights: Sequence[GroupWeights] = ()
    contributions: Contributions | None = None
    group_lds: Mapping[str, Interval] = field(default_factory=dict)
    lds: Mapping[str, Interval] = field(default_factory=dict)
    lds_ceiling: Interval | None = None
    lds_differences: Mapping[str, Interval] = field(default_factory=dict)
    lds_note: str = ""
    audit: pd.DataFrame | None = None
    audit_summary: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    resources: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        require_count(self.n_queries, "n_queries")
        require_count(self.k, "k")
        self._check_types()
        if self.scores is not None:
            _require_known(self.scores.train_ids, self.train, "train")
            _require_known(self.scores.query_ids, self.queries, "query")
        if self.contributions is not None:
            _require_known(self.contributions.train_ids, self.train, "train")
            _require_known(self.contributions.query_ids, self.queries, "query")
        if self.suspects is not None:
            _check_columns(self.suspects, ("id", "score", "given"), "suspects", " (and true, where it is known)")
            _require_known(self.suspects["id"].tolist(), self.train, "suspect")
        if self.audit is not None:
            _check_columns(self.audit, ("candidate", "choice", "verdict", "seconds", "peak_mb", "note"), "audit", "")
        if self.resources is not None:
            _check_columns(self.resources, ("step", "seconds", "peak_mb"), "resources", "")
        self._normalise()
        self._check_group_names()

    def _check_types(self) -> None:
        for name, known in (("train", Examples), ("queries", Examples), ("scores", (ScoreMatrix, TopK))):
            value = getattr(self, name)
            if value is not None and not isinstance(value, known):
                wanted = "a `ScoreMatrix` or a `TopK`" if name == "scores" else "`Examples`"
                raise InputError(f"`{name}` must be {wanted}, or None; got {type(value).__name__}.")
        if self.contributions is not None and not isinstance(self.contributions, Contributions):
            raise InputError(
                f"`contributions` must be `Contributions`, or None; got {type(self.contributions).__name__}."
            )
        if isinstance(self.notes, str):
            raise InputError("`notes` must be a list of sentences; got one text. Put it in a list.")
        if isinstance(self.weights, GroupWeights) or not all(isinstance(w, GroupWeights) for w in self.weights):
            raise InputError("`weights` must be a list of `GroupWeights`. Put a single one in a list.")
        if not isinstance(self.missing, Mapping) or not all(isinstance(text, str) for text in self.missing.values()):
            raise InputError(f"`missing` must be {{part: sentence}}; got {self.missing!r}.")
        for name in ("command", "lds_note"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"`{name}` must be a text; got {type(getattr(self, name)).__name__}.")

    def _normalise(self) -> None:
        """Bring curves and intervals into their one form."""
        fields: dict[str, Any] = {name: _limits_of(getattr(self, name), name) for name in _INTERVALS}
        if self.agreement is not None:
            fields["agreement"] = {name: _curve(c, f"agreement[{name!r}]") for name, c in self.agreement.items()}
        if self.ceiling is not None:
            fields["ceiling"] = _curve(self.ceiling, "ceiling")
        if self.lds_ceiling is not None:
            fields["lds_ceiling"] = _limits_of({"ceiling": self.lds_ceiling}, "lds_ceiling")["ceiling"]
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def _check_group_names(self) -> None:
        cuts = [*(w.groups for w in self.weights), *([self.contributions.groups] if self.contributions else [])]
        known = {name for groups in cuts for name in groups.names}
        foreign = [name for name in self.group_lds if name not in known]
        if known and foreign:
            raise InputError(
                f"`group_lds` names {len(foreign)} groups that `weights` and `contributions` lack, such as "
                f"{foreign[0]!r}. Compute all for the same groups: {', '.join(sorted(known)[:8])}."
            )

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes, where there are any."""
        known = [examples.class_names for examples in (self.train, self.queries) if examples is not None]
        return self.labels or next((names for names in known if names), None)

    @property
    def shown_ids(self) -> Sequence[int | str]:
        """Ids of the queries shown."""
        return () if self.scores is None else self.scores.query_ids[: self.n_queries]


_INTERVALS = ("group_lds", "lds", "lds_differences")


def _require_known(ids: Iterable[Any], examples: Examples | None, what: str) -> None:
    if examples is None:
        return
    known = set(examples.ids)
    missing = [id for id in ids if id not in known]
    if missing:
        raise DataError(
            f"{len(missing)} {what} ids are not among the {len(examples)} examples, such as {missing[0]!r}. Pass the "
            "same examples that were scored."
        )


def _curve(curve: Mapping[int, float | Interval], what: str) -> dict[int, Limits]:
    """A curve by amount, in ascending order; a value alone has no interval."""
    try:
        entries = {operator.index(point): _limits(value) for point, value in curve.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"`{what}` must be {{amount: (value, low, high)}} with whole amounts, NaN where there is no number; "
            f"{error}."
        ) from error
    return dict(sorted(entries.items()))


def _limits_of(intervals: Mapping[str, Interval], what: str) -> dict[str, Limits]:
    try:
        return {name: _limits(value) for name, value in intervals.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"`{what}` must hold (value, low, high), by name, with NaN where there is no number; {error}."
        ) from error


def _limits(value: float | Interval) -> Limits:
    if not isinstance(value, Iterable):
        return float(value), float("nan"), float("nan")
    middle, low, high = value
    return float(middle), float(low), float(high)


def _check_columns(table: pd.DataFrame, needed: Sequence[str], what: str, also: str) -> None:
    columns = set(table.columns) if isinstance(table, pd.DataFrame) else set()
    missing = set(needed) - columns
    if missing:
        raise InputError(
            f"`{what}` must be a table with the columns {', '.join(needed[:-1])} and {needed[-1]}{also}; it lacks "
            f"{', '.join(sorted(missing))}."
        )
