"""The hooks path against plain autograd, one example at a time: every layer, and everything that can go wrong."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from whence.data import Examples
from whence.errors import UnsupportedError
from whence.gradients.hooks import pull_back_hooks
from whence.gradients.layers import LAYER_RULES, KroneckerRule, LayerRule, rule_for
from whence.gradients.loop import pull_back_loop
from whence.gradients.plan import plan_hooks
from whence.gradients.route import HookCoverage, hook_coverage, right_plan, route_of
from whence.rng import torch_generator
from whence.task import Task, model_state
from whence.testing.problems import PROBLEMS

ROUNDING = 1e-12  # of the largest entry: float64 sums of at most a few thousand products, in another order


def normal(name, *shape):
    return torch.randn(shape, generator=torch_generator(0, name), dtype=torch.float64)


def words(n, length, n_words=7):
    return torch.randint(n_words, (n, length), generator=torch_generator(0, "words"))


def task_of(model):
    """A task on the model in float64 and eval mode, with parameters and statistics away from their start."""
    model = model.double().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.4 * normal(name, *p.shape) + 0.1)
        for name, x in model.named_buffers():
            if x.is_floating_point():
                x.copy_(normal(name, *x.shape).abs() + 0.5)
    return Task(model, outputs=run, loss=mean_square)


def run(model, batch):
    return model(batch).flatten(1)


def mean_square(outputs, batch):
    return outputs.square().mean(1)


def both(task, x, n_cotangents=2):
    """Rows by hooks, and by the loop."""
    trainable, fixed = model_state(task.model, torch.float64)
    with torch.no_grad():
        outputs = task.call({**trainable, **fixed}, x)
    v = normal("v", len(x), n_cotangents, outputs[0].numel())
    return pull_back_hooks(task, trainable, fixed, x, v), pull_back_loop(task, trainable, fixed, x, v)


def assert_right(task, x, n_cotangents=2):
    found, expected = both(task, x, n_cotangents)
    assert not found.requires_grad
    assert float(expected.abs().max()) > 0
    assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))


def supports_hooks(task, examples):
    return route_of(task.with_model(task.model), examples).path == "hooks"  # of a new task nothing is known yet


# --- one layer at a time ----------------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """As in transformers: a linear layer with its weight stored as (inputs, outputs)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.empty(nx, nf)), nn.Parameter(torch.empty(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


class OwnNorm(nn.Module):
    """A norm that no table knows."""

    def __init__(self, d):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d))

    def forward(self, x):
        return self.weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


