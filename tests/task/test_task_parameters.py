"""The flat parameter vector and its groups."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from whence.errors import NonFiniteError, UnknownNameError
from whence.task import GROUPINGS, ParameterGroups, ParameterLayout, fingerprint, model_state, working_dtype
from whence.testing.problems import PROBLEMS, TiedNet, mlp


class Transformer(nn.Module):
    """Only its parameter names matter."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(2, 2)
        self.layers = nn.ModuleList(
            [nn.ModuleDict({"attn": nn.Linear(2, 2), "mlp": nn.Linear(2, 3)}) for _ in range(2)]
        )
        self.scale = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize("name", PROBLEMS)
def test_flatten_and_unflatten_undo_each_other(name):
    layout = PROBLEMS[name]().task.layout
    flat = torch.arange(2.0 * 3 * layout.n_params).reshape(2, 3, -1)
    tensors = layout.unflatten(flat)
    assert [tuple(x.shape) for x in tensors.values()] == [(2, 3, *shape) for shape in layout.shapes]
    assert_close(layout.flatten(tensors, n_leading=2), flat, rtol=0, atol=0)


def test_the_order_is_that_of_named_parameters():
    model = mlp(3, 5, 2)
    layout = ParameterLayout.of(model)
    assert layout.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert layout.sizes == (15, 5, 10, 2)
    assert layout.offsets == (0, 15, 20, 30, 32)
    expected = nn.utils.parameters_to_vector(model.parameters())
    assert_close(layout.flatten(dict(model.named_parameters())), expected, rtol=0, atol=0)


def test_a_tied_weight_counts_once():
    layout = ParameterLayout.of(TiedNet(3))
    assert layout.names == ("encoder.weight", "encoder.bias", "decoder.bias")
    assert layout.n_params == 9 + 3 + 3


def test_a_layer_with_two_names_counts_once_under_the_first():
    layout = PROBLEMS["shared"]().task.layout
    assert layout.names == ("first.weight", "first.bias", "head.weight", "head.bias")


def test_frozen_parameters_are_excluded_and_kept_fixed():
    model = PROBLEMS["frozen"]().task.model
    assert ParameterLayout.of(model).names == ("2.weight", "2.bias")
    trainable, fixed = model_state(model, torch.float64)
    assert set(trainable) == {"2.weight", "2.bias"}
    assert set(fixed) == {"0.weight", "0.bias"}


def test_buffers_are_fixed():
    trainable, fixed = model_state(PROBLEMS["batch_norm"]().task.model, torch.float64)
    assert set(fixed) == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert fixed["norm.num_batches_tracked"].dtype == torch.int64
    assert not any(x.requires_grad for x in trainable.values())


def test_model_state_names_a_buffer_with_nan():
    model = PROBLEMS["batch_norm"]().task.model
    model.norm.running_var[2] = torch.inf
    with pytest.raises(NonFiniteError, match=r"'norm\.running_var'"):
        model_state(model, torch.float64)


@pytest.mark.parametrize(
    "own, expected",
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_working_dtype_is_never_below_float32(own, expected):
    assert working_dtype(mlp(3, 2, dtype=own)) == expected
    assert working_dtype(mlp(3, 2, dtype=own), torch.float64) == torch.float64


def test_fingerprint_knows_values_names_and_dtypes_and_nothing_else():
    one = fingerprint(mlp(3, 5, 2))
    assert fingerprint(mlp(3, 5, 2)) == one
    changed = mlp(3, 5, 2)
    changed[2].bias.data[1] += 1e-16 + changed[2].bias.data[1] * 2**-52
    others = [
        changed,
        mlp(3, 5, 2, seed=1),
        mlp(3, 5, 2, dtype=torch.float32),
        nn.Sequential(nn.Identity(), *mlp(3, 5, 2)),
    ]
    assert len({one, *map(fingerprint, others)}) == 5
    assert fingerprint(mlp(3, 5, 2, dtype=torch.bfloat16)) != one  # numpy has no bfloat16
    assert fingerprint(mlp(3, 5, 2).requires_grad_(False)) == one


NAMES = {
    "tensor": [
        "scale",
        "embed.weight",
        "embed.bias",
        *(f"layers.{k}.{part}.{p}" for k in (0, 1) for part in ("attn", "mlp") for p in ("weight", "bias")),
    ],
    "module": ["scale", "embed", "layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp"],
    "block": ["scale", "embed", "layers.0", "layers.1"],
    "depth_and_function": ["scale", "embed", "layers.0: attn", "layers.0: mlp", "layers.1: attn", "layers.1: mlp"],
}
SIZES = {
    "tensor": [1, 4, 2, 4, 2, 6, 3, 4, 2, 6, 3],
    "module": [1, 6, 6, 9, 6, 9],
    "block": [1, 6, 15, 15],
    "depth_and_function": [1, 6, 6, 9, 6, 9],
}


def test_every_grouping_is_tested():
    assert NAMES.keys() == GROUPINGS.keys()


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_groups_and_their_sizes(grouping):
    layout = ParameterLayout.of(Transformer())
    groups = ParameterGroups.of(layout, grouping)
    assert list(groups.names) == NAMES[grouping]
    assert list(groups.sizes) == SIZES[grouping]
    of_parameter = groups.of_parameter(layout)
    assert of_parameter.bincount().tolist() == SIZES[grouping]
    # Group k's entries of the flat vector are the tensors whose names it covers.
    marked = layout.unflatten(of_parameter)
    for name, place in zip(layout.names, groups.of_tensor, strict=True):
        assert name.startswith(groups.names[place].replace(": ", "."))
        assert bool((marked[name] == place).all())


def test_groups_by_a_callable():
    layout = ParameterLayout.of(Transformer())
    groups = ParameterGroups.of(layout, lambda name: "bias" if name.endswith("bias") else "rest")
    assert (groups.names, groups.sizes) == (("rest", "bias"), (1 + 4 + 4 + 6 + 4 + 6, 2 + 2 + 3 + 2 + 3))


def test_an_unknown_grouping_is_named_with_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'tensor'"):
        ParameterGroups.of(ParameterLayout.of(mlp(3, 2)), "tensors")
