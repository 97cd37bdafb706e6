"""How much of a device a run uses: its arithmetic against the peak, and its memory.

In: a device and a precision. Out: FLOP/s and bytes.
"""

import gc
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from .own_process import own_process

# Dense peak of the matrix units in bf16 and fp16 with fp32 accumulation, FLOP/s, by a part of the name that torch
# gives the device; the first match counts. From NVIDIA's data sheets and architecture white papers (without sparsity).
_PEAKS = [
    ("B200", 2250e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A40", 149.7e12),
    ("A30", 165e12),
    ("A10G", None),  # `None`: another chip than the name begins like, and not looked up
    ("A10", 125e12),
    ("RTX A6000", 154.8e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("RTX 4090 Laptop", None),
    ("RTX 4090 D", None),
    ("RTX 4090", 165.2e12),
    ("RTX 3090 Ti", None),
    ("RTX 3090", 71e12),
    ("V100 PCIE", 112e12),
    ("V100", 125e12),
    ("T4", 65e12),
]
# Where Linux lists the control groups (cgroups) of this process, such as those of a container, a SLURM job or a pod,
# and where it has their folders; in a container the list may have paths that only the host has.
_OWN_GROUPS, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# What torch says where it has no class of errors for it: of a CPU, of Apple's GPUs, and of CUDA and its libraries when
# other programs hold the GPU's memory.
_OUT_OF_MEMORY = (
    *("DefaultCPUAllocator: ", "std::bad_alloc", "MPS backend out of memory"),
    *("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED"),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense FLOP/s that a device's data sheet promises in bf16 or fp16.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        precision: `fp32`, `bf16` or `fp16`. For fp32 there is no answer: whether TF32 is used decides it.

    Returns:
        `None` for a device that is not in the table, and for a part of one (MIG): no share is shown then, rather than
        a guessed one.
    """
    if precision not in ("bf16", "fp16"):
        return None
    words = device_name.replace("-", " ").split()
    if "MIG" in words:
        return None
    for name, peak in _PEAKS:
        wanted = name.split()
        if any(words[i : i + len(wanted)] == wanted for i in range(len(words))):
            return peak
    return None


def flops_per_token(num_matmul_parameters: int, num_layers: int, width: int, mean_context: float) -> float:
    """Arithmetic that one token needs, forward and backward: 6N + 12LHQT (Chowdhery et al. 2022, appendix B).

    Args:
        num_matmul_parameters: N, those that a token is multiplied with; the tied head counts, positions do not.
        num_layers: L.
        width: HQ, heads times head size, in channels.
        mean_context: T, tokens in the sequence of a token, on average; 0 leaves attention out.
    """
    return 6.0 * num_matmul_parameters + 12.0 * num_layers * width * mean_context


def device_memory(device: torch.device) -> int:
    """Bytes that a run can have on a device: what is free, and what this process already holds."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    return free_memory() + held_memory(device)


def free_memory(swap: bool = False) -> int:
    """Bytes that this process can still have of the machine's memory, within the limits of its control groups.

    Args:
        swap: count the machine's free swap too; control groups limit what is not swapped.
    """
    free = psutil.virtual_memory().available + (psutil.swap_memory().free if swap else 0)
    return int(min([free, *_free_in_groups()]))


def _free_in_groups() -> Iterator[int]:
    """Bytes below the limit of each control group, and of each that it is in; cached files are given up for others."""
    lines = _OWN_GROUPS.read_text().splitlines() if _OWN_GROUPS.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:
            place, names = _GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):  # version 1
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            place = _GROUPS / "memory"
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for folder in (place.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)):
            try:
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                details = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield limit - used + int(details[names[2]])
            except (OSError, ValueError, KeyError):  # no folder, or no limit: "max"
                continue


def card_memory(device: torch.device) -> int:
    """Total memory of a CUDA GPU in bytes; 0 for another device."""
    return int(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0


def held_memory(device: torch.device) -> int:
    """Bytes: on CUDA what tensors take now; elsewhere what the process holds now."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else used_memory(device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device, or of the machine, was too small."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def free_unused(device: torch.device) -> None:
    """Free what only reference cycles hold, such as a Trainer and its model, and count the peak of CUDA anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def used_memory(device: torch.device) -> int:
    """Bytes: on CUDA the most that tensors have taken so far; elsewhere what the process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return int(own_process().memory_info().rss)