# the layer, and the shape of one example's input
LAYERS = {
    "linear": (lambda: nn.Linear(3, 4), (3,)),
    "linear without bias": (lambda: nn.Linear(3, 4, bias=False), (3,)),
    "linear at positions": (lambda: nn.Linear(3, 4), (5, 3)),
    "linear on a grid": (lambda: nn.Linear(3, 4), (2, 5, 3)),
    "conv1d_hf": (lambda: Conv1D(4, 3), (5, 3)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3), (3, 8)),
    "conv1d circular": (lambda: nn.Conv1d(2, 4, 3, padding=2, padding_mode="circular", stride=2), (2, 7)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), (2, 6, 5)),
    "conv2d without bias": (lambda: nn.Conv2d(2, 3, (1, 2), bias=False), (2, 4, 5)),
    "conv2d with a remainder": (lambda: nn.Conv2d(2, 3, 3, stride=(2, 3), padding=(1, 0)), (2, 8, 7)),
    "conv2d dilation": (lambda: nn.Conv2d(2, 3, (3, 2), dilation=(2, 3), padding=2), (2, 6, 5)),
    "conv2d same": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 5, 6)),
    "conv2d same dilation": (lambda: nn.Conv2d(2, 3, 2, padding="same", dilation=3), (2, 6, 6)),
    "conv2d valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid"), (2, 5, 6)),
    "conv2d groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, stride=2), (4, 5, 5)),
    "conv2d depthwise": (lambda: nn.Conv2d(3, 3, 3, groups=3), (3, 5, 5)),
    "conv2d reflect": (lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="reflect"), (2, 5, 6)),
    "conv2d replicate": (lambda: nn.Conv2d(2, 3, 3, padding=(0, 2), padding_mode="replicate"), (2, 5, 6)),
    "conv2d circular": (lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), (2, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (2, 3, 2), stride=(1, 2, 1), padding=1, groups=2), (2, 4, 5, 3)),
    "layer norm": (lambda: nn.LayerNorm(4), (5, 4)),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), (4,)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "rms norm": (lambda: nn.RMSNorm(4), (5, 4)),
    "rms norm with eps": (lambda: nn.RMSNorm(4, eps=0.1), (4,)),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 2)),
    "group norm without positions": (lambda: nn.GroupNorm(2, 4), (4,)),
    "batch norm 1d": (lambda: nn.BatchNorm1d(4), (4,)),
    "batch norm 1d at positions": (lambda: nn.BatchNorm1d(4), (4, 3)),
    "batch norm 2d": (lambda: nn.BatchNorm2d(4), (4, 3, 2)),
    "batch norm 3d": (lambda: nn.BatchNorm3d(2), (2, 3, 2, 2)),
    "prelu": (lambda: nn.PReLU(3), (3, 4)),
    "transposed convolution": (lambda: nn.ConvTranspose2d(2, 3, 3, stride=2), (2, 4, 4)),
    "own norm": (lambda: OwnNorm(4), (5, 4)),
}


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_equals_plain_autograd(name, n):
    make, shape = LAYERS[name]
    task, x = task_of(make()), normal("x", n, *shape)
    assert_right(task, x)
    found = hook_coverage(task, Examples(x))
    assert found == HookCoverage(task.layout.names, {})
    assert supports_hooks(task, Examples(x))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_in_the_middle_equals_plain_autograd(name):
    """With a gradient that comes through one layer and goes on to another."""
    make, shape = LAYERS[name]
    layer = make().eval()
    size = layer(torch.zeros(1, *shape)).numel() if name not in ("own norm", "conv1d_hf") else 20
    d = shape[-1]
    task = task_of(nn.Sequential(nn.Linear(d, d), nn.Tanh(), layer, nn.Tanh(), nn.Flatten(), nn.Linear(size, 2)))
    assert_right(task, normal("x", 4, *shape))


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 7), positions=st.lists(st.integers(1, 4), max_size=3), r=st.integers(1, 3))
def test_linear_at_any_positions(n, positions, r):
    task = task_of(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2, bias=False)))
    assert_right(task, normal("x", n, *positions, 3), r)


@pytest.mark.parametrize("padding_idx", [None, 2, -1])
def test_embedding(padding_idx):
    task = task_of(nn.Sequential(nn.Embedding(7, 3, padding_idx=padding_idx), nn.Tanh()))
    x = words(5, 6)
    x[:, 0] = 2
    assert_right(task, x)
    assert hook_coverage(task, Examples(x)).fallback == {}
    row = task.layout.unflatten(both(task, x)[0])["0.weight"][:, :, 2]
    assert bool(row.any()) == (padding_idx != 2)


def test_settings_without_a_rule():
    for layer in (nn.Embedding(7, 3, max_norm=1.0), nn.Embedding(7, 3, scale_grad_by_freq=True)):
        assert rule_for(layer) is None
    assert rule_for(nn.BatchNorm1d(3)) is None  # in train mode
    assert rule_for(nn.BatchNorm1d(3, track_running_stats=False).eval()) is None


