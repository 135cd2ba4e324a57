"""Reading trained parameters from files, without running code that the files contain."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from whence.errors import DataError


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a state dict (`.safetensors`, or `.pt` / `.pth` / `.bin` read with `weights_only`) and set eval mode.

    A `.pt` file may hold the state dict itself or a dict with it under `state_dict` or `model`.

    Raises:
        DataError: The file is missing, cannot be read safely, or its names or shapes do not fit the model, which then
            stays as it was.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"No checkpoint at {path}.")
    state = _read(path)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
        missing = sorted(set(missing) - _given_by_another_name(model, state))
        problem = f"missing {missing[:5]}, not in the model {unexpected[:5]}." if missing or unexpected else None
    except RuntimeError as error:
        problem = str(error)
    if problem is not None:
        model.load_state_dict(before)  # what did fit is loaded by now
        raise DataError(f"{path} does not fit the model: {problem}")
    return model.eval()


def _given_by_another_name(model: nn.Module, state: Mapping[str, Tensor]) -> set[str]:
    """Names of tied parameters of which the file holds another name, as files that store each tensor once do."""
    names = [(name, id(p)) for name, p in model.named_parameters(remove_duplicate=False)]
    given = {key for name, key in names if name in state}
    return {name for name, key in names if key in given}


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except Exception as error:
            raise DataError(f"{path} is not a readable safetensors file: {error}") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{path} cannot be read with weights_only=True: {error}") from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise DataError(f"{path} holds a {type(loaded).__name__}, not a state dict.")
    return loaded
