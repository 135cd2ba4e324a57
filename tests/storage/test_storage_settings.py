"""Settings have one normal form, so that the same settings always find their store."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whence.errors import InputError
from whence.storage.settings import differences, fingerprint, flatten, normalise

numbers = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
settings_dicts = st.dictionaries(st.text(), values, max_size=5)


@given(settings_dicts)
def test_normal_form_is_a_fixed_point_without_differences(settings):
    normal = normalise(settings)
    assert normalise(normal) == normal
    assert fingerprint(normal) == fingerprint(settings)
    assert differences(settings, normal) == []


@given(settings_dicts, settings_dicts)
def test_settings_differ_exactly_where_fingerprints_do(one, other):
    # Dots in keys may make two different dicts flatten alike; the settings of this library have none.
    if not any("." in key for key in [*flatten(one), *flatten(other)]):
        assert (differences(one, other) == []) == (fingerprint(one) == fingerprint(other))


def test_order_and_number_type_do_not_matter_but_bool_does():
    assert fingerprint({"a": 1, "b": {"c": (1, 2)}}) == fingerprint({"b": {"c": [1.0, 2]}, "a": 1.0})
    assert fingerprint({"a": True}) != fingerprint({"a": 1})


def test_differences_show_both_values():
    stored = {"recipe": {"lr": 0.03, "momentum": 0.9}, "seeds": [0, 1]}
    asked = {"recipe": {"lr": 0.1, "momentum": 0.9, "clip": None}, "seeds": [0, 1, 2]}
    assert differences(stored, asked) == [
        "settings.recipe.lr: stored 0.03, asked 0.1",
        "settings.seeds: stored [0,1], asked [0,1,2]",
        "settings.recipe.clip: stored (nothing), asked null",
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}])
def test_what_json_cannot_hold_is_named(value):
    with pytest.raises(InputError, match=r"settings\.a\.b"):
        normalise({"a": {"b": value}})