@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith(("linear", "conv"))])
def test_factors_give_the_gradient(name):
    make, shape = LAYERS[name]
    layer = make().double()
    rule = rule_for(layer)
    assert isinstance(rule, KroneckerRule)
    x = normal("x", 6, *shape)
    g = normal("g", *layer(x).shape)
    if not rule.is_kronecker(layer):
        with pytest.raises(UnsupportedError, match="a pair for each group"):
            rule.factors(layer, x, g, 3)
        return
    a, b = rule.factors(layer, x, g, 3)  # two rows each
    weight = torch.einsum("nso,nsi->noi", b, a)
    found = rule.gradients(layer, x, g, 3, {own: p.shape for own, p in layer.named_parameters()})
    expected = found["weight"].mT if name == "conv1d_hf" else found["weight"].flatten(2)
    assert_close(weight, expected, rtol=0, atol=ROUNDING * float(weight.abs().max()))
    if layer.bias is not None:
        assert_close(b.sum(1), found["bias"], rtol=0, atol=ROUNDING * float(weight.abs().max()))
    (summed,) = torch.autograd.grad(layer(x), layer.weight, g)
    assert_close(found["weight"].sum(0), summed, rtol=0, atol=ROUNDING * float(summed.abs().max()))


# --- whole networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_kind_of_network(name):
    problem = PROBLEMS[name]()
    task, batch = problem.task, problem.train.all()
    trainable, fixed = model_state(task.model, torch.float64)
    outputs = task.call({**trainable, **fixed}, batch)
    v = normal("v", outputs.shape[0], 2, outputs[0].numel())
    expected = pull_back_loop(task, trainable, fixed, batch, v)
    found = pull_back_hooks(task, trainable, fixed, batch, v)
    assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
    assert supports_hooks(task, problem.train) == (name != "branching")
    assert all(p.grad is None for p in task.model.parameters())
    assert all(type(p) is nn.Parameter for p in task.model.parameters())


def test_a_tied_embedding_has_the_gradients_of_both_uses():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)
            self.head.weight = self.words.weight

        def forward(self, x):
            return self.head(torch.tanh(self.words(x)))

    task = task_of(Tied())
    assert task.layout.names == ("words.weight", "head.bias")
    assert_right(task, words(4, 5))
    assert hook_coverage(task, Examples(words(4, 5))).fallback == {}


def test_a_parameter_that_something_else_uses_too_falls_back():
    class Borrowed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)) @ self.first.weight)

    task, x = task_of(Borrowed()), normal("x", 4, 3)
    assert_right(task, x)
    assert hook_coverage(task, Examples(x)).fallback == {"first.weight": "it is used outside the calls of its layer"}


class Bare(nn.Module):
    """Parameters of its own beside a layer: a row to start with and a scale."""

    def __init__(self):
        super().__init__()
        self.start, self.scale = nn.Parameter(torch.empty(1, 1, 3)), nn.Parameter(torch.empty(()))
        self.layer = nn.Linear(3, 4)

    def forward(self, x):
        return self.scale * self.layer(torch.cat([self.start.expand(len(x), -1, -1), x], 1))


def test_bare_parameters_without_a_row_to_repeat_fall_back():
    task, x = task_of(Bare()), normal("x", 4, 2, 3)
    assert_right(task, x)
    found = hook_coverage(task, Examples(x))
    assert found.ruled == ("start", "layer.weight", "layer.bias")
    assert found.fallback == {"scale": "Bare has no rule"}


def test_bare_parameters_of_a_model_that_cannot_be_vmapped_take_the_loop():
    class Branch(Bare):
        def forward(self, x):
            return super().forward(x) * float(x.abs().max() > 0)

    task, x = task_of(Branch()), normal("x", 4, 2, 3)
    assert_right(task, x)


@pytest.mark.parametrize("frozen", ["0.weight", "0.bias", "2.weight", "2.bias"])
def test_frozen_parameters_are_left_out(frozen):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model.get_parameter(frozen).requires_grad_(False)
    task = task_of(model)
    assert frozen not in task.layout.names
    assert_right(task, normal("x", 4, 3))


def test_layers_overwritten_in_place():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Conv1d(1, 2, 2), nn.ELU(inplace=True))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = model

        def forward(self, x):
            hidden = self.layers[0](x)
            hidden += 1
            hidden = self.layers[1](hidden)
            return self.layers[3](self.layers[2](hidden[:, None]))

    task, x = task_of(Net()), normal("x", 4, 3)
    assert_right(task, x)
    assert hook_coverage(task, Examples(x)).fallback == {}


