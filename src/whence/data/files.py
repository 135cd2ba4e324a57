"""Reading the larger data sets from the folder that the environment variable `WHENCE_DATA` names."""

from __future__ import annotations

import gzip
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from whence.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

VARIABLE = "WHENCE_DATA"
IDX_UINT8 = 0x08


def data_file(relative: str) -> Path:
    """The path of `relative` in the data folder.

    Raises:
        DataError: `WHENCE_DATA` is unset, or the file is not there.
    """
    folder = os.environ.get(VARIABLE)
    if not folder:
        raise DataError(
            f"{relative} is read from a folder of data sets, and {VARIABLE} is not set. "
            f"Set {VARIABLE} to that folder, or load a bundled set (digits, diabetes, breast_cancer)."
        )
    path = Path(folder) / relative
    if not path.is_file():
        raise DataError(f"{path} does not exist. {VARIABLE} must name the folder that holds {relative}.")
    return path


def read_table(relative: str, columns: Sequence[str], n_rows: int) -> pd.DataFrame:
    """The table in a csv file (gzipped or not), checked against the columns and the number of rows it must have.

    Text is kept as it is: an entry such as `?` or `NA` is a value, not a gap.

    Raises:
        DataError: `WHENCE_DATA` is unset, or the file is missing, unreadable or not the one expected.
    """
    import pandas as pd

    path = data_file(relative)
    try:
        table = pd.read_csv(path, keep_default_na=False, na_filter=False)
    except (OSError, EOFError, zlib.error, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise damaged(relative, error) from error
    if list(table.columns) != list(columns):
        raise damaged(relative, f"the columns must be {', '.join(columns)}; found {', '.join(map(str, table.columns))}")
    if len(table) != n_rows:
        raise damaged(relative, f"it must have {n_rows} rows; found {len(table)}")
    return table


def numbers(table: pd.DataFrame, columns: Sequence[str], relative: str) -> NDArray[np.float64]:
    """The named columns as float64 (n, n_columns).

    Raises:
        DataError: An entry is no number; the message names file, column and row.
    """
    import pandas as pd

    read = []
    for name in columns:
        values = np.asarray(pd.to_numeric(table[name], errors="coerce"), np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            entry = table[name].iloc[int(bad[0])]
            raise damaged(relative, f"column {name}, data row {bad[0]} holds {entry!r}, not a number")
        read.append(values)
    return np.stack(read, axis=1)


def read_idx(relative: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The uint8 array in a gzipped idx file, which must have this `shape`.

    Raises:
        DataError: `WHENCE_DATA` is unset, or the file is missing, truncated, altered or of another shape.
    """
    path = data_file(relative)
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(relative, error) from error
    start = 4 + 4 * len(shape)
    # Header: two zero bytes, the type, the number of dimensions, then each size as a big-endian int32.
    header = bytes([0, 0, IDX_UINT8, len(shape)]) + np.array(shape, dtype=">i4").tobytes()
    if raw[:start] != header:
        raise damaged(relative, f"the header is not that of a uint8 array of shape {shape}")
    if len(raw) != start + math.prod(shape):
        raise damaged(relative, f"it must hold {math.prod(shape)} bytes after the header; found {len(raw) - start}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def damaged(relative: str, cause: object) -> DataError:
    """The error for a file that is there and cannot be used."""
    return DataError(f"{data_file(relative)} is damaged or another file than expected: {cause}. Fetch it again.")
