"""Pictures: the encoder against a decoder written from the specification, and what an example looks like."""

import base64
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from whence.data import Examples
from whence.errors import ShapeError
from whence.report.exhibits import Exhibits
from whence.report.png import encode_png


def decode_png(data):
    """Unfiltered 8-bit PNG -> (h, w) or (h, w, 3); checks signature, lengths and check sums."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = [], 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        chunks.append((kind, body))
        at += 12 + length
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, color, *rest = struct.unpack(">IIBBBBB", chunks[0][1])
    assert (depth, rest) == (8, [0, 0, 0])
    channels = {0: 1, 2: 3}[color]
    rows = np.frombuffer(zlib.decompress(chunks[1][1]), np.uint8).reshape(height, 1 + width * channels)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape((height, width) if channels == 1 else (height, width, 3))


shapes = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)), st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))
)


@given(arrays(np.uint8, shapes))
def test_round_trip(pixels):
    np.testing.assert_array_equal(decode_png(encode_png(pixels)), pixels)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4), np.uint8)])
def test_what_is_no_picture_is_refused(pixels):
    with pytest.raises(ShapeError, match="uint8"):
        encode_png(pixels)


def shown(images, index=0):
    exhibits = Exhibits(Examples((images, torch.zeros(len(images)).long())), Examples((images,)), None)
    head, _, data = exhibits.picture(0, index).partition(",")
    assert head == "data:image/png;base64"
    return decode_png(base64.b64decode(data))


def test_grey_pixels_in_0_to_1_keep_their_values():
    image = torch.arange(16).reshape(1, 1, 4, 4) / 255
    np.testing.assert_array_equal(shown(image), np.arange(16).reshape(4, 4))


def test_color_keeps_its_channels():
    image = torch.zeros(1, 3, 4, 5)
    image[:, 1] = 1.0
    assert (shown(image) == [0, 255, 0]).all()
    assert shown(image).shape == (4, 5, 3)


def test_standardised_pixels_share_one_scale():
    images = torch.zeros(2, 1, 4, 4)
    images[0], images[1] = -2.0, 2.0
    images[1, 0, 0, 0] = 0.0
    assert (shown(images, 0) == 0).all()
    assert shown(images, 1)[0, 0] == 128
    assert shown(images, 1)[1, 1] == 255


def test_large_pictures_are_averaged_down():
    image = torch.zeros(1, 1, 192, 384)
    image[..., ::2] = 1.0  # columns that alternate average to grey
    small = shown(image)
    assert small.shape == (48, 96)
    assert (small == 128).all()