def test_an_input_that_is_overwritten_after_its_use_is_not_trusted():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            x = x.clone()
            out = self.layer(x)
            x.zero_()
            return out

    task, x = task_of(Net()), normal("x", 4, 3)
    trainable, fixed = model_state(task.model, torch.float64)
    with pytest.raises(RuntimeError, match="inplace"):  # as plain autograd says, instead of a zero gradient
        pull_back_hooks(task, trainable, fixed, x, normal("v", 4, 1, 2))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("batch_first", [True, False])
def test_a_transformer_encoder(batch_first, norm_first):
    """In eval mode torch has a fused path for it that calls no layer at all."""

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=batch_first, norm_first=norm_first)
            self.words = nn.Embedding(7, 4)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x):
            y = self.words(x)
            return self.encoder(y) if batch_first else self.encoder(y.transpose(0, 1)).transpose(0, 1)

    task, x = task_of(Encoder()), words(4, 4)  # as many words as examples
    assert_right(task, x)
    found = hook_coverage(task, Examples(x))
    in_order = ("encoder.layers.0.linear1.weight", "encoder.layers.1.norm2.bias", "encoder.layers.0.linear2.bias")
    assert all((name in found.ruled) == batch_first for name in in_order)
    assert "words.weight" in found.ruled
    assert not any("self_attn" in name for name in found.fallback)


class Reshaped(nn.Module):
    """A linear layer on rows that were examples and positions."""

    def __init__(self, order):
        super().__init__()
        self.first, self.layer, self.order = nn.Linear(3, 3), nn.Linear(3, 2), order

    def forward(self, x):
        b, s, _ = x.shape
        x = torch.tanh(self.first(x))
        if self.order == "examples first":
            return self.layer(x.reshape(b * s, 3)).view(b, s, 2)
        if self.order == "positions first":
            return self.layer(x.transpose(0, 1).reshape(s * b, 3)).view(s, b, 2).transpose(0, 1)
        if self.order == "last example first":
            return self.layer(x.flip(0)).flip(0)
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


WRONG_ORDER = "in its Linear, the rows of an input are not in the order of the examples"
NOT_EXAMPLES = "in its Linear, the first dimension of an input is not the examples"


@pytest.mark.parametrize("b, s", [(4, 5), (4, 4), (3, 6), (2, 4), (1, 6), (6, 3)])
@pytest.mark.parametrize(
    "order, why",
    [
        ("examples first", None),
        ("positions first", WRONG_ORDER),
        ("last example first", WRONG_ORDER),
        ("transposed", NOT_EXAMPLES),
    ],
)
def test_a_first_dimension_that_is_not_the_examples(order, why, b, s):
    task, x = task_of(Reshaped(order)), normal("x", b, s, 3)
    assert_right(task, x)
    expected = {} if why is None else dict.fromkeys(("layer.weight", "layer.bias"), why)
    assert hook_coverage(task, Examples(x)).fallback == expected


def test_positions_that_all_examples_share_fall_back():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(7, 3), nn.Embedding(6, 3)

        def forward(self, x):
            return torch.tanh(self.words(x) + self.places(torch.arange(x.shape[1])))

    task = task_of(Positions())
    assert_right(task, words(6, 6))
    assert list(hook_coverage(task, Examples(words(6, 6))).fallback) == ["places.weight"]


