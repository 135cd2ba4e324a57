"""Checkpoints: what is read, and what is refused without running it or harming the model."""

import os

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn
from torch.testing import assert_close

from whence.errors import DataError, InputError
from whence.task import fingerprint, load_checkpoint
from whence.task.checkpoint import fit_state
from whence.testing.problems import BatchNormNet, TiedNet, mlp

SOURCE = mlp(3, 5, 2, seed=7)


def write(path, state):
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["a.pt", "a.pth", "a.bin", "a.safetensors"])
def test_a_state_dict_comes_back_in_eval_mode(tmp_path, name):
    path = write(tmp_path / name, SOURCE.state_dict())
    model = load_checkpoint(mlp(3, 5, 2).train(), path)
    assert_close(model.state_dict(), SOURCE.state_dict(), rtol=0, atol=0)
    assert not any(m.training for m in model.modules())


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_inside_a_training_checkpoint(tmp_path, key):
    path = write(tmp_path / "a.pt", {key: SOURCE.state_dict(), "epoch": 3})
    assert fingerprint(load_checkpoint(mlp(3, 5, 2), path)) == fingerprint(SOURCE)


def test_buffers_are_loaded_too(tmp_path):
    source = BatchNormNet(3, 2)
    source.norm.running_mean += 1
    path = write(tmp_path / "a.safetensors", source.state_dict())
    assert_close(load_checkpoint(BatchNormNet(3, 2), path).norm.running_mean, source.norm.running_mean)


def test_tied_weights_stored_once_or_twice(tmp_path):
    source = TiedNet(3)
    save_model(source, str(tmp_path / "once.safetensors"))  # keeps one of the two names
    whole = source.state_dict()
    write(tmp_path / "twice.pt", whole)
    for kept in ("encoder", "decoder"):
        write(tmp_path / f"{kept}.pt", {n: x for n, x in whole.items() if n in (f"{kept}.weight", *_biases(whole))})
    for path in tmp_path.iterdir():
        model = load_checkpoint(TiedNet(3), path)
        assert_close(model.state_dict(), whole, rtol=0, atol=0)
        assert model.encoder.weight is model.decoder.weight
    write(tmp_path / "none.pt", {n: x for n, x in whole.items() if n in _biases(whole)})
    with pytest.raises(DataError, match="missing"):
        load_checkpoint(TiedNet(3), tmp_path / "none.pt")


def _biases(state):
    return [name for name in state if name.endswith("bias")]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: {k.replace("2.", "3."): x for k, x in s.items()},
            r"buffers missing: 2\.bias, 2\.weight; not in the model: 3\.bias, 3\.weight\. Pass",
        ),
        (lambda s: {k: x for k, x in s.items() if k != "0.bias"}, r"buffers missing: 0\.bias\. Pass"),
        (lambda s: {**s, "extra": torch.ones(1)}, r"buffers not in the model: extra\. Pass"),
        (lambda s: {**s, "2.bias": torch.ones(3)}, r"of another shape: 2\.bias is \(3,\) for \(2,\)"),
        (lambda s: {**s, "2.bias": torch.ones(2) * 1j}, r"of another kind: 2\.bias is complex64 for float64"),
    ],
)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_checkpoint_that_does_not_fit_leaves_the_model_alone(tmp_path, name, change, message):
    path = write(tmp_path / name, change(dict(SOURCE.state_dict())))
    model = mlp(3, 5, 2)
    before = fingerprint(model)
    with pytest.raises(DataError, match=message) as caught:
        load_checkpoint(model, path)
    assert str(path) in str(caught.value)
    assert fingerprint(model) == before


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_truncated_files_are_named(tmp_path, name, share):
    path = write(tmp_path / name, SOURCE.state_dict())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=name):
        load_checkpoint(mlp(3, 5, 2), path)


class Touch:
    """Unpickling it runs code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    torch.save({**SOURCE.state_dict(), "more": Touch(trap)}, tmp_path / "a.pt")
    with pytest.raises(DataError, match="cannot be read with weights_only=True"):
        load_checkpoint(mlp(3, 5, 2), tmp_path / "a.pt")
    assert not trap.exists()


def test_a_whole_pickled_model_is_refused(tmp_path):
    torch.save(SOURCE, tmp_path / "a.pt")
    with pytest.raises(DataError, match="cannot be read with weights_only=True"):
        load_checkpoint(mlp(3, 5, 2), tmp_path / "a.pt")


@pytest.mark.parametrize("content", [[torch.ones(2)], torch.ones(2), {0: torch.ones(2)}])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(DataError, match="not a state dict"):
        load_checkpoint(mlp(3, 5, 2), tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"No checkpoint at .*absent\.pt"):
        load_checkpoint(nn.Linear(1, 1), tmp_path / "absent.pt")


# --- a state dict into a model ----------------------------------------------------------------------------------------


class Counter(nn.Module):
    """An integer and a boolean buffer beside a parameter."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("mask", torch.tensor([True, False]))


