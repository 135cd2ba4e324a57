"""Checkpoints: what is read, and what is refused without running it or harming the model."""

import os

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn
from torch.testing import assert_close

from whence.errors import DataError
from whence.task import fingerprint, load_checkpoint
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
            r"missing \['2.bias', '2.weight'\], not in the model \['3\.",
        ),
        (lambda s: {k: x for k, x in s.items() if k != "0.bias"}, r"missing \['0.bias'\]"),
        (lambda s: {**s, "extra": torch.ones(1)}, r"not in the model \['extra'\]"),
        (lambda s: {**s, "2.bias": torch.ones(3)}, r"size mismatch for 2.bias"),
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
