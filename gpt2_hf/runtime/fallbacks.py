"""What a machine lacks for a faster way; the run then takes the slower one and says so in one line.

In: what was asked for, and the device. Out: what is missing, in words, or `None`.
"""

import importlib.util
import os
import shutil
import sys

import torch
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

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
        return "the card is too old for Triton, which needs compute capability 7.0"
    # Triton for Windows brings its own
    return _missing_compiler("C", "CC", _C_COMPILERS) if sys.platform == "linux" else None


def missing_for_attention(attn_implementation: str | None, precision: str, dropout: float) -> str | None:
    """What an attention backend needs and does not find: its package, 16 bits, a card, no dropout.

    Args:
        attn_implementation: the backend; any but flex_attention and a flash one needs nothing.
        precision: of the training: fp32, bf16 or fp16.
        dropout: rate on the attention.
    """
    if attn_implementation == "flex_attention" and dropout > 0:
        return f"{attn_implementation} knows no dropout; --dropout 0 would do"
    available = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    check = available.get(attn_implementation or "")
    if check is None:
        return None
    if not check():
        return f"{attn_implementation} needs a CUDA device and its package, which is not there"
    if precision == "fp32":
        return f"{attn_implementation} computes in 16 bits, and the precision is fp32"
    if torch.cuda.get_device_capability() < (8, 0):
        return f"the card is too old for {attn_implementation}, which needs compute capability 8.0"
    if attn_implementation == "flash_attention_3" and dropout > 0:
        return f"{attn_implementation} knows no dropout; --dropout 0 would do"
    return None
