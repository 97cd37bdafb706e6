"""Weights and optimizer of a model that FSDP2 has sharded, made whole to be saved and divided again to be loaded.

A checkpoint is the same whether one process wrote it, several copies of the model, or several shards: any number of
processes can resume from it. In: an engine that accelerate has prepared. Out: plain tensors, and back.
"""

from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from ..errors import UserError


def check_engine(accelerator: Accelerator, wanted: bool) -> None:
    """Refuse the ways of sharding that are unsafe or inexact, and settle the dtypes of the others.

    Args:
        accelerator: as the Trainer has built it from its arguments or accelerate's config file.
        wanted: whether FSDP was asked for.

    Raises:
        UserError: with the setting to change.
    """
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        if wanted:
            raise UserError("FSDP needs accelerators: on CPUs processes train copies of the model; leave it out")
        return
    if plugin.fsdp_version != 2:
        raise UserError("FSDP version 1 is not supported; set fsdp_version: 2 (examples/accelerate/fsdp2.yaml)")
    # accelerate puts the head, which the chunked loss reads and does not call, into one group with the embeddings. An
    # older torch takes the group for gathered after an evaluation, and the next step fails.
    if torch.__version__ < "2.13.dev0":
        raise UserError(
            f"FSDP needs torch 2.13 or newer here, this is {torch.__version__}; update it, or leave it out"
        )
    if "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise UserError(
            "sharded checkpoints are archives with pickles, which this package never reads; set fsdp_state_dict_type: "
            "FULL_STATE_DICT, which any number of processes can go on from"
        )
    if plugin.activation_checkpointing:
        raise UserError(
            "FSDP's activation checkpointing draws other dropout in the backward pass than in the forward pass; set "
            "fsdp_activation_checkpointing: false and use --activation_checkpointing"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise UserError("FSDP with CPU offload is not supported; set fsdp_offload_params: false")
    if accelerator.mixed_precision == "fp16":
        raise UserError("FSDP with fp16 is not supported; use --precision bf16 or fp32")
    if accelerator.mixed_precision == "bf16":
        # accelerate would also sum gradients and return the loss in bf16, which has three digits.
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=None
        )


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a sharded model, on the CPU of the first process, tied ones once; every process must ask."""
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: tensor for name, tensor in weights.items() if name not in _tied_names(model)}


def reshard(model: nn.Module) -> None:
    """Leave each process its shards alone: after a forward pass without a backward pass some weights are whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def plain_twin(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the class that FSDP2 has exchanged for its own, without weights: what names the files to be saved."""
    plain = next(cls for cls in type(model).__mro__ if not issubclass(cls, FSDPModule))
    with torch.device("meta"):
        twin = plain(model.config)
    twin.generation_config = model.generation_config
    return twin


def load_whole_weights(model: nn.Module, path: str) -> None:
    """Give a model, sharded or not, the weights of a safetensors file; every process reads it."""
    options = StateDictOptions(full_state_dict=True, strict=False)
    keys = set_model_state_dict(model, load_file(path), options=options)
    missing = set(keys.missing_keys) - _tied_names(model)
    if missing or keys.unexpected_keys:
        raise ValueError(f"{path} is of another model: {sorted([*missing, *keys.unexpected_keys])}")


def _tied_names(model: nn.Module) -> set[str]:
    return set(getattr(model, "all_tied_weights_keys", {}))


def whole(state: Any, keep: bool) -> Any:
    """Nested optimizer state with every sharded tensor made whole, one after the other.

    Args:
        state: dicts and lists of tensors; every process must ask.
        keep: whether this process wants the result. The others get nested `None`.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, dict):
        return {key: whole(value, keep) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value, keep) for value in state]
    return state


def divided(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state dict of an optimizer, as `whole` made it, with each tensor laid out as its parameter is."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        **state,
        "state": {
            i: {name: divided_as(parameters[i], value) for name, value in entry.items()}
            for i, entry in state["state"].items()
        },
    }


def divided_as(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A tensor laid out as a parameter of its shape is; one of another shape as it came."""
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    # Every process has read the whole tensor and cuts its part out of it: nothing needs to be sent.
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)
