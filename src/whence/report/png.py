"""A PNG encoder for small pictures, so that a report needs no imaging library."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from whence.errors import ShapeError

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """An 8-bit PNG, not interlaced, every row unfiltered. `pixels` (h, w) grey or (h, w, 3) red, green, blue.

    Raises:
        ShapeError: Another shape, or another type than uint8.
    Reference:
        W3C, Portable Network Graphics (second edition), section 5 (chunks) and 11.2 (IHDR, IDAT, IEND).
    """
    is_picture = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not is_picture or pixels.dtype != np.uint8 or pixels.size == 0:
        raise ShapeError(
            f"`pixels` must be uint8 (h, w) or (h, w, 3), not empty; got {pixels.dtype} {pixels.shape}. "
            "Scale to 0..255 and move the channels last."
        )
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, _GREY if pixels.ndim == 2 else _RGB, 0, 0, 0)
    unfiltered = np.zeros((height, 1), np.uint8)  # the filter type that starts each row
    rows = np.concatenate([unfiltered, pixels.reshape(height, -1)], axis=1)
    body = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")
    return _SIGNATURE + body


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
