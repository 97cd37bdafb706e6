"""Tiny stock GPT-2 models and their twins in this package, and a tokenizer without training."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM

VOCAB_SIZE = 97
N_POSITIONS = 32
LENGTHS = (7, 12, 3)  # of the rows of a padded batch
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "n_positions": N_POSITIONS,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 2,
    "bos_token_id": 96,
    "eos_token_id": 96,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}


def make_stock(attn_implementation: str = "eager", **overrides: Any) -> GPT2LMHeadModel:
    """A stock GPT-2 in evaluation mode, every parameter random and large enough to matter."""
    config = GPT2Config(**{**SIZES, **NO_DROPOUT, **overrides}, attn_implementation=attn_implementation)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def twin_of(stock: GPT2LMHeadModel, attn_implementation: str = "sdpa") -> GPT2HFForCausalLM:
    """This package's model with the same weights."""
    fields = stock.config.to_dict()
    for name in ("model_type", "architectures", "transformers_version", "add_cross_attention"):
        fields.pop(name, None)
    model = GPT2HFForCausalLM(GPT2HFConfig(**fields, attn_implementation=attn_implementation))
    model.load_state_dict(stock.state_dict())
    return model.eval()


def make_model(attn_implementation: str = "sdpa", **overrides: Any) -> GPT2HFForCausalLM:
    """This package's model, with the weights that `make_stock` gives."""
    return twin_of(make_stock(**overrides), attn_implementation)


def attention_backend(name: str) -> contextlib.AbstractContextManager[Any]:
    """flex_attention runs here as its unfused formula: compiling its kernel takes half a minute on a CPU."""
    flex = name == "flex_attention"
    return torch.compiler.set_stance("force_eager") if flex else contextlib.nullcontext()


def bitwise_equal(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> bool:
    """Whether two state dicts hold the same names and bits."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def random_ids(*shape: int, seed: int = 1) -> torch.Tensor:
    """Token ids without the end-of-text token."""
    return torch.randint(0, VOCAB_SIZE - 1, shape, generator=torch.Generator().manual_seed(seed))


def padded_batch(side: str) -> dict[str, torch.Tensor]:
    """Rows of different lengths with an attention mask and the positions that go with it."""
    longest = max(LENGTHS)
    ids = torch.zeros(len(LENGTHS), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        real = slice(longest - length, longest) if side == "left" else slice(0, length)
        ids[row, real] = random_ids(length, seed=row)
        mask[row, real] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def word_tokenizer(num_words: int) -> PreTrainedTokenizerFast:
    """A tokenizer for texts of the words w0, w1, …, each of which is a token; the last id ends a text."""
    words = {**{f"w{i}": i for i in range(num_words)}, "<|endoftext|>": num_words}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
