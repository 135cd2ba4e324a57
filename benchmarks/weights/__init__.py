"""Learned weights of parameter groups: what they are worth, and where they fail. `python -m benchmarks.weights`.

`fixed` holds every setting of the weightings, once for all benches.
"""

from __future__ import annotations

from benchmarks.weights.regimes import synthetic

__all__ = ["synthetic"]
