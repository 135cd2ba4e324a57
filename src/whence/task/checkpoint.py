"""Reading trained parameters from files, without running code that the files contain, and fitting them into a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from whence.errors import DataError, InputError

WRAPPERS = ("module.", "_orig_mod.")  # before every name: `nn.DataParallel`, `torch.compile`
SHOWN = 5  # names of a kind in an error


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a state dict (`.safetensors`, or `.pt` / `.pth` / `.bin` read with `weights_only`) and set eval mode.

    What fits is that of `fit_state`: the state dict itself or a dict with it under `state_dict` or `model`, of any
    floating dtype, of the bare or of the wrapped model.

    Raises:
        DataError: The file is missing, cannot be read safely, or does not fit the model, which then stays as it was.
    """
    fit_state(model, read_checkpoint(path), str(path), error=DataError)
    return model.eval()


def read_checkpoint(path: str | Path) -> object:
    """What a file of parameters holds, on the CPU.

    Raises:
        DataError: The file is missing or cannot be read safely.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"No checkpoint at {path}.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:
            raise DataError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{path} cannot be read with weights_only=True: {error}") from error


def fit_state(model: nn.Module, state: object, origin: str, *, error: type[InputError] = InputError) -> dict[str, Any]:
    """Give a model the parameters and buffers of a state dict, all of them or none.

    Names must be those of the model, or those with one prefix before all of them (`WRAPPERS`). Of a tied parameter
    one name is enough. Values are cast to the dtype the model has: from half precision without loss; a cast that
    would change what a number is, such as a fraction in an integer buffer, is refused.

    Args:
        model: Changed in place; where the state does not fit, it stays as it was.
        state: Name -> tensor, or a dict that has it under `state_dict` or `model`.
        origin: Where the state came from, as the subject of the error's sentence.
        error: What is raised.
    Returns:
        JSON facts, only of what was changed on the way: "stripped", the prefix; "cast", dtypes as "float16 to float32".
    Raises:
        InputError: Or the given kind; the state does not fit. All missing, unexpected and misshaped names are told, up
            to five of each.
    Cost:
        One copy of the model's state.
    """
    named = _unwrapped(state)
    if named is None:
        raise error(f"{origin} holds a {type(state).__name__}, not a state dict: names and tensors.")
    before = {name: x.clone() if isinstance(x, Tensor) else x for name, x in model.state_dict().items()}
    tried: list[tuple[str, dict[str, list[str]]]] = []
    for prefix, candidate in _readings(named):
        cast = _casts(model, candidate)
        problems = _load(model, candidate)
        if not any(problems.values()):
            return ({"stripped": prefix} if prefix else {}) | ({"cast": cast} if cast else {})
        _restore(model, before)  # what did fit is loaded by now
        tried.append((prefix, problems))
    prefix, problems = min(tried, key=lambda one: sum(map(len, one[1].values())))
    told = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
    read = f" (its names read without {prefix!r})" if prefix else ""
    raise error(
        f"{origin} does not fit the model{read}. Parameters and buffers {told}. Pass a state dict of this architecture."
    )


def _unwrapped(state: object) -> dict[str, Any] | None:
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        return None
    return dict(state)


def _readings(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The state as it is, then without the wrappers' prefixes as long as all names share one."""
    stripped = ""
    yield stripped, state
    while prefix := next((w for w in WRAPPERS if state and all(name.startswith(w) for name in state)), None):
        stripped, state = stripped + prefix, {name.removeprefix(prefix): x for name, x in state.items()}
        yield stripped, state


def _restore(model: nn.Module, before: Mapping[str, Any]) -> None:
    """Not by `load_state_dict` alone: a model that refused one state may refuse any."""
    for name, x in model.state_dict().items():
        if isinstance(x, Tensor):
            x.copy_(before[name])
    extra = {name: x for name, x in before.items() if not isinstance(x, Tensor)}
    if extra:  # of `set_extra_state`
        model.load_state_dict(extra, strict=False)


def _load(model: nn.Module, state: Mapping[str, Any]) -> dict[str, list[str]]:
    """Load what fits; what does not, by kind of problem."""
    own = {name: x for name, x in model.state_dict().items() if isinstance(x, Tensor)}
    shared = {name: x for name, x in state.items() if name in own}
    misshaped = {
        name: f"{name} is {_shape(x)} for {_shape(own[name])}"
        for name, x in shared.items()
        if not isinstance(x, Tensor) or x.shape != own[name].shape
    }
    unlike = {
        name: f"{name} is {_dtype(x)} for {_dtype(own[name])}"
        for name, x in shared.items()
        if name not in misshaped and not torch.can_cast(x.dtype, own[name].dtype)
    }
    good = {name: x for name, x in state.items() if name not in misshaped and name not in unlike}
    untied = _untied(model, good)  # before loading: the state may be views of the model's own tensors
    refused: list[str] = []
    missing, unexpected = set(own) - set(state), set(state) - set(own)
    try:
        keys = model.load_state_dict(good, strict=False)  # may fill in names, as batch norm does for old files
        missing, unexpected = set(keys.missing_keys) - set(state), set(keys.unexpected_keys)
    except RuntimeError as caught:
        refused.append(str(caught))
    return {
        "missing": sorted(missing - _given_by_another_name(model, state)),
        "not in the model": sorted(unexpected),
        "of another shape": list(misshaped.values()),
        "of another kind": list(unlike.values()),
        "tied in the model but not equal": untied,
        "refused": refused,
    }


def _tied(model: nn.Module) -> list[list[str]]:
    """Names of each parameter that has several."""
    by_tensor: dict[int, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        by_tensor.setdefault(id(p), []).append(name)
    return [names for names in by_tensor.values() if len(names) > 1]


def _given_by_another_name(model: nn.Module, state: Mapping[str, Any]) -> set[str]:
    """Names of tied parameters of which the state holds another name, as files that store each tensor once do."""
    return {name for names in _tied(model) if any(other in state for other in names) for name in names}


def _untied(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Names of one parameter under which the state holds different numbers: loading would keep one of them."""
    given = [[name for name in names if name in state] for names in _tied(model)]
    return [
        f"{names[0]} and {other}" for names in given for other in names[1:] if not _equal(state[names[0]], state[other])
    ]


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))  # NaN is told elsewhere, under its own name


def _casts(model: nn.Module, state: Mapping[str, Any]) -> list[str]:
    own = model.state_dict()
    pairs = {
        f"{_dtype(x)} to {_dtype(own[name])}"
        for name, x in state.items()
        if isinstance(x, Tensor) and isinstance(own.get(name), Tensor) and x.dtype != own[name].dtype
    }
    return sorted(pairs)


def _shape(x: object) -> str:
    return str(tuple(x.shape)) if isinstance(x, Tensor) else f"a {type(x).__name__}"


def _dtype(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
