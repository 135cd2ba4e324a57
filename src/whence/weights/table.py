"""What each parameter group is of a model, and of its scores."""

from __future__ import annotations

import pandas as pd
import torch

from whence.errors import InputError
from whence.task import GroupWeights
from whence.weights.by_group import Contributions
from whence.weights.spread import centered_squares
from whence.weights.stream import ContributionStream


def group_table(found: Contributions | ContributionStream, weights: GroupWeights | None = None) -> pd.DataFrame:
    """A row for each group, in the model's order: how large it is, how much of the scores it makes, its weight.

    The energy of a group is the sum of squares of its contributions around each query's mean over the train set, the
    trace of its part of the matrices B_q. Energies of groups do not add up to that of the scores, since contributions
    of groups correlate: shares are of their sum.

    Args:
        found: Contributions.
        weights: Of these groups.
    Returns:
        Columns group, parameters and energy (shares that add up to 1); with weights also weight, and weighted_energy:
        the shares of the weighted contributions.
    Raises:
        InputError: The weights belong to other groups, or nothing contributes.
    Cost:
        One pass over the contributions.
    """
    if weights is not None and weights.groups != found.groups:
        raise InputError(f"The weights {weights.name!r} are of other groups. Use the grouping of the contributions.")
    energy = centered_squares(found, lambda block: block)
    if not bool(energy.any()):
        raise InputError("No group contributes anything that differs between train examples. Use other queries.")
    sizes = torch.tensor(found.groups.sizes, dtype=torch.float64)
    table = pd.DataFrame(
        {
            "group": found.groups.names,
            "parameters": (sizes / sizes.sum()).numpy(),
            "energy": (energy / energy.sum()).numpy(),
        }
    )
    if weights is not None:
        weighted = energy * weights.values.square()
        table["weight"] = weights.values.numpy()
        table["weighted_energy"] = (weighted / weighted.sum()).numpy()
    return table