def test_a_batch_that_goes_another_way_than_its_first_examples():
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.often, self.seldom = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            out = self.often(x)
            big = x[:, 0] > 10
            return torch.index_put(out, (big.nonzero()[:, 0],), self.seldom(x[big])) if bool(big.any()) else out

    task, x = task_of(Routed()), normal("x", 7, 3)
    x[5, 0] = 11.0
    trainable, fixed = model_state(task.model, torch.float64)
    v = normal("v", 7, 1, 2)
    expected = pull_back_loop(task, trainable, fixed, x, v)
    assert_close(pull_back_hooks(task, trainable, fixed, x, v), expected, rtol=0, atol=ROUNDING)
    # The same with a plan from examples that all go one way.
    plan = plan_hooks(task, trainable, fixed, x[:3])
    assert plan.fallback == {}
    assert_close(pull_back_hooks(task, trainable, fixed, x, v, plan=plan), expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("n, length", [(1, 4), (5, 4), (5, 7)])
def test_a_plan_serves_other_batches(n, length):
    """Also of another length: then the layers see other numbers of rows, and all parameters take the other path."""
    task = task_of(Reshaped("examples first"))
    trainable, fixed = model_state(task.model, torch.float64)
    plan = plan_hooks(task, trainable, fixed, normal("few", 3, 4, 3))
    x, v = normal("x", n, length, 3), normal("v", n, 2, 2 * length)
    expected = pull_back_loop(task, trainable, fixed, x, v)
    found = pull_back_hooks(task, trainable, fixed, x, v, plan=plan)
    assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))


def test_a_model_that_mixes_its_examples_is_not_supported():
    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x - x.mean(0))

    class MixingLater(Mixing):
        def forward(self, x):
            y = self.layer(x)
            return y * y.mean(0)

    for model in (Mixing(), MixingLater()):
        assert not supports_hooks(task_of(model), Examples(normal("x", 5, 3)))


class HalfRule(LayerRule):
    """A rule that is wrong."""

    def fill(self, module, x, g, n, out):
        for tensor in out.values():
            tensor.copy_(0.5 * g)


def test_a_wrong_rule_is_not_supported(monkeypatch):
    task, examples = task_of(nn.Sequential(nn.LayerNorm(3), nn.GroupNorm(1, 3))), Examples(normal("x", 5, 3))
    assert supports_hooks(task, examples)
    monkeypatch.setitem(LAYER_RULES, nn.GroupNorm, HalfRule())
    assert not supports_hooks(task, examples)


def test_layers_that_no_gradient_reaches():
    class Features(nn.Module):
        def __init__(self):
            super().__init__()
            self.still, self.idle, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            with torch.no_grad():
                x = self.still(x)
            return self.head(x)

    task, x = task_of(Features()), normal("x", 4, 3)
    assert_right(task, x)
    rows = task.layout.unflatten(both(task, x)[0])
    assert not any(rows[f"{name}.{own}"].any() for name in ("still", "idle") for own in ("weight", "bias"))


def test_autocast_keeps_rows_in_the_precision_of_the_parameters():
    """Only the passes are in bfloat16; its rounding is 2^-8."""
    model = task_of(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), OwnNorm(4), nn.Linear(4, 2))).model.float()

    def outputs(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    x, v = normal("x", 5, 3).float(), normal("v", 5, 1, 2).float()
    found, exact = (
        pull_back_hooks(task, *model_state(model, torch.float32), x, v)
        for task in (Task(model, outputs=outputs, loss=mean_square), Task(model, outputs=run, loss=mean_square))
    )
    assert found.dtype == torch.float32
    assert_close(found, exact, rtol=0, atol=0.03 * float(exact.abs().max()))


def test_weight_norm_and_own_hooks():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    model[2].register_forward_hook(lambda module, args, output: 3 * output)
    model[2].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    assert_right(task_of(model), normal("x", 4, 3))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_parameters_that_a_rule_does_not_know_fall_back():
    model = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    task, x = task_of(model), normal("x", 4, 3)
    assert {"0.weight_g", "0.weight_v"} <= set(task.layout.names)
    assert_right(task, x)
    assert set(hook_coverage(task, Examples(x)).fallback) == {"0.weight_g", "0.weight_v", "0.bias"}


def test_a_weight_that_is_replaced_before_a_call_falls_back():
    def double(module, args):
        module._parameters["weight"] = 2 * module._parameters["weight"]

    def set_ones(module, args):
        module._parameters["weight"] = torch.ones(4, 4, dtype=torch.float64)

    first, second = nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False)
    task, x = task_of(nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(4, 2))), normal("x", 4, 3)
    first.register_forward_pre_hook(double)
    second.register_forward_pre_hook(set_ones)
    assert_right(task, x)
    assert set(hook_coverage(task, Examples(x)).fallback) == {"0.weight", "2.weight"}
    assert not supports_hooks(task, Examples(x))


