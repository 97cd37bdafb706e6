"""The share of a device's peak: shown where the device is known, and computed as the paper says."""

import mmap
from types import SimpleNamespace

import pytest
import torch

from gpt2_hf.runtime import utilization
from gpt2_hf.runtime.utilization import (
    device_memory,
    flops_per_token,
    free_memory,
    free_unused,
    held_memory,
    is_out_of_memory,
    peak_flops,
    used_memory,
)


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312e12),
        ("NVIDIA L40S", "bf16", 362e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("Tesla T4", "fp16", 65e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("Tesla V100-PCIE-16GB", "fp16", 112e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
        ("Some Other Card", "bf16", None),
        ("NVIDIA H100 80GB HBM3", "fp32", None),
    ],
)
def test_peaks_are_known_or_left_out(name, precision, peak):
    """Variants of one name are told apart; an unknown device has no peak rather than a guessed one."""
    assert peak_flops(name, precision) == peak


def test_arithmetic_of_gpt2_small():
    """6N + 12LHQT: 6 · 123,653,376 for the products, and 113 million for attention at 1,024 positions."""
    assert flops_per_token(123_653_376, 12, 768, 1024) == pytest.approx(741.9e6 + 113.2e6, rel=1e-3)


def test_what_is_held_and_the_most_that_was(monkeypatch):
    """On CUDA these are two numbers: what was tried and freed counts in the second alone."""
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7)
    card = torch.device("cuda")
    assert (held_memory(card), used_memory(card)) == (3, 7)
    calls = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: calls.append("cache"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("peak"))
    free_unused(card)
    free_unused(torch.device("cpu"))
    assert calls == ["cache", "peak"]


@pytest.mark.parametrize(
    ("message", "known"),
    [
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("MPS backend out of memory (MPS allocated: 3 GB)", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_a_memory_that_is_too_small_is_known_by_what_is_said(message, known):
    """Also by what CUDA and its libraries say, where other programs hold the memory of a GPU."""
    assert is_out_of_memory(RuntimeError(message)) is known


def test_memory_of_a_process_counts_its_tensors():
    """A tensor of 64 MiB that has been written to is seen; its memory is new, not some that was freed and kept."""
    held = torch.frombuffer(mmap.mmap(-1, 64 * 2**20), dtype=torch.float32)
    before = used_memory(torch.device("cpu"))
    held.fill_(1.0)
    assert used_memory(torch.device("cpu")) - before > 0.9 * held.nbytes


@pytest.mark.parametrize(
    ("listed", "files", "free"),
    [
        ("0::/", {"": (800, 300, 100)}, 600),
        ("0::/job/step", {"job": (800, 300, 100), "job/step": ("max", 50, 0)}, 600),
        ("0::/job/step", {"job": (900, 300, 0), "job/step": (500, 50, 0)}, 450),
        ("0::/of/the/host", {"": (700, 0, 0)}, 700),
        ("0::/../../sibling", {"": (700, 0, 0)}, 700),
        ("0::/job", {"job": ("max", 300, 0)}, 1000),
        ("0::/nowhere", {}, 1000),
        ("4:memory:/pod\n3:cpu:/pod\n0::/", {"memory": (2**63 - 4096, 1, 0), "memory/pod": (400, 300, 50)}, 150),
        (None, {}, 1000),
    ],
)
def test_memory_within_the_limits_of_control_groups(tmp_path, monkeypatch, listed, files, free):
    """Those of containers and jobs, in both versions of Linux; without a limit it is what the machine has free."""
    for place, (limit, used, cached) in files.items():
        is_old = place.startswith("memory")
        names = ("limit_in_bytes", "usage_in_bytes", "total_") if is_old else ("max", "current", "")
        folder = tmp_path / "groups" / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"memory.{names[0]}").write_text(f"{limit}\n")
        (folder / f"memory.{names[1]}").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 7\n{names[2]}inactive_file {cached}\n")
    if listed is not None:
        (tmp_path / "listed").write_text(f"{listed}\n")
    monkeypatch.setattr(utilization, "_OWN_GROUPS", tmp_path / "listed")
    monkeypatch.setattr(utilization, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    monkeypatch.setattr("psutil.swap_memory", lambda: SimpleNamespace(free=500))
    assert free_memory() == free
    assert free_memory(swap=True) == (free if free < 1000 else 1500)
    monkeypatch.setattr(utilization, "held_memory", lambda device: 20)
    assert device_memory(torch.device("cpu")) == free + 20
