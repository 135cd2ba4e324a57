"""Numbers and names as a reader meets them."""

import doctest
import math

import pytest

from whence.report import album, wording
from whence.report.charts import heat_map
from whence.report.wording import MINUS


@pytest.mark.parametrize("module", [album, wording, heat_map])
def test_examples_in_the_docstrings(module):
    failed, attempted = doctest.testmod(module)
    assert attempted > 0
    assert failed == 0


@pytest.mark.parametrize(
    "value, shown",
    [
        (0.0, "0"),
        (-0.0, "0"),
        (12345.6, "12346"),
        (2e7, "2.00e7"),
        (-3e-9, f"{MINUS}3.00e{MINUS}9"),
        (-math.inf, f"{MINUS}∞"),
        (1, "1"),
    ],
)
def test_number(value, shown):
    assert wording.number(value) == shown


def test_control_characters_and_lone_surrogates_become_visible():
    assert wording.plain("a\x00b\ud800c\nd") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c\nd"


def test_long_names_keep_their_end():
    text = wording.short("a" * 500 + "-0007.png")
    assert len(text) == 160
    assert text.endswith("-0007.png")
