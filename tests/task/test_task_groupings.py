import pytest
import torch
from benchmarks.networks import Encoder
from torch import nn

from whence.errors import InputError
from whence.task import Along, Channels, Grouping, GroupWeights, Heads, ParameterGroups, ParameterLayout
from whence.task.groupings import by_depth_and_function

HEADS, DIM, TOKENS = 4, 12, 5


def entries(model, groups, group):
    """Named boolean masks of the entries of one group."""
    layout = ParameterLayout.of(model)
    return layout.unflatten(groups.of_parameter(layout) == groups.names.index(group))


class Fused(nn.Module):
    """Queries, keys and values in one projection, or in three."""

    def __init__(self, fused):
        super().__init__()
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(DIM, 3 * DIM)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(DIM, DIM) for _ in range(3))
        self.out_proj = nn.Linear(DIM, DIM)

    def forward(self, x):
        parts = self.qkv(x).chunk(3, -1) if self.fused else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(-2, -3) for part in parts)
        return self.out_proj(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(-2, -3).flatten(-2))


class Torch(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        nn.init.normal_(self.attention.in_proj_bias)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def hugging_face(kind, heads=HEADS, key_heads=None):
    transformers = pytest.importorskip("transformers")
    if kind == "gpt2":
        from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

        config = transformers.GPT2Config(n_embd=DIM, n_head=heads, attn_pdrop=0.0, resid_pdrop=0.0)
        config._attn_implementation = "eager"
        return Wrapped(GPT2Attention(config, layer_idx=0), config, lambda m, x: m(x)[0])
    from transformers.models.bert.modeling_bert import BertAttention

    config = transformers.BertConfig(hidden_size=DIM, num_attention_heads=heads)
    config._attn_implementation = "eager"
    # The projection out of the heads alone: what follows it adds the input and normalises.
    return Wrapped(BertAttention(config), config, lambda m, x: m.output.dense(m.self(x)[0]))


class Wrapped(nn.Module):
    """An attention where a model has it."""

    def __init__(self, attention, config, call):
        super().__init__()
        self.attn = attention if type(attention).__name__ == "GPT2Attention" else None
        self.attention = None if self.attn is not None else attention
        self.config, self.call = config, call

    def forward(self, x):
        return self.call(self.attn or self.attention, x)


MODELS = {
    "fused": lambda: Fused(True),
    "apart": lambda: Fused(False),
    "torch": Torch,
    "gpt2": lambda: hugging_face("gpt2"),
    "bert": lambda: hugging_face("bert"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_head_is_silenced_by_its_values_and_by_its_outputs_alike(name):
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
    heads = Heads(HEADS) if name in ("fused", "apart") else Heads.of(model)
    groups = ParameterGroups.of(ParameterLayout.of(model), heads)
    own = [group for group in groups.names if " head " in group]
    assert len(own) == HEADS
    start = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        before = model(x)
        for group in own:
            found = []
            for side in (True, False):
                model.load_state_dict(start)
                for key, parameter in model.named_parameters():
                    is_out = any(word in key for word in ("out_proj", "c_proj", "output.dense"))
                    if is_out == side:
                        parameter[entries(model, groups, group)[key]] = 0
                found.append(model(x))
            torch.testing.assert_close(*found)
            assert not torch.allclose(found[0], before)


def test_sizes_and_weights_of_heads():
    model = Encoder(vocabulary=7, dim=16, heads=4)
    layout = ParameterLayout.of(model)
    groups = ParameterGroups.of(layout, Heads(4, out=r"blocks\.\d+\.out$"))
    assert sum(groups.sizes) == layout.n_params
    assert groups.of_parameter(layout).bincount().tolist() == list(groups.sizes)
    assert dict(zip(groups.names, groups.sizes, strict=True))["blocks.2 head 3"] == 3 * 4 * 16 + 3 * 4 + 4 * 16
    assert ParameterGroups.from_dict(groups.to_dict()) == groups
    weights = GroupWeights.only(groups, "blocks.0 head 1")
    assert int((weights.of_parameter(layout) > 0).sum()) == 3 * 4 * 16 + 3 * 4 + 4 * 16


def test_weights_of_heads_are_read_back(tmp_path):
    groups = ParameterGroups.of(ParameterLayout.of(Fused(True)), Heads(HEADS))
    path = GroupWeights(torch.arange(len(groups)).double(), groups).save(tmp_path / "w.json")
    found = GroupWeights.load(path)
    assert found.groups == groups


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="36 entries, which 5 heads do not divide"):
        ParameterGroups.of(ParameterLayout.of(Fused(True)), Heads(5))
    with pytest.raises(InputError, match="found none"):
        Heads.of(nn.Linear(2, 2))
    two = nn.ModuleList([nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 4)])
    with pytest.raises(InputError, match=r"found \[2, 4\]"):
        Heads.of(two)


def test_shared_key_heads_are_read_from_the_configuration():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=11, hidden_size=16, num_attention_heads=4, num_key_value_heads=2, intermediate_size=8,
        num_hidden_layers=1,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    groups = ParameterGroups.of(ParameterLayout.of(model), Heads.of(model))
    sizes = dict(zip(groups.names, groups.sizes, strict=True))
    # Two query heads, one head of keys and one of values, and the inputs of the projection out of them; 16 x 4 each.
    assert sizes["model.layers.0.self_attn head 1"] == (2 + 1 + 1 + 2) * 4 * 16


def test_channels_hold_weight_and_bias_together():
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.Linear(4, 2))
    layout = ParameterLayout.of(model)
    groups = ParameterGroups.of(layout, Channels(4))
    assert groups.names == ("0[0:4]", "0[4:8]", "0[8:10]", "1")
    assert groups.sizes == (4 * 28, 4 * 28, 2 * 28, 10)
    marked = layout.unflatten(groups.of_parameter(layout))
    assert marked["0.bias"].tolist() == [0] * 4 + [1] * 4 + [2] * 2
    assert marked["0.weight"].flatten(1).eq(marked["0.bias"][:, None]).all()
    with pytest.raises(InputError):
        Channels(0)


def test_a_split_must_fit_its_tensor():
    class Odd(Grouping):
        def __init__(self, axis, n):
            self.found = Along(axis, tuple("ab"[k % 2] for k in range(n)))

        def parts(self, name, shape):
            return self.found

    layout = ParameterLayout.of(nn.Linear(3, 2, bias=False))
    assert ParameterGroups.of(layout, Odd(1, 3)).sizes == (4, 2)
    with pytest.raises(InputError, match="3 entries along axis 1, and a grouping gives 2 labels"):
        ParameterGroups.of(layout, Odd(1, 2))
    with pytest.raises(InputError, match="has 2 axes, and a grouping splits it along axis 2"):
        ParameterGroups.of(layout, Odd(2, 3))
    with pytest.raises(InputError, match="Group the parameters of this model"):
        ParameterGroups.of(layout, Odd(1, 3)).of_parameter(ParameterLayout.of(nn.Linear(4, 2, bias=False)))


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0.weight", "down_blocks.0: attn1.to_out"),
        ("mid_block.resnets.0.conv1.bias", "mid_block.resnets.0: conv1"),
        ("transformer.h.3.attn.c_attn.weight", "transformer.h.3: attn.c_attn"),
        ("conv_in.weight", "conv_in"),
        ("scale", "scale"),
    ],
)
def test_depth_and_function(name, group):
    assert by_depth_and_function(name) == group
