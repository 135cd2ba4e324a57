"""Named random streams: the same root seed and names give the same numbers, whatever else was drawn before."""

from __future__ import annotations

import hashlib
import operator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive_seed(root: int, *names: object) -> int:
    """A 63-bit seed that depends on `root` and every name (as text, so 1 and "1" are one name), and on nothing else.

    >>> derive_seed(0, "noise") == derive_seed(0, "noise")
    True
    >>> derive_seed(0, "noise") == derive_seed(0, "split")
    False
    """
    text = "\x1f".join([str(operator.index(root)), *map(_escaped, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _escaped(name: object) -> str:
    # The separator inside a name must not make ("a", "b") and ("a\x1fb",) one stream.
    return str(name).replace("\\", "\\\\").replace("\x1f", "\\x1f")


def torch_generator(root: int, *names: object) -> torch.Generator:
    """A CPU `torch.Generator` for the named stream."""
    import torch

    return torch.Generator().manual_seed(derive_seed(root, *names))


def numpy_generator(root: int, *names: object) -> np.random.Generator:
    """A numpy `Generator` for the named stream."""
    import numpy as np

    return np.random.default_rng(derive_seed(root, *names))
