"""Every error `whence` raises on purpose. Each message says what was asked, what was found and what to do.

The tree lets a caller catch by cause: bad input (`InputError`), a damaged or foreign store (`StoreError`), a
computation that did not reach its target (`NumericalError`), or something not built (`UnsupportedError`).
"""

from __future__ import annotations


class WhenceError(Exception):
    """Base of all errors raised on purpose by this package."""


class WhenceWarning(UserWarning):
    """Something the user should know and can act on, that does not make the answer wrong."""


class InputError(WhenceError, ValueError):
    """What was passed in cannot be used."""


class ShapeError(InputError):
    """A tensor or batch has a shape that does not fit."""


class DataError(InputError):
    """A data set cannot be used: empty, not repeatable, shuffled, duplicate ids, a damaged file."""


class NonFiniteError(InputError):
    """NaN or infinity where a number is needed; the message names the example or the parameter."""


class ModeError(InputError):
    """A module is in a state that makes the answer depend on chance, such as train mode."""


class UnknownNameError(InputError, KeyError):
    """A name is in no table; the message lists the known names and the nearest."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class ConfigError(InputError):
    """A run configuration has an unknown key, a missing key or a value of the wrong type."""


class UnitError(InputError):
    """A metric needs scores with a unit, and these only rank."""


class StoreError(WhenceError):
    """A folder on disk cannot be used as asked."""


class StoreMismatchError(StoreError):
    """A folder was written for other settings than the ones asked for."""


class DamagedShardError(StoreError):
    """A stored shard is truncated or altered; the message names it."""


class StoreWriteError(StoreError):
    """Writing failed (no space, read-only). Nothing that was there before is lost."""


class NumericalError(WhenceError):
    """A computation cannot give a trustworthy number."""


class ConvergenceError(NumericalError):
    """An iterative solver stopped before its tolerance."""


class NotPositiveDefiniteError(NumericalError):
    """A matrix that must be positive definite is not."""


class UnsupportedError(WhenceError):
    """A valid request that this version does not do; the message says what does it."""
