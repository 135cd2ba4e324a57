"""Attention and bare parameters, for which no layer is called: rows, products and factors equal plain autograd."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from whence.curvature import fit_kronecker
from whence.data import Examples
from whence.gradients import (
    gradient_products,
    hook_coverage,
    loss_gradients,
    loss_products,
    measure_gradients,
    outputs_of,
)
from whence.gradients.hooks import pull_back_hooks
from whence.gradients.loop import pull_back_loop
from whence.gradients.route import route_of
from whence.rng import torch_generator
from whence.task import Task, model_state

F64 = torch.float64
ROUNDING = 1e-12  # of the largest entry: float64 sums of at most a few thousand products, in another order
LONG, SHORT, D = 5, 3, 4  # positions of keys and of queries; embedding


def normal(name, *shape):
    return torch.randn(shape, generator=torch_generator(0, name), dtype=F64)


def run(model, batch):
    return model(*batch).flatten(1)


def mean_square(outputs, batch):
    return outputs.square().mean(1)


def task_of(model):
    model = model.double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.4 * normal(name, *p.shape) + 0.1)
    return Task(model, outputs=run, loss=mean_square, measure="loss")


def data(n=6):
    """Inputs, and which of their last positions are padding."""
    length = torch.tensor([LONG, LONG - 2, LONG - 1]).repeat(n)[:n]
    return Examples((normal("x", n, LONG, D), torch.arange(LONG) >= length[:, None]))


def rows_by_loop(task, examples):
    return torch.cat([rows for _, rows in loss_gradients(task, examples, path="loop")])


def assert_same_rows(task, examples, still=()):
    """Rows by hooks are those of the loop, and no parameter is looked at that has no gradient, but for `still`."""
    trainable, fixed = model_state(task.model, F64)
    batch = examples.all()
    v = normal("v", len(examples), 2, outputs_of(task, examples)[0].numel())
    found, expected = (path(task, trainable, fixed, batch, v) for path in (pull_back_hooks, pull_back_loop))
    assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
    assert {name for name, x in task.layout.unflatten(expected.flatten(0, 1)).items() if not x.any()} == set(still)


def assert_right(task, examples, still=()):
    """Covered by hooks; rows, products with directions and those of pairs are those of plain autograd."""
    assert hook_coverage(task, examples).fallback == {}
    assert route_of(task, examples).path == "hooks"
    assert_same_rows(task, examples, still)
    rows = rows_by_loop(task, examples)
    directions = normal("directions", 3, task.layout.n_params)
    products = torch.cat([values for _, values in loss_products(task, examples, directions)], 1)
    bound = ROUNDING * float((directions.norm(dim=1)[:, None] * rows.norm(dim=1)).max())
    assert_close(products, directions @ rows.T, rtol=0, atol=bound)
    queries = examples.subset(range(min(2, len(examples))))
    pairs = torch.cat([values for _, values in gradient_products(task, queries, examples)], 1)
    of_queries = measure_gradients(task, queries, path="loop")
    bound = ROUNDING * float((of_queries.norm(dim=1)[:, None] * rows.norm(dim=1)).max())
    assert_close(pairs, of_queries @ rows.T, rtol=0, atol=bound)


# --- attention --------------------------------------------------------------------------------------------------------


class Attends(nn.Module):
    """One attention among layers; `role` says which of query, key and value are one tensor.

    `options` (number of examples, padding) -> arguments of the attention beside these three.
    """

    def __init__(self, role="self", options=lambda n, padding: {}, n_heads=2, **settings):
        super().__init__()
        self.role, self.options = role, options
        self.attention = nn.MultiheadAttention(D, n_heads, **settings)
        self.first, self.head = nn.Linear(D, D), nn.Linear(D, 2)
        self.keys = nn.Linear(D, self.attention.kdim) if role != "self" else None
        self.values = nn.Linear(D, self.attention.vdim) if role == "three" else None

    def forward(self, x, padding):
        inputs = [torch.tanh(self.first(x))] * 3
        if self.role != "self":
            inputs = [inputs[0][:, :SHORT], *[torch.tanh(self.keys(x))] * 2]
        if self.role == "three":
            inputs[2] = torch.tanh(self.values(x))
        if not self.attention.batch_first:
            turned = {id(one): one.transpose(0, 1) for one in inputs}
            inputs = [turned[id(one)] for one in inputs]
        out, weights = self.attention(*inputs, **self.options(len(x), padding))
        out = out if self.attention.batch_first else out.transpose(0, 1)
        if weights is not None:  # a model may use them
            out = out * weights.square().flatten(1).sum(1)[:, None, None]
        return self.head(torch.tanh(out))


def causal():
    return torch.ones(LONG, LONG, dtype=torch.bool).triu(1)


MASKS = {
    "none": lambda n, padding: {},
    "padding": lambda n, padding: {"key_padding_mask": padding},
    "additive padding": lambda n, padding: {"key_padding_mask": -1.5 * padding.double()},
    "causal": lambda n, padding: {"attn_mask": causal()},
    "causal hint": lambda n, padding: {"attn_mask": causal(), "is_causal": True},
    "both": lambda n, padding: {"attn_mask": causal(), "key_padding_mask": padding, "is_causal": True},
    "additive": lambda n, padding: {"attn_mask": normal("additive", LONG, LONG)},
    "of heads": lambda n, padding: {"attn_mask": normal("of heads", 2, LONG, LONG).repeat(n, 1, 1)},
}


@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}])
@pytest.mark.parametrize("mask", MASKS)
def test_masks_and_weights(mask, weights):
    model = Attends(options=lambda n, padding: MASKS[mask](n, padding) | weights, batch_first=True)
    assert_right(task_of(model), data())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "role, sizes",
    [
        ("self", {}),
        ("memory", {}),
        ("memory", {"kdim": 3, "vdim": 3}),
        ("three", {}),
        ("three", {"kdim": 3, "vdim": 6}),
    ],
)
def test_roles_of_the_inputs(role, sizes, batch_first, bias):
    task = task_of(Attends(role, bias=bias, batch_first=batch_first, **sizes))
    assert_right(task, data())


@pytest.mark.parametrize("n", [1, 2, 5])
def test_any_number_of_examples(n):
    assert_right(task_of(Attends("memory", batch_first=True)), data(n))


@pytest.mark.parametrize("kept", ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"])
@pytest.mark.parametrize("role", ["self", "three"])
def test_most_of_it_frozen(role, kept):
    model = Attends(role, batch_first=True)
    for name, p in model.named_parameters():
        p.requires_grad_(name == f"attention.{kept}")
    task = task_of(model)
    assert task.layout.names == (f"attention.{kept}",)
    assert_right(task, data())


def test_one_attention_in_two_roles():
    class Twice(Attends):
        def forward(self, x, padding):
            once = self.attention(x, x, x)[0]
            return super().forward(self.attention(x, once, once)[0], padding)

    assert_right(task_of(Twice(batch_first=True)), data())


def test_an_output_of_which_a_view_is_asked():
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(D, 2)

        def forward(self, x, padding):
            x = x.transpose(0, 1)
            rows = self.attention(x, x, x)[0].view(-1, D)
            return rows.reshape(LONG, len(padding), D).transpose(0, 1)

    assert_right(task_of(Viewed()), data())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_whose_fast_path_calls_no_layer(norm_first, padded):
    """Outputs without gradients are torch's fused ones, with padding in nested tensors; rows are of the other."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(D, 2, 6, batch_first=True, norm_first=norm_first)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first)

        def forward(self, x, padding):
            out = self.encoder(x, src_key_padding_mask=padding if padded else None)
            return out.masked_fill(padding[:, :, None], 0)

    task, examples = task_of(Encoder()), data()
    assert_right(task, examples)
    with_graph = task.outputs(task.model, examples.all()).detach()
    assert_close(outputs_of(task, examples), with_graph, rtol=0, atol=ROUNDING * float(with_graph.abs().max()))


