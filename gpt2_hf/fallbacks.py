"""What a machine lacks for a faster way; the run then takes the slower one and says so in one line.

In: what was asked for, and the device. Out: what is missing, in words, or `None`.
"""

import importlib.util
import os
import shutil

from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

_CPU_COMPILERS = ("g++", "clang++", "c++", "cl")


def missing_for_compile(device_type: str) -> str | None:
    """What `torch.compile` needs on the device and does not find: Triton on CUDA, a C++ compiler on a CPU."""
    if device_type == "cuda":
        return None if importlib.util.find_spec("triton") is not None else "Triton is not installed"
    wanted = os.environ.get("CXX")
    compilers = (wanted,) if wanted else _CPU_COMPILERS
    if any(shutil.which(name) for name in compilers):
        return None
    return f"there is no C++ compiler ({' or '.join(compilers)})"


def missing_for_attention(attn_implementation: str | None) -> str | None:
    """The library of a flash-attention backend, if it is not there."""
    available = {"flash_attention_2": is_flash_attn_2_available, "flash_attention_3": is_flash_attn_3_available}
    check = available.get(attn_implementation or "")
    if check is None or check():
        return None
    return f"{attn_implementation} needs a CUDA device and its package, which is not there"
