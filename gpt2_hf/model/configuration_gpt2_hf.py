"""The sizes and switches of a GPT-2, under GPT-2's own names.

In: keyword arguments, or a `config.json`, ours or stock GPT-2's. Out: a checked `GPT2HFConfig`.
Next stage: `modeling_gpt2_hf`.

This file travels with a saved model (`trust_remote_code=True`), so it imports nothing of this
package by its absolute name.
"""

import math
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

NO_CROSS_ATTENTION = "add_cross_attention=True is not supported: gpt2_hf has no cross-attention; set it to false"

# Fields of transformers' GPT2Config that only its double-heads model reads.
_STOCK_HEAD_FIELDS = (
    "summary_type",
    "summary_use_proj",
    "summary_activation",
    "summary_proj_to_labels",
    "summary_first_dropout",
)


class GPT2HFConfig(PreTrainedConfig):
    r"""Configuration of a [`GPT2HFModel`]; the defaults are GPT-2 124M.

    Args:
        vocab_size (`int`, *optional*, defaults to 50257): Rows of the embedding, V.
        n_vocab_padding (`int`, *optional*, defaults to 0): Number of last embedding rows that stand for no token:
            they only round its size and never receive probability. Set by `resize_token_embeddings`. A loss that
            smooths labels over all logits, as that of transformers' own Trainer, is infinite with them: use
            `GPT2HFTrainer`, or call the model with `label_smoothing`.
        n_positions (`int`, *optional*, defaults to 1024): Longest sequence in tokens (learned positions).
        n_embd (`int`, *optional*, defaults to 768): Width C of the residual stream.
        n_layer (`int`, *optional*, defaults to 12): Number of blocks.
        n_head (`int`, *optional*, defaults to 12): Attention heads H; a model can be built if they divide `n_embd`.
        n_inner (`int`, *optional*): Width of the MLP; `4 * n_embd` when left out.
        activation_function (`str`, *optional*, defaults to `"gelu_new"`): MLP activation, a key of transformers'
            `ACT2FN`. `"gelu_new"` is the tanh approximation, computed by torch's fused kernel.
        resid_pdrop (`float`, *optional*, defaults to 0.1): Dropout on the output of each attention and MLP.
        embd_pdrop (`float`, *optional*, defaults to 0.1): Dropout on the sum of token and position embeddings.
        attn_pdrop (`float`, *optional*, defaults to 0.1): Dropout on the attention probabilities.
        layer_norm_epsilon (`float`, *optional*, defaults to 1e-5): Epsilon of every LayerNorm.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of the initial weights.
        scale_attn_weights (`bool`, *optional*, defaults to `True`): Divide attention scores by sqrt(head size).
        scale_attn_by_inverse_layer_idx (`bool`, *optional*, defaults to `False`): Also divide by layer index + 1.
        reorder_and_upcast_attn (`bool`, *optional*, defaults to `False`): Compute eager attention scores in fp32.
        use_cache (`bool`, *optional*, defaults to `True`): Return the key/value cache in generation.
        bos_token_id, eos_token_id (`int`, *optional*, defaults to 50256): `<|endoftext|>`.
        pad_token_id (`int`, *optional*): GPT-2 has none.
        tie_word_embeddings (`bool`, *optional*, defaults to `True`): The head shares its weight with `wte`.

    Raises:
        ValueError: if a size is not a positive integer, a rate is outside [0, 1), or the activation is unknown.

    Source: Radford et al., *Language Models are Unsupervised Multitask Learners* (2019).
    """

    model_type = "gpt2_hf"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    }

    vocab_size: int = 50257
    n_vocab_padding: int = 0
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    resid_pdrop: float | int = 0.1
    embd_pdrop: float | int = 0.1
    attn_pdrop: float | int = 0.1
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    reorder_and_upcast_attn: bool = False
    use_cache: bool = True
    bos_token_id: int | None = 50256
    eos_token_id: int | list[int] | None = 50256
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if kwargs.pop("add_cross_attention", False):
            raise ValueError(NO_CROSS_ATTENTION)
        super().__post_init__(**kwargs)  # which takes the general names, such as hidden_size
        self.check_sizes()

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config file; a stock GPT-2's (`model_type: gpt2`) becomes ours, since its weights fit as they are."""
        config_dict, unused = super().get_config_dict(*args, **kwargs)
        if config_dict.get("model_type") == "gpt2":
            dropped = {"model_type", "architectures", *_STOCK_HEAD_FIELDS}
            config_dict = {name: value for name, value in config_dict.items() if name not in dropped}
            config_dict["model_type"] = cls.model_type
        return config_dict, unused

    @property
    def num_tokens(self) -> int:
        """Rows of the embedding that stand for a token."""
        return self.vocab_size - self.n_vocab_padding

    @property
    def inner_size(self) -> int:
        """Width of the MLP, also when `n_inner` is left out."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return self.n_embd // self.n_head

    def check_sizes(self) -> None:
        """Raise a `ValueError` that names the first field with an impossible value."""
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            _check_positive_int(name, getattr(self, name))
        padding = self.n_vocab_padding
        if not isinstance(padding, int) or not 0 <= padding < self.vocab_size:
            raise ValueError(f"n_vocab_padding must be an integer in [0, vocab_size), got {padding!r}")
        if self.n_inner is not None:
            _check_positive_int("n_inner", self.n_inner)
        for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0.0 <= value < 1.0:
                raise ValueError(f"{name} must be a dropout rate in [0, 1), got {value!r}")
        for name in ("layer_norm_epsilon", "initializer_range"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        if self.activation_function not in ACT2FN:
            known = ", ".join(sorted(ACT2FN))
            raise ValueError(f"activation_function {self.activation_function!r} is unknown; choose one of {known}")

    def check_heads(self) -> None:
        """Raise a `ValueError` if the heads do not divide the width.

        Asked when a model is built: transformers' GPT2Config, and tools that change one size after another, hold
        such sizes too.
        """
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd (d_model) must be divisible by n_head (num_heads), got {self.n_embd} and {self.n_head}; "
                f"heads that divide {self.n_embd}: {_nearest_divisors(self.n_embd, self.n_head)}"
            )


def _check_positive_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def _nearest_divisors(number: int, wanted: int) -> str:
    """The divisors of `number` just below and above `wanted`, for an error message."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    divisors = sorted({*small, *(number // d for d in small)})
    below = max(d for d in divisors if d <= wanted)
    above = [d for d in divisors if d > wanted][:1]
    return " or ".join(str(d) for d in [below, *above])


__all__ = ["NO_CROSS_ATTENTION", "GPT2HFConfig"]
