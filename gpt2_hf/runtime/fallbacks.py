"""What a machine lacks for a faster way; the run then takes the slower one and says so in one line.

In: what was asked for, and the device. Out: what is missing, in words, or `None`.
"""

import importlib.util
import os
import shutil
import sys

import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from ..model.variable_length_attention import missing_for_variable_lengths

_C_COMPILERS = ("cc", "gcc", "clang")
_CPU_COMPILERS = ("g++", "clang++", "c++", "cl")


def missing_for_compile(device_type: str) -> str | None:
    """What `torch.compile` needs on the device and does not find: Triton on CUDA, a C++ compiler on a CPU."""
    if device_type == "cuda":
        return _missing_for_triton()
    return _missing_compiler("C++", "CXX", _CPU_COMPILERS)


def _missing_compiler(language: str, variable: str, usual: tuple[str, ...]) -> str | None:
    wanted = os.environ.get(variable)
    compilers = (wanted,) if wanted else usual
    if any(shutil.which(name) for name in compilers):
        return None
    return f"there is no {language} compiler ({' or '.join(compilers)})"


def _missing_for_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability() < (7, 0):
        return "the GPU is too old for Triton, which needs compute capability 7.0"
    # Triton for Windows brings its own
    return _missing_compiler("C", "CC", _C_COMPILERS) if sys.platform == "linux" else None


def missing_for_attention(
    attn_implementation: str | None, precision: str, dropout: float, device_type: str
) -> str | None:
    """What training with an attention backend needs and does not find: its package, 16 bits, a GPU, no dropout.

    Args:
        attn_implementation: the backend; any but flex and a flash one needs nothing.
        precision: of the training: fp32, bf16 or fp16.
        dropout: rate on the attention.
        device_type: `cpu`, `cuda`, …
    """
    if attn_implementation == "flex_attention":
        if device_type != "cuda":
            return f"flex_attention has no gradients on {device_type}"
        return _no_dropout(attn_implementation, dropout) or missing_for_compile(device_type)
    available = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    check = available.get(attn_implementation or "")
    if check is None:
        return None
    if not check():
        return f"{attn_implementation} needs a CUDA device and its package, which is not there"
    if precision == "fp32":
        return f"{attn_implementation} computes in 16 bits, and the precision is fp32"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"the GPU is too old for {attn_implementation}, which needs compute capability 8.0"
    return _no_dropout("flash_attention_3", dropout) if attn_implementation == "flash_attention_3" else None


def _no_dropout(attn_implementation: str, dropout: float) -> str | None:
    return f"{attn_implementation} knows no dropout; --dropout 0 would do" if dropout > 0 else None


def missing_for_packing(
    attn_implementation: str | None, dtype: torch.dtype, head_dim: int, device_type: str
) -> str | None:
    """What keeps attention from taking documents of unequal length without any padding.

    Args:
        attn_implementation: the backend; the flash ones take them.
        dtype: that training computes in.
        head_dim: size of an attention head.
        device_type: `cpu`, `cuda`, …
    """
    if attn_implementation in ("eager", "flex_attention"):
        return f"{attn_implementation} takes no documents of unequal length"
    # On a CPU training has a kernel for them, and an accelerator of another kind has none that could be missed.
    if attn_implementation not in ("sdpa", None) or device_type != "cuda":
        return None
    return missing_for_variable_lengths(device_type, dtype, head_dim)


def padding_to_the_longest(
    attn_implementation: str | None, dtype: torch.dtype, head_dim: int, device_type: str, compiles: bool
) -> str | None:
    """Why attention pads every document of a batch to the longest one; `None` where it does not.

    Length buckets differ in number and size from batch to batch, and `torch.compile` would make a graph for each.

    Args:
        attn_implementation, dtype, head_dim, device_type: as above.
        compiles: whether the model is compiled.
    """
    if not compiles or "flash" in (attn_implementation or ""):
        return None
    missing = missing_for_packing(attn_implementation, dtype, head_dim, device_type)
    return missing or missing_for_variable_lengths(device_type, dtype, head_dim)
