"""Nested training state in a safetensors file: tensors as tensors, the rest as JSON in the file's header.

`torch.save` writes a pickle, and a pickle can run code when it is read. What is written here can only ever be
numbers, strings and tensors.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

_METADATA_KEY = "state"


def save_state(state: Any, path: str | Path) -> None:
    """Write nested dicts, lists and tuples of tensors, numpy arrays, numbers, strings and None.

    Raises:
        TypeError: for anything else.
    """
    tensors: dict[str, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> str:
        name = str(len(tensors))
        # Copied, once, because safetensors refuses tensors that share memory.
        tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return name

    structure = _encode(state, keep)
    save_file(tensors, str(path), metadata={_METADATA_KEY: json.dumps(structure)})


def check_storable(state: Any) -> None:
    """Refuse what `save_state` would refuse, without a copy of any tensor; shards count as what they become.

    Raises:
        TypeError: with the name of the type that cannot be stored.
    """
    _encode(state, lambda tensor: "")


def load_state(path: str | Path) -> Any:
    """Read what `save_state` wrote; tensors come on the CPU."""
    with safe_open(str(path), framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        if _METADATA_KEY not in metadata:
            raise ValueError(f"{path} was not written by gpt2_hf")
        # Copied, because Windows deletes no file that is still mapped, and POSIX does not give back its room.
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a dict
    return _decode(json.loads(metadata[_METADATA_KEY]), tensors)


def _encode(value: Any, keep: Callable[[torch.Tensor], str]) -> Any:
    """The structure as JSON; `keep` takes each tensor and names it."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    # A subclass with tensors inside, such as a quantised state, has no memory of its own that could be written.
    if type(value) in (torch.Tensor, torch.nn.Parameter, DTensor):
        return {"tensor": keep(value)}
    if isinstance(value, np.ndarray):
        return {"array": keep(torch.from_numpy(value.copy()))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, keep) for item in value]}
    if isinstance(value, list):
        return {"list": [_encode(item, keep) for item in value]}
    if isinstance(value, dict):
        # As pairs, because optimizer state has integer keys and JSON has none.
        return {"dict": [[_encode(key, keep), _encode(item, keep)] for key, item in value.items()]}
    raise TypeError(f"cannot store a {type(value).__name__} in a checkpoint")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "array":
        return tensors[content].numpy()
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    if kind == "list":
        return [_decode(item, tensors) for item in content]
    return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
