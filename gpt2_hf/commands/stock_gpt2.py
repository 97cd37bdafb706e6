"""A model as transformers' own GPT-2: its class, its config, its weights.

In: one of our models. Out: what every exported format begins with.
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ..model.configuration_gpt2_hf import GPT2HFConfig
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from .same_model import with_weights

_NOT_STOCK_FIELDS = (
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "_name_or_path",
    "n_vocab_padding",
)
_VOCABULARY_WEIGHTS = ("transformer.wte.weight", "lm_head.weight")


def stock_model(model: GPT2HFForCausalLM) -> GPT2LMHeadModel:
    """The model as transformers' GPT-2, which holds these very weights but for the padding of the vocabulary."""
    stock: GPT2LMHeadModel = with_weights(GPT2LMHeadModel, stock_config(model.config), stock_weights(model))
    stock.generation_config = model.generation_config
    return stock


def stock_config(config: GPT2HFConfig) -> GPT2Config:
    """The same model described as transformers' GPT-2, without the padding of the vocabulary.

    `n_ctx`, which GPT-2's config had before it was called `n_positions`, is still read by llama.cpp's converter.
    """
    fields = {name: value for name, value in config.to_dict().items() if name not in _NOT_STOCK_FIELDS}
    return GPT2Config(**{**fields, "vocab_size": config.num_tokens, "n_ctx": config.n_positions})


def stock_weights(model: GPT2HFForCausalLM) -> dict[str, torch.Tensor]:
    """The model's weights, without the rows that pad the vocabulary. No copies."""
    weights = model.state_dict()
    return {name: w[: model.config.num_tokens] if name in _VOCABULARY_WEIGHTS else w for name, w in weights.items()}
