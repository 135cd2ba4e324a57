"""What an audit found: a table of candidates, a winner, and what to say about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import pandas as pd

from whence.gold import Gold
from whence.studies.audit.candidates import CONTROL, UNIFORM, Candidate
from whence.studies.audit.pilot import Half

NOISE_FREE = ("noise_free", "noise_free_low", "noise_free_high")  # columns of `Audit.by_point`


@final
@dataclass(frozen=True, eq=False)
class Audit:
    """Which method to trust on this model, and how far.

    `table` has one row per candidate, best choice first:
        choice: Mean agreement over the amounts, on the half that was chosen by.
        verdict: The same on the other half.
        seconds, peak_mb: What its scores cost; a curvature that several candidates share is counted with the first.
        note: Why there is no number.
    `by_point` has one row per candidate and amount, on the verdict half:
        value, low, high: Agreement with further training of as many seeds as the pilot has.
        ceiling: That of perfect scores, given the noise of so few seeds.
        noise_free, noise_free_low, noise_free_high: Agreement with further training of ever more seeds, see
            `Disattenuation`; NaN for other metrics than Pearson, and where the pilot is no more than noise.
    Intervals are about the whole train set, of which the pilot leaves out a random sample, and about such queries.

    Attributes:
        candidates: All that were asked for.
        winner: The candidate with the highest `choice`; its `verdict` was not looked at.
        metric: How agreement is measured.
        point_unit: Of the amounts.
        gold: The gold standard of each half.
        seconds: Wall seconds of the whole audit.
        budget: Seconds that were allowed.
        confidence: Of the intervals.
        notes: What a reader should know.
    """

    table: pd.DataFrame
    by_point: pd.DataFrame
    candidates: tuple[Candidate, ...]
    winner: Candidate
    metric: str
    point_unit: str
    gold: Mapping[Half, Gold]
    seconds: float
    budget: float
    confidence: float
    notes: tuple[str, ...]

    @property
    def regret(self) -> float:
        """By how much the best candidate of the verdict half beats the winner there; 0 where it is the winner."""
        return float(self.table["verdict"].max() - self._row(self.winner.label)["verdict"])

    def verdict(self, point: int | None = None) -> tuple[float, float, float]:
        """Agreement of the winner with its interval at an amount, default the largest; for as many seeds again."""
        return self._figures(("value", "low", "high"), point)

    def noise_free(self, point: int | None = None) -> tuple[float, float, float]:
        """The same with further training of so many seeds that none of their noise is left."""
        return self._figures(NOISE_FREE, point)

    @property
    def n_seeds(self) -> int:
        """Seeds of the verdict half."""
        return len(self.gold["verdict"].seeds)

    def summary(self) -> str:
        """In plain language, a few lines."""
        point = int(self.by_point["point"].max())
        value, low, high = self.verdict()
        ceiling = float(self.by_point.loc[self.by_point["point"] == point, "ceiling"].iloc[0])
        row = self._row(self.winner.label)
        lines = [
            f"Use {self.winner.label}. After {point} {self.point_unit} of further training its scores agree with what "
            f"really happens to {value:.2f} ({low:.2f} to {high:.2f}; {self.metric}, {self.confidence:.0%} interval).",
            self._about_noise(value, ceiling),
            f"It takes {row['seconds']:.2g} s for these queries. {self._about_rivals()}",
        ]
        control = self.table[self.table["candidate"] == CONTROL]
        if len(control) and low <= float(control.iloc[0]["verdict"]):
            lines.append("It is not distinguishable from random scores here: do not rely on any of these methods.")
        if self.winner.weights != UNIFORM:
            lines.append(self._about_weights())
        return "\n".join([*lines, *self.notes])

    def to_config(self) -> dict[str, Any]:
        """The winner as the table [score] of a configuration; an option that TOML cannot hold is left out."""
        options = {name: _plain(value) for name, value in self.winner.options.items()}
        return {"methods": [self.winner.method], **({"options": {self.winner.method: options}} if options else {})}

    def to_weigh_config(self) -> dict[str, Any] | None:
        """The table [weigh] with which `whence weigh` learns the winner's weights; None where they are uniform."""
        return None if self.winner.weights == UNIFORM else {"methods": [self.winner.method]}

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON; a number that does not exist is null."""
        return {
            "winner": {
                "label": self.winner.label,
                "score": self.to_config(),
                "weigh": self.to_weigh_config(),
                "weights": self.winner.weights,
            },
            "verdict": [_number(x) for x in self.verdict()],
            "noise_free": [_number(x) for x in self.noise_free()],
            "n_seeds": self.n_seeds,
            "regret": _number(self.regret),
            "metric": self.metric,
            "point_unit": self.point_unit,
            "confidence": self.confidence,
            "candidates": _records(self.table),
            "by_point": _records(self.by_point),
            "pilot": {
                half: {"left_out": [list(s) for s in part.left_out], "seeds": list(part.seeds)}
                for half, part in self.gold.items()
            },
            "seconds": self.seconds,
            "budget": self.budget,
            "summary": self.summary(),
            "notes": list(self.notes),
        }

    def _row(self, label: str) -> pd.Series[Any]:
        return self.table[self.table["candidate"] == label].iloc[0]

    def _figures(self, columns: Sequence[str], point: int | None) -> tuple[float, float, float]:
        own = self.by_point[self.by_point["candidate"] == self.winner.label]
        row = own[own["point"] == (own["point"].max() if point is None else point)].iloc[0]
        value, low, high = (float(row[name]) for name in columns)
        return value, low, high

    def _about_noise(self, value: float, ceiling: float) -> str:
        if math.isnan(ceiling) or ceiling == 0:
            return "The further trainings of the pilot do not agree among themselves: allow more time for more seeds."
        perfect = f"Perfect scores would reach about {ceiling:.2f} against a pilot of {self.n_seeds} seeds"
        free, low, high = self.noise_free()
        if math.isnan(free):
            return f"{perfect}: without their noise it is about {min(1.0, value / ceiling):.2f}."
        return f"{perfect}: without their noise it is about {free:.2f} ({low:.2f} to {high:.2f})."

    def _about_weights(self) -> str:
        return (
            f"`whence score` has no weights: `whence weigh` writes the winner's scores to weights/{self.winner.method}/"
            f"{self.winner.weights}-top.parquet, if the factory gives learning queries."
        )

    def _about_rivals(self) -> str:
        others = self.table[(self.table["candidate"] != self.winner.label) & self.table["verdict"].notna()]
        if not len(others):
            return "Nothing else could be compared."
        best = others.sort_values("verdict", ascending=False).iloc[0]
        return (
            f"Over all amounts it has {self._row(self.winner.label)['verdict']:.2f}; the best of the others, "
            f"{best['candidate']}, {best['verdict']:.2f} in {best['seconds']:.2g} s."
        )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return value.to_dict() if hasattr(value, "to_dict") else value


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): _number(x) if isinstance(x, float) else x for key, x in row.items()}
        for row in table.to_dict("records")
    ]
