"""The share of a device's peak: shown where the device is known, and computed as the paper says."""

import mmap

import pytest
import torch

from gpt2_hf.runtime.utilization import (
    flops_per_token,
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