def test_a_transformer_with_a_decoder():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Transformer(D, 2, 1, 1, 6, batch_first=True)

        def forward(self, x, padding):
            return self.net(x, x[:, :SHORT], src_key_padding_mask=padding, memory_key_padding_mask=padding)

    assert_right(task_of(Both()), data())


def test_hooks_of_its_own_still_run():
    model = Attends(batch_first=True)
    model.attention.register_forward_hook(lambda module, args, output: (3 * output[0], output[1]))
    model.attention.out_proj.register_forward_hook(lambda module, args, output: 0 * output)  # which torch never calls
    assert_right(task_of(model), data())


class Doubled(nn.MultiheadAttention):
    """A forward of its own."""

    def forward(self, *args, **kwargs):
        out, weights = super().forward(*args, **kwargs)
        return 2 * out, weights


@pytest.mark.parametrize("settings", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"own": True}])
def test_settings_without_a_rule_are_named_and_take_another_path(settings):
    model = Attends(batch_first=True, **({} if "own" in settings else settings))
    if "own" in settings:
        model.attention = Doubled(D, 2, batch_first=True)
    task, examples = task_of(model), data()
    assert_same_rows(task, examples)
    found = hook_coverage(task, examples)
    assert found.fallback["attention.in_proj_weight"] == f"{type(model.attention).__name__} has no rule"
    assert set(found.fallback) == {name for name in task.layout.names if name.startswith("attention.")}
    assert route_of(task, examples).path == "vmap"


def test_an_attention_over_the_examples_themselves_is_no_layer_of_theirs():
    """Without a dimension for examples, (s, d), it mixes them: its parameters are used outside of any layer's call."""

    class Unbatched(Attends):
        def forward(self, x, padding):
            return super().forward(x, padding) + self.attention(x[:, 0], x[:, 0], x[:, 0])[0].sum()

    task, examples = task_of(Unbatched(batch_first=True)), data()
    found = hook_coverage(task, examples)
    assert found.fallback["attention.in_proj_weight"] == "it is used outside the calls of its layer"
    assert route_of(task, examples).path == "vmap"


