"""The number format is what was asked for, or what the device has; never something else in silence."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2_hf.errors import UserError
from gpt2_hf.runtime import precision
from gpt2_hf.runtime.precision import keep_cast_weights, resolve_precision


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


class Casts(TorchDispatchMode):
    """Counts conversions to bf16."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") == torch.bfloat16
        return func(*args, **(kwargs or {}))


def test_weights_are_cast_once_and_nothing_else_changes():
    """Over several passes without gradients; other products inside stay fp32, and a new weight counts afterwards."""
    layer, inputs = torch.nn.Linear(4, 4), torch.ones(2, 4, dtype=torch.bfloat16)

    def forward():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(inputs)

    with torch.no_grad(), Casts() as casts, keep_cast_weights("cpu"):
        before = [forward() for _ in range(3)][-1]
        assert (inputs.float() @ layer.weight).dtype == torch.float32
    assert casts.count == 2  # weight and bias
    with torch.no_grad():
        layer.weight.add_(1.0)
        torch.testing.assert_close(forward(), before + 4.0, atol=0.05, rtol=0.05)
