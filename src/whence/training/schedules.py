"""Learning-rate schedules: a factor for each step."""

from __future__ import annotations

import math
from collections.abc import Callable


def _warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


def _done(step: int, total: int, warmup: int) -> float:
    """Share of the decay that is behind `step`, 0 at the end of the warm-up and below 1 at the last step."""
    return max(0.0, (step - warmup) / max(1, total - warmup))


def constant(step: int, total: int, warmup: int) -> float:
    """1 after the warm-up."""
    return _warm(step, warmup)


def linear(step: int, total: int, warmup: int) -> float:
    """From 1 to 0 in a straight line."""
    return _warm(step, warmup) * (1.0 - _done(step, total, warmup))


def cosine(step: int, total: int, warmup: int) -> float:
    """From 1 to 0 along half a cosine."""
    return _warm(step, warmup) * 0.5 * (1.0 + math.cos(math.pi * _done(step, total, warmup)))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {"constant": constant, "linear": linear, "cosine": cosine}
