"""The number format is what was asked for, or what the device has; never something else in silence."""

import pytest

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


def test_detection_reads_the_machine():
    """The detected instructions are among the known ones."""
    assert set(precision.cpu_bf16_instructions()) <= {"avx512_bf16", "amx_bf16", "sve_bf16", "bf16"}
