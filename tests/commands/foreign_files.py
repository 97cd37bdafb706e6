"""Files in the layout of nanoGPT and llm.c, written from a stock GPT-2 in the way that those programs write them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_LLM_C_ORDER = (
    *("ln_1.weight", "ln_1.bias", "attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias"),
    *("ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"),
)


def linear_weights(stock: GPT2LMHeadModel) -> dict[str, Tensor]:
    """The weights under nanoGPT's names, those of linear layers `[out, in]`."""
    return {
        name: weight.t().contiguous() if name.endswith(_TRANSPOSED) else weight
        for name, weight in stock.state_dict().items()
    }


def nanogpt_checkpoint(stock: GPT2LMHeadModel, prefix: str = "", bias: bool = True, **model_args: Any) -> dict:
    """What nanoGPT's `train.py` saves."""
    weights = linear_weights(stock)
    if not bias:
        weights = {name: weight for name, weight in weights.items() if not name.endswith(".bias")}
    config = stock.config
    sizes = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    sizes |= {"block_size": config.n_positions, "vocab_size": config.vocab_size, "bias": bias, "dropout": 0.2}
    return {
        "model": {prefix + name: weight for name, weight in weights.items()},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "model_args": {**sizes, **model_args},
        "iter_num": 3,
        "best_val_loss": torch.tensor(4.2),
        "config": {"out_dir": "out", "compile": bool(prefix)},
    }


def write_llm_c(path: Path, stock: GPT2LMHeadModel, version: int = 3, multiple: int = 128, **header: int) -> None:
    """What llm.c's `write_model` writes, the vocabulary padded with zeros to a multiple."""
    weights = linear_weights(stock)
    config, table = stock.config, weights["transformer.wte.weight"]
    num_rows = -(-config.vocab_size // multiple) * multiple
    weights["transformer.wte.weight"] = torch.cat([table, table.new_zeros(num_rows - len(table), config.n_embd)])
    sizes = [config.n_positions, config.vocab_size, config.n_layer, config.n_head, config.n_embd, num_rows]
    numbers = np.zeros(256, dtype="<i4")
    numbers[:8] = [header.get("magic", 20240326), header.get("version", version), *sizes]
    with path.open("wb") as file:
        file.write(numbers.tobytes())
        for name in _llm_c_names(config.n_layer):
            weight = weights[name].contiguous()
            if version == 5:
                weight = weight.to(torch.bfloat16).view(torch.int16)
            file.write(weight.numpy().tobytes())


def _llm_c_names(num_layers: int) -> list[str]:
    blocks = [f"transformer.h.{layer}.{kind}" for kind in _LLM_C_ORDER for layer in range(num_layers)]
    ends = ("transformer.ln_f.weight", "transformer.ln_f.bias")
    return ["transformer.wte.weight", "transformer.wpe.weight", *blocks, *ends]
