"""Reading trained parameters from files, without running code that the files contain."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from whence.errors import DataError


def load_checkpoint(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a state dict (`.safetensors`, or `.pt` / `.pth` / `.bin` read with `weights_only`) and set eval mode.

    A `.pt` file may hold the state dict itself or a dict with it under `state_dict` or `model`.

    Raises:
        DataError: The file is missing, cannot be read safely, or its names do not fit the model.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"No checkpoint at {path}.")
    state = _read(path)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DataError(f"{path} does not fit the model: {error}") from error
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - dict(model.named_parameters()).keys()
    missing = [name for name in missing if name not in tied]
    if missing or unexpected:
        raise DataError(
            f"{path} does not fit the model: missing {missing[:5]}, not in the model {list(unexpected)[:5]}."
        )
    return model.eval()


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
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds a {type(loaded).__name__}, not a state dict.")
    return loaded
