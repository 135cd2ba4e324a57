"""Weights of parameter groups: normalised, kept exactly, and shown in the model's order."""

import json
import math

import altair
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from whence.errors import InputError, ShapeError, StoreError, StoreMismatchError
from whence.task import GroupWeights, ParameterGroups, ParameterLayout

F64 = torch.float64
GROUPS = ParameterGroups(
    names=("conv.weight", "conv.bias", "head"), of_tensor=(0, 1, 2, 2), sizes=(6, 2, 5), tensors=("a", "b", "c", "d")
)
# A mean of float64 numbers and a division by it, each rounded once or twice.
ROUNDED = 1e-12


def weights(*values, **options):
    return GroupWeights(torch.tensor(values, dtype=F64), GROUPS, **options)


# --- normalisation ----------------------------------------------------------------------------------------------------


def test_the_mean_is_one():
    assert weights(1.0, 2.0, 3.0).values.tolist() == [0.5, 1.0, 1.5]
    assert weights(0.0, 0.0, 5.0).values.tolist() == [0.0, 0.0, 3.0]
    assert GroupWeights(torch.tensor([2, 4, 6]), GROUPS).values.tolist() == [0.5, 1.0, 1.5]
    assert weights(1.0, 2.0, 3.0).values.dtype == F64


positive = st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3)


@given(positive, st.floats(1e-100, 1e100))
def test_scale_is_nothing_and_normalised_weights_stay_to_the_last_bit(values, scale):
    found = weights(*values)
    assert_close(float(found.values.mean()), 1.0, rtol=0, atol=ROUNDED)
    assert_close(weights(*(scale * v for v in values)).values, found.values, rtol=ROUNDED, atol=0)
    assert torch.equal(GroupWeights(found.values, GROUPS).values, found.values)


@pytest.mark.parametrize(
    "values, error, message",
    [
        ([1.0, -1.0, 1.0], InputError, r"non-negative and not all zero; got \[1.0, -1.0, 1.0\]"),
        ([1.0, math.nan, 1.0], InputError, "must be finite"),
        ([1.0, math.inf, 1.0], InputError, "must be finite"),
        ([0.0, 0.0, 0.0], InputError, "not all zero"),
        ([1.0, 1.0], ShapeError, r"\(n_groups,\) = \(3,\); got \(2,\)"),
        ([[1.0, 1.0, 1.0]], ShapeError, r"got \(1, 3\)"),
        (1.0, ShapeError, r"got \(\)"),
    ],
)
def test_what_are_no_weights_is_refused(values, error, message):
    with pytest.raises(error, match=message):
        GroupWeights(torch.tensor(values), GROUPS)


@pytest.mark.parametrize("facts", [{"loss": math.nan}, {"loss": torch.ones(1)}, {"dir": {1, 2}}])
def test_facts_must_be_json(facts):
    with pytest.raises(InputError, match="`facts` must be JSON"):
        weights(1.0, 1.0, 1.0, facts=facts)


def test_uniform_and_only():
    uniform = GroupWeights.uniform(GROUPS)
    assert (uniform.name, uniform.is_uniform, uniform.values.tolist()) == ("uniform", True, [1.0, 1.0, 1.0])
    assert weights(7.0, 7.0, 7.0).is_uniform
    assert not weights(7.0, 7.0, 8.0).is_uniform
    alone = GroupWeights.only(GROUPS, "conv.bias")
    assert (alone.name, alone.values.tolist()) == ("conv.bias", [0.0, 3.0, 0.0])
    with pytest.raises(InputError, match=r"No group 'conv'. Known: conv\.weight, conv\.bias, head"):
        GroupWeights.only(GROUPS, "conv")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_ratio_and_entropy_by_hand():
    found = weights(1.0, 2.0, 1.0)
    assert found.ratio == 2.0
    # shares 1/4, 1/2, 1/4: entropy 1/4 log 4 + 1/2 log 2 + 1/4 log 4 = 3/2 log 2
    assert_close(found.entropy, 1.5 * math.log(2) / math.log(3))
    assert_close(GroupWeights.uniform(GROUPS).entropy, 1.0)
    assert GroupWeights.uniform(GROUPS).ratio == 1.0
    alone = GroupWeights.only(GROUPS, "head")
    assert (alone.entropy, alone.ratio) == (0.0, math.inf)
    one = GroupWeights(torch.tensor([4.0]), ParameterGroups(("all",), (0,), (3,), ("a",)))
    assert (one.entropy, one.ratio, one.is_uniform) == (1.0, 1.0, True)