def test_nothing_is_left_in_the_module():
    model = Attends("three", kdim=3, vdim=6)
    task, examples = task_of(model), data()
    before = {name: (id(p), p.clone()) for name, p in model.named_parameters()}
    plan = route_of(task, examples).plan
    assert_same_rows(task, examples)
    assert "forward" not in vars(model.attention)
    assert all(p is None for layer in plan.layers for p in layer._parameters.values() if layer not in model.modules())
    assert {name: id(p) for name, p in model.named_parameters()} == {name: at for name, (at, _) in before.items()}
    for name, p in model.named_parameters():
        assert_close(p, before[name][1], rtol=0, atol=0)


def test_the_module_is_as_it_was_after_an_error():
    model = Attends(batch_first=True)
    task, examples = task_of(model), data()
    batch = examples.all()
    plan = route_of(task, examples).plan
    model.options = lambda n, padding: {"attn_mask": torch.zeros(2, 2)}
    with pytest.raises(RuntimeError):
        pull_back_hooks(task, *model_state(model, F64), batch, normal("v", len(examples), 1, 2 * LONG), plan=plan)
    assert "forward" not in vars(model.attention)
    model.options = lambda n, padding: {}
    assert_right(task, examples)


# --- Kronecker factors ------------------------------------------------------------------------------------------------


class ByHand(nn.Module):
    """The same attention from linear layers, for one head: one of 3 d outputs, or three and their biases."""

    def __init__(self, attention):
        super().__init__()
        self.stacked = attention.in_proj_weight is not None
        if self.stacked:
            self.into = nn.Linear(D, 3 * D)
        else:
            sizes = (D, attention.kdim, attention.vdim)
            self.q, self.k, self.v = (nn.Linear(size, D, bias=False) for size in sizes)
            self.shift = nn.Parameter(torch.empty(3 * D))
        self.out = nn.Linear(D, D)
        with torch.no_grad():
            for own, given in zip(self.double().parameters(), in_order(attention), strict=True):
                own.copy_(given)

    def forward(self, query, key, value, need_weights):
        if self.stacked:
            parts = [self.into(query)] * 3 if query is key else [self.into(query), *[self.into(key)] * 2]
            q, k, v = (part[..., i * D : (i + 1) * D] for i, part in enumerate(parts))
        else:
            parts = (self.q(query), self.k(key), self.v(value))
            q, k, v = (part + shift for part, shift in zip(parts, self.shift.chunk(3), strict=True))
        return self.out(torch.softmax(q @ k.mT / D**0.5, -1) @ v), None


def in_order(attention):
    """Bare parameters before those of layers, as `ByHand` has them."""
    own = {name: p for name, p in attention.named_parameters(recurse=False) if p is not attention.in_proj_bias}
    bias = [attention.in_proj_bias]
    first = [*own.values(), *bias] if attention.in_proj_weight is not None else [*bias, *own.values()]
    return [*first, *attention.out_proj.parameters()]


def identity_hessian(outputs, batch):
    c = outputs[0].numel()
    return (2 / c) * torch.eye(c, dtype=outputs.dtype).expand(len(outputs), c, c)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize(
    "role, sizes, diagonal",
    [
        ("self", {}, set()),
        ("memory", {}, set()),
        ("three", {"kdim": 3, "vdim": 6}, {"attention.in_proj_bias"}),  # one parameter of three layers
    ],
)
def test_kronecker_factors_are_those_of_linear_layers(role, sizes, diagonal, corrected):
    model = Attends(role, lambda n, padding: {"need_weights": False}, n_heads=1, batch_first=True, **sizes)
    task = with_hessian(task_of(model).model)
    found = fit_kronecker(task, data(), corrected=corrected)
    assert set(found.diagonal) == diagonal
    parameters = in_order(model.attention)
    names = [next(name for name, p in model.named_parameters() if p is given) for given in parameters]
    twin = copy.deepcopy(model)
    twin.attention = ByHand(model.attention)
    twin.attention.batch_first = True
    expected = fit_kronecker(with_hessian(twin.eval()), data(), corrected=corrected)
    of_twin = {
        f"attention.{name}": own for (name, _), own in zip(twin.attention.named_parameters(), names, strict=True)
    }
    at = task.layout.unflatten(torch.arange(task.layout.n_params)[None])
    order = torch.cat([at[of_twin.get(name, name)].flatten() for name in expected.layout.names])
    wanted = expected.to_dense()
    assert_close(found.to_dense()[order[:, None], order], wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))


def with_hessian(model):
    return Task(model, outputs=run, loss=mean_square, output_hessian=identity_hessian)
