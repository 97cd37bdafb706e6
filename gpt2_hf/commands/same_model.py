"""A model in another form that computes the same: its weights carried over, and its logits compared.

In: a model, and the form that it was written in. Out: the largest difference of their logits, or an error.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, PreTrainedTokenizerBase

from ..model.configuration_gpt2_hf import GPT2HFConfig
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM

# Of the largest logit. Both compute the same function in fp32, but with other kernels or in another order.
_TOLERANCE = 1e-5


def is_tied(weights: dict[str, torch.Tensor]) -> bool:
    """Whether the head is the embedding; a config may say so of a model that has another."""
    head = weights.get("lm_head.weight")
    return head is None or torch.equal(head, weights["transformer.wte.weight"])


def with_weights(model_class: type, config: GPT2Config | GPT2HFConfig, weights: dict[str, torch.Tensor]) -> Any:
    """A model in evaluation mode that holds these very tensors, whose config then says whether the head is tied."""
    config.tie_word_embeddings = config.tie_word_embeddings and is_tied(weights)
    with torch.device("meta"):
        model = model_class(config)
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.eval()


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, num_positions: int) -> None:
    """Save a copy of the tokenizer that knows the model's longest text."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = num_positions
    tokenizer.save_pretrained(folder)


def probe_ids(config: GPT2HFConfig) -> torch.Tensor:
    """Token ids `[1, T]` on which two forms of a model are compared."""
    return torch.arange(min(64, config.n_positions)).remainder(config.num_tokens).unsqueeze(0)


@torch.no_grad()
def reference_logits(model: GPT2HFForCausalLM, ids: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits `[B, T, V]` in fp32 on the CPU, without the padding of the vocabulary; the model stays where it is."""
    weights = {name: weight.to("cpu", torch.float32) for name, weight in model.state_dict().items()}
    ours = with_weights(GPT2HFForCausalLM, copy.deepcopy(model.config), weights)
    ours.set_attn_implementation("eager")
    return ours(ids, **inputs).logits[..., : model.config.num_tokens]


def require_same_logits(expected: torch.Tensor, logits: torch.Tensor, done: str = "exported") -> float:
    """The largest difference between logits.

    Args:
        expected, logits: of the same shape.
        done: what is done to the model, for the message.

    Raises:
        RuntimeError: if it is more than rounding.
    """
    difference = float((expected - logits).abs().max())
    if not difference <= _TOLERANCE * max(1.0, float(expected.abs().max())):
        raise RuntimeError(f"the {done} model's logits differ by {difference:.1e}; nothing was {done}")
    return difference