class Wrapped(nn.Module):
    """A model whose own names begin like those of a wrapper."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 1)


PREFIXES = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_the_names_of_a_wrapped_model_are_read_without_the_wrapper(tmp_path, name, prefix):
    state = {prefix + key: x for key, x in SOURCE.state_dict().items()}
    assert fingerprint(load_checkpoint(mlp(3, 5, 2), write(tmp_path / name, state))) == fingerprint(SOURCE)
    model = mlp(3, 5, 2)
    assert fit_state(model, state, "It") == {"stripped": prefix}
    assert fingerprint(model) == fingerprint(SOURCE)


def test_wrappers_of_torch_give_such_names():
    model = mlp(3, 5, 2)
    for wrapper in (nn.DataParallel(SOURCE), torch.compile(SOURCE)):
        assert "stripped" in fit_state(model, wrapper.state_dict(), "It")
        assert fingerprint(model) == fingerprint(SOURCE)


def test_a_prefix_stays_where_it_is_the_models_own():
    source, model = Wrapped(), Wrapped()
    assert fit_state(model, source.state_dict(), "It") == {}
    assert fingerprint(model) == fingerprint(source)
    compiled = {f"_orig_mod.{name}": x + 1 for name, x in source.state_dict().items()}
    assert fit_state(model, compiled, "It") == {"stripped": "_orig_mod."}
    assert_close(model.module.weight, source.module.weight + 1, rtol=0, atol=0)


def test_a_prefix_before_some_names_only_or_before_names_that_do_not_fit_is_told():
    model, whole = mlp(3, 5, 2), SOURCE.state_dict()
    before = fingerprint(model)
    mixed = {("module." if name.startswith("0") else "") + name: x for name, x in whole.items()}
    with pytest.raises(InputError, match=r"^It does not fit the model\. .*missing: 0\.bias.*model: module\.0\.bias"):
        fit_state(model, mixed, "It")
    lacking = {f"module.{name}": x for name, x in whole.items() if name != "0.bias"}
    with pytest.raises(InputError, match=r"names read without 'module\.'\)\. .*buffers missing: 0\.bias\. Pass"):
        fit_state(model, lacking, "It")
    assert fingerprint(model) == before


def test_tied_names_of_a_wrapped_model_stored_once():
    source, model = TiedNet(3), TiedNet(3)
    with torch.no_grad():
        source.encoder.weight += 1
    state = {f"module.{name}": x for name, x in source.state_dict().items() if name != "decoder.weight"}
    assert fit_state(model, state, "It") == {"stripped": "module."}
    assert fingerprint(model) == fingerprint(source)


def test_tied_names_with_different_numbers_are_refused():
    model = TiedNet(3)
    before = fingerprint(model)
    state = dict(model.state_dict())
    state["decoder.weight"] = state["decoder.weight"] + 1
    with pytest.raises(InputError, match=r"tied in the model but not equal: encoder\.weight and decoder\.weight"):
        fit_state(model, state, "It")
    assert fingerprint(model) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_half_precision_is_cast_and_said(tmp_path, name, dtype):
    half = {key: x.to(dtype) for key, x in SOURCE.state_dict().items()}
    model = load_checkpoint(mlp(3, 5, 2), write(tmp_path / name, half))
    assert_close(model.state_dict(), {key: x.double() for key, x in half.items()}, rtol=0, atol=0)
    assert fit_state(mlp(3, 5, 2), half, "It") == {"cast": [f"{str(dtype).removeprefix('torch.')} to float64"]}


def test_integer_buffers_keep_their_kind():
    model = Counter()
    good = {"scale": torch.zeros(2), "steps": torch.tensor(7, dtype=torch.int32), "mask": torch.tensor([False, True])}
    assert fit_state(model, good, "It") == {"cast": ["int32 to int64"]}
    assert (int(model.steps), model.steps.dtype, model.mask.tolist()) == (7, torch.int64, [False, True])
    for name, wrong in (("steps", torch.tensor(2.5)), ("mask", torch.tensor([1, 2]))):
        with pytest.raises(InputError, match=rf"of another kind: {name} is "):
            fit_state(model, {**good, name: wrong}, "It")
        assert (int(model.steps), model.mask.tolist()) == (7, [False, True])


def test_batch_norm_of_old_files_counts_no_batches():
    source, model = BatchNormNet(3, 2), BatchNormNet(3, 2)
    state = {name: x for name, x in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    fit_state(model, dict(state), "It")
    assert_close(model.first.weight, source.first.weight, rtol=0, atol=0)


@pytest.mark.parametrize("state", [[torch.ones(1)], {0: torch.ones(1)}, None])
def test_what_is_no_mapping_of_names_is_refused(state):
    with pytest.raises(InputError, match=r"^`start` holds a \w+, not a state dict"):
        fit_state(mlp(3, 5, 2), state, "`start`")


def test_a_value_that_is_no_tensor_is_told_by_name():
    with pytest.raises(InputError, match=r"0\.bias is a list for \(5,\)"):
        fit_state(mlp(3, 5, 2), {**SOURCE.state_dict(), "0.bias": [0.0] * 5}, "It")


def test_only_five_names_of_a_kind_are_shown():
    extra = {f"x{k}": torch.ones(1) for k in range(7)}
    with pytest.raises(InputError, match=r"not in the model: x0, x1, x2, x3, x4 and 2 more\."):
        fit_state(mlp(3, 5, 2), {**SOURCE.state_dict(), **extra}, "It")


def test_an_error_of_the_model_itself_leaves_it_alone():
    class Picky(nn.Linear):
        def _load_from_state_dict(self, *arguments):
            super()._load_from_state_dict(*arguments)
            arguments[-1].append("this file is of another version")

    model = Picky(2, 1)
    before = fingerprint(model)
    with pytest.raises(InputError, match=r"(?s)refused: .*of another version"):
        fit_state(model, nn.Linear(2, 1).state_dict(), "It")
    assert fingerprint(model) == before