def test_a_forward_of_its_own_has_no_rule():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert_right(task_of(nn.Sequential(Doubled(3, 4), nn.Tanh(), nn.Linear(4, 2))), normal("x", 4, 3))
    patched = nn.Linear(3, 4)
    patched.forward = lambda x: 2 * nn.functional.linear(x, patched.weight, patched.bias)
    assert_right(task_of(nn.Sequential(patched, nn.Tanh())), normal("x", 4, 3))


# --- what it leaves behind --------------------------------------------------------------------------------------------


def hooks_of(model):
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]


def test_nothing_is_left_behind():
    kept = []

    def outputs(model, batch):
        out = model(batch)
        kept.append(weakref.ref(out))
        return out

    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Bare(), nn.Flatten()).double().eval()
    model[2].layer = nn.Linear(3, 4).double()
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), model[2], nn.Flatten())
    base = task_of(model)
    task = Task(base.model, outputs=outputs, loss=mean_square)
    parameters = {name: (id(p), p.clone()) for name, p in task.model.named_parameters()}
    gc.disable()  # nothing may need the collector to be freed
    try:
        found, expected = both(task, normal("x", 4, 2, 3))
        assert len(kept) > 3
        assert all(ref() is None for ref in kept)
    finally:
        gc.enable()
    assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
    assert all(p.grad is None for p in task.model.parameters())
    assert set(hooks_of(task.model)) == {0}
    for name, p in task.model.named_parameters():
        assert id(p) == parameters[name][0]
        assert_close(p, parameters[name][1], rtol=0, atol=0)


def test_hooks_go_also_after_an_error():
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.second(self.first(x))

    task, x = task_of(Fails()), normal("x", 4, 3)
    parameters = dict(task.model.named_parameters())
    trainable, fixed = model_state(task.model, torch.float64)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        pull_back_hooks(task, trainable, fixed, x, normal("v", 4, 1, 2))
    assert set(hooks_of(task.model)) == {0}
    assert all(p is parameters[name] for name, p in task.model.named_parameters())
    assert right_plan(task, x) is None


def test_given_parameters_are_used_not_the_models_own():
    task, x = task_of(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), OwnNorm(4))), normal("x", 4, 3)
    trainable, fixed = model_state(task.model, torch.float64)
    trainable = {name: p + 0.3 for name, p in trainable.items()}
    fixed = {name: p + 1 for name, p in fixed.items()}
    v = normal("v", 4, 1, 4)
    expected = pull_back_loop(task, trainable, fixed, x, v)
    with torch.no_grad():
        found = pull_back_hooks(task, trainable, fixed, x, v)
    assert_close(found, expected, rtol=0, atol=ROUNDING * float(expected.abs().max()))
    assert not any(p.requires_grad for p in trainable.values())


class Places(nn.Module):
    """Words, and an embedding of their places that is looked up once for all examples."""

    def __init__(self, once=True):
        super().__init__()
        self.words, self.places, self.head = nn.Embedding(7, 4), nn.Embedding(5, 4), nn.Linear(4, 2)
        self.once = once

    def forward(self, x):
        places = torch.arange(x.shape[1])
        found = self.places(places[None] if self.once else places.expand(len(x), -1))
        return self.head(torch.tanh(self.words(x) + found)).mean(1)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_layer_that_all_examples_share_has_a_gradient_for_each(n):
    task, x = task_of(Places()), words(n, 5)
    assert_right(task, x)
    assert hook_coverage(task, Examples(x)).fallback == {}
    assert_close(both(task, x)[0], both(task_of(Places(once=False)), x)[0], rtol=0, atol=1e-12)


def test_an_input_that_is_shared_by_chance_of_its_values_is_not_believed():
    """One row in the probes, more later: the layer is not as planned, and takes the other path."""

    class Later(Places):
        def forward(self, x):
            self.once = len(x) <= 3
            return super().forward(x)

    assert_right(task_of(Later()), words(6, 5))
