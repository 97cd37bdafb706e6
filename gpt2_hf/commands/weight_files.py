"""Whether the weight files of a folder are complete, and have the shapes that its config says.

In: a folder and its config. Out: nothing, or a `UserError` that names the file:
transformers tells neither which file is cut nor which number of the config does not fit.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..errors import UserError
from ..model.configuration_gpt2_hf import GPT2HFConfig
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM


def check_weight_files(folder: str | Path, config: GPT2HFConfig, option: str) -> None:
    """Refuse a folder whose weights are missing, cut, or of other sizes than its config; reads headers only.

    Args:
        folder: a local folder with `config.json`.
        config: what was read from it.
        option: the option that the folder was given by, for the message.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    expected = _shapes(config)
    for path in _weight_files(Path(folder), option):
        for name, shape in _read_shapes(path, option):
            # A base model is saved without the prefix; what the model does not know, it leaves out.
            wanted = expected.get(name, expected.get(f"{GPT2HFForCausalLM.base_model_prefix}.{name}"))
            if wanted is not None and shape != wanted:
                raise UserError(
                    f"{option}: {path} does not fit the config.json beside it: {name} has the shape {shape}, but the "
                    f"config asks for {wanted} ({_field_of(name)} {getattr(config, _field_of(name))}); put back the "
                    "config.json that was saved with these weights"
                )


def _shapes(config: GPT2HFConfig) -> dict[str, list[int]]:
    """Of each weight of a model with this config; nothing is allocated."""
    with torch.device("meta"):
        model = GPT2HFForCausalLM(copy.deepcopy(config))
    return {name: list(weight.shape) for name, weight in model.state_dict().items()}


def _weight_files(folder: Path, option: str) -> list[Path]:
    """The safetensors files that hold the weights, all there."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).is_file() or not index.is_file():
        paths = [folder / SAFE_WEIGHTS_NAME]
    else:
        try:
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            paths = [folder / name for name in sorted(set(shards.values()))]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{option}: {index} is damaged ({error!r}); copy the folder again") from error
    for path in paths:
        if not path.is_file():
            raise UserError(f"{option}: the weights {path} are missing; no other format is read")
    return paths


def _read_shapes(path: Path, option: str) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of each tensor in a file."""
    try:
        path.open("rb").close()  # safetensors calls a file that may not be read missing
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 -- no mapping
                yield name, list(tensors.get_slice(name).get_shape())
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(
            f"{option}: the weights {path} are damaged, probably cut short ({path.stat().st_size:,} bytes, {error}); "
            "copy the file again, or take another checkpoint"
        ) from error


def _field_of(name: str) -> str:
    """The field of the config that decides the first dimension of an embedding, else the width."""
    if name.endswith("wpe.weight"):
        return "n_positions"
    return "vocab_size" if name.endswith(("wte.weight", "lm_head.weight")) else "n_embd"
