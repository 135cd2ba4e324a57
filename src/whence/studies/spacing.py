"""Positions spread over a data set, chosen without looking."""

from __future__ import annotations


def evenly(n: int, count: int) -> list[int]:
    """`count` positions among `n`, or all of them where they are fewer."""
    return list(range(n)) if count >= n else [k * n // count for k in range(count)]
