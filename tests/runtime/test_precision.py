"""The number format is what was asked for, or what the device has; never something else in silence."""

from pathlib import Path

import pytest
import torch

from gpt2_hf.errors import UserError
from gpt2_hf.runtime import precision
from gpt2_hf.runtime.precision import resolve_precision


@pytest.fixture
def cpu(monkeypatch):
    """Pretend that the CPU has these bf16 instructions."""

    def pretend(*instructions):
        monkeypatch.setattr(precision, "cpu_bf16_instructions", lambda: list(instructions))

    return pretend


def test_auto_takes_bf16_where_the_cpu_has_it(cpu):
    """A CPU with bf16 instructions uses them, and the reason names them."""
    cpu("avx512_bf16")
    chosen = resolve_precision("auto", "cpu")
    assert chosen.name == "bf16" and "avx512_bf16" in str(chosen)


def test_auto_falls_back_to_fp32(cpu):
    """A CPU without them computes in fp32, and says why."""
    cpu()
    assert str(resolve_precision("auto", "cpu")) == "precision: fp32 (the CPU has no bf16 instructions)"


def test_explicit_formats_are_obeyed_or_refused(cpu):
    """bf16 on a CPU without it and fp16 off CUDA are errors that name the remedy."""
    cpu()
    assert resolve_precision("fp32", "cpu").name == "fp32"
    with pytest.raises(UserError, match="--precision bf16: the CPU has no bf16 instructions; use --precision auto"):
        resolve_precision("bf16", "cpu")
    with pytest.raises(UserError, match="--precision fp16 needs a CUDA device"):
        resolve_precision("fp16", "cpu")
    cpu("amx_bf16")
    assert resolve_precision("bf16", "cpu").name == "bf16"


@pytest.mark.parametrize(("launched", "device_type"), [("False", "cuda"), ("True", "cpu")])
def test_accelerate_may_want_the_cpu(monkeypatch, launched, device_type):
    """`accelerate launch --cpu` tells the process so; else an accelerator that is there is used."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", launched)
    assert precision.current_device_type(use_cpu=False) == device_type


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [
        ({"avx2": True, "amx_bf16": True, "avx512_bf16": True}, ["avx512_bf16", "amx_bf16"]),
        ({"bf16": True, "sve_bf16": True, "sve": True}, ["sve_bf16", "bf16"]),
        ({"avx512_f": True, "avx512_bf16": False, "amx_fp16": True}, []),
    ],
)
def test_bf16_instructions_are_those_torch_reports(monkeypatch, capabilities, found):
    """Of all that torch knows of the CPU, the bf16 instructions that it has."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert precision.cpu_bf16_instructions() == found


@pytest.mark.parametrize(
    ("avx512", "amx", "found"),
    [
        (True, True, ["avx512_bf16", "amx_bf16"]),
        (True, False, ["avx512_bf16"]),
        (False, False, []),
    ],
)
def test_detection_asks_an_older_torch_by_instruction(monkeypatch, avx512, amx, found):
    """One that has no table of all capabilities."""
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    assert precision.cpu_bf16_instructions() == found


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="the kernel does not say what the CPU has")
def test_detection_reads_the_machine():
    """Nothing is found that the kernel does not report, and what it reports is found."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    names = {"avx512_bf16": "avx512_bf16", "amx_bf16": "amx_bf16", "sve_bf16": "svebf16", "bf16": "bf16"}
    found = {names[name] for name in precision.cpu_bf16_instructions()}
    assert found <= flags and ("avx512_bf16" in found) == ("avx512_bf16" in flags)