def test_tables_keep_the_order_of_the_model():
    found = weights(3.0, 2.0, 1.0, name="learned")
    assert found.by_name() == {"conv.weight": 1.5, "conv.bias": 1.0, "head": 0.5}
    assert list(found.by_name()) == list(GROUPS.names)
    table = found.to_pandas()
    assert table.to_dict("list") == {
        "group": ["conv.weight", "conv.bias", "head"],
        "weight": [1.5, 1.0, 0.5],
        "n_params": [6, 2, 5],
    }
    assert repr(found) == "GroupWeights('learned', 3 groups: conv.weight: 1.5, conv.bias: 1, head: 0.5)"


def test_the_chart_shows_the_groups_in_the_order_of_the_model():
    found = weights(3.0, 2.0, 1.0, name="learned")
    spec = found.chart().to_dict()  # altair checks it against the Vega-Lite schema
    assert altair.Chart.from_dict(spec).to_dict()["layer"]
    bars, rule = spec["layer"]
    assert bars["encoding"]["y"]["sort"] == ["conv.weight", "conv.bias", "head"]
    assert (bars["encoding"]["x"]["field"], bars["encoding"]["y"]["field"]) == ("weight", "group")
    data = spec["datasets"][bars["data"]["name"]]
    assert [(row["group"], row["weight"]) for row in data] == list(found.by_name().items())
    assert spec["datasets"][rule["data"]["name"]] == [{"weight": 1.0}]
    assert bars["title"] == "weights: learned"


# --- files ------------------------------------------------------------------------------------------------------------


def test_weights_are_read_back_exactly(tmp_path):
    facts = {"loss": {"uniform": -0.1, "weights": -1 / 3}, "queries": 7, "note": None}
    found = weights(0.1, 1 / 3, 0.7, name="learned", method="grad_dot", facts=facts)
    again = GroupWeights.load(found.save(tmp_path / "w.json"))
    assert torch.equal(again.values, found.values)
    assert (again.groups, again.name, again.method, again.facts) == (GROUPS, "learned", "grad_dot", facts)


@given(positive)
def test_any_weights_are_read_back_exactly(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("weights") / "w.json"
    found = weights(*values)
    assert torch.equal(GroupWeights.load(found.save(path)).values, found.values)


def test_a_file_is_not_overwritten_unasked(tmp_path):
    path = weights(1.0, 2.0, 3.0).save(tmp_path / "w.json")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="overwrite=True"):
        weights(3.0, 2.0, 1.0).save(path)
    assert path.read_bytes() == before
    weights(3.0, 2.0, 1.0).save(path, overwrite=True)
    assert GroupWeights.load(path).values.tolist() == [1.5, 1.0, 0.5]


def test_absent_foreign_and_damaged_files_are_told_apart(tmp_path):
    with pytest.raises(StoreError):
        GroupWeights.load(tmp_path / "absent.json")
    path = weights(1.0, 2.0, 3.0).save(tmp_path / "w.json")
    content = json.loads(path.read_text())
    for foreign in ([1, 2], {"format": "whence-run", "version": 1}, {**content, "version": 2}):
        path.write_text(json.dumps(foreign))
        with pytest.raises(StoreMismatchError, match="holds no group weights of this whence"):
            GroupWeights.load(path)
    lacking = {name: part for name, part in content.items() if name != "values"}
    for damaged in (
        lacking,
        {**content, "values": [1.0, 2.0]},
        {**content, "values": [1.0, -2.0, 1.0]},
        {**content, "values": [1.0, "x", 1.0]},
        {**content, "groups": {"names": ["a"]}},
        {**content, "groups": [1]},
    ):
        path.write_text(json.dumps(damaged))
        with pytest.raises(StoreError, match=r"w\.json is damaged .*Write it again"):
            GroupWeights.load(path)
    path.write_text(json.dumps(content)[:40])
    with pytest.raises(StoreError, match=r"w\.json"):
        GroupWeights.load(path)


# --- groups -----------------------------------------------------------------------------------------------------------


def test_every_parameter_has_the_weight_of_its_group():
    layout = ParameterLayout.of(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    groups = ParameterGroups.of(layout, "module")
    assert (groups.names, groups.sizes, len(groups)) == (("0", "2"), (9, 4), 2)
    found = GroupWeights(torch.tensor([3.0, 1.0]), groups).of_parameter(layout)
    assert found.tolist() == [1.5] * 9 + [0.5] * 4
    # a group need not be in one piece
    split = ParameterGroups.of(layout, lambda name: name.rpartition(".")[2])
    assert split.of_parameter(layout).tolist() == [0] * 6 + [1] * 3 + [0] * 3 + [1]


def test_groups_of_other_parameters_are_refused():
    layout = ParameterLayout.of(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)))
    with pytest.raises(InputError, match=r"with 4 parameter tensors, this one has 4; they differ in 0\.bias"):
        GroupWeights.uniform(GROUPS).of_parameter(layout)
