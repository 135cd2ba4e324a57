"""What may be passed as `damping` or `filter`, checked, and bound to the size of the train set."""

from __future__ import annotations

from whence.algebra import Damping, damped_inverse
from whence.algebra.filters import ResolvableFilter
from whence.errors import InputError
from whence.methods.horizon import RecipeFilter

DEFAULT_DAMPING = Damping.relative(0.1)


def damping_filter(damping: Damping) -> ResolvableFilter:
    """1 / (s + damping).

    Raises:
        InputError: A number without a unit.
    """
    if not isinstance(damping, Damping):
        raise InputError(
            f"`damping` must be a `Damping`, a number with its unit; got {damping!r}. Use `Damping.absolute(...)`, or "
            "`Damping.relative(0.1)` for a tenth of the curvature's mean eigenvalue."
        )
    return damped_inverse(damping)


def bound_filter(filter: ResolvableFilter | RecipeFilter, n_train: int) -> ResolvableFilter:
    """The filter, once it knows how many examples an epoch has.

    Raises:
        InputError: Not a filter.
        UnsupportedError: The optimizer of its recipe is no gradient descent.
    """
    if isinstance(filter, RecipeFilter):
        return filter.bind(n_train)
    if not all(hasattr(filter, part) for part in ("needs", "resolve", "describe")):
        raise InputError(
            f"`filter` must be a spectral filter; got {filter!r}. Use for instance `whence.horizon(recipe)`, "
            "`whence.flow(time)` or `whence.damped_inverse(Damping.relative(0.1))`."
        )
    return filter


def chosen_filter(
    damping: Damping | None, filter: ResolvableFilter | RecipeFilter | None, n_train: int
) -> ResolvableFilter:
    """The damped inverse, by default with `DEFAULT_DAMPING`, or the filter that was given in its place.

    Raises:
        InputError: Both were given.
    """
    if damping is not None and filter is not None:
        raise InputError("Give either `damping` or `filter`: a filter holds its own damping.")
    if filter is not None:
        return bound_filter(filter, n_train)
    return damping_filter(DEFAULT_DAMPING if damping is None else damping)
