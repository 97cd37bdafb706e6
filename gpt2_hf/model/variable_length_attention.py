"""Causal attention over several documents of one row, by torch's flash kernel, without padding.

In: query, key and value of a flat row, and where its documents begin. Out: the attended values. The kernel takes
cumulative lengths and a rate of dropout; `torch.nn.attention.varlen` knows no dropout, and
`scaled_dot_product_attention` no lengths. FlashAttention-2, Dao 2023, arXiv:2307.08691.

This file travels with a saved model (`trust_remote_code=True`): relative imports only.

Legend: T tokens of the row, S documents, H heads, D head size.
"""

import functools

import torch
from torch import Tensor

_LEAST_CAPABILITY = (8, 0)
# D must be a multiple of 8; beyond 192 the backward pass needs the shared memory of the largest cards.
_MOST_HEAD_DIM = 192


def variable_length_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: Tensor,
    max_length: int,
    *,
    scaling: float,
    dropout: float = 0.0,
) -> Tensor:
    """`dropout(softmax(query @ key.T * scaling + causal mask)) @ value` within each document.

    Args:
        query, key, value: `[T, H, D]`, in 16 bits, on a device of which `missing_for_variable_lengths` says `None`.
        cu_seq_lens: int32 `[S + 1]`, `[0, end of document 1, …, T]`, on the same device; not read by the host.
        max_length: tokens of the longest document.
        scaling: factor of the scores.
        dropout: probability that a weight is dropped, in [0, 1).

    Returns:
        `[T, H, D]`, in the inputs' dtype.
    """
    output: Tensor = torch.ops.aten._flash_attention_forward(
        query, key, value, cu_seq_lens, cu_seq_lens, max_length, max_length, dropout, True, False, scale=scaling
    )[0]
    return output


@torch.compiler.assume_constant_result  # else a compiler would break its graph at the questions to the device
def missing_for_variable_lengths(device_type: str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernel cannot be used, in words; `None` where it can."""
    if device_type != "cuda":
        return f"{device_type} has no kernel for documents of unequal length"
    if dtype not in (torch.bfloat16, torch.float16):
        return "the kernel for documents of unequal length computes in 16 bits"
    if head_dim % 8 or head_dim > _MOST_HEAD_DIM:
        return f"the kernel for documents of unequal length takes no heads of size {head_dim}"
    return _missing_on_the_card()


@functools.cache
def _missing_on_the_card() -> str | None:
    if torch.version.hip is not None or not torch.backends.cuda.is_flash_attention_available():
        return "this torch was built without the kernel for documents of unequal length"
    if torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
        return "the GPU is too old for the kernel for documents of unequal length (compute capability 8.0)"
    return None


__all__ = ["missing_for_variable_lengths", "variable_length_attention"]
