"""Which precision a run computes in, and why.

In: what was asked for, and the device. Out: `fp32`, `bf16` or `fp16`, with the reason in words.
Weights and optimizer state are fp32 throughout; the lower precision is used by autocast.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from accelerate.utils import parse_flag_from_env

from ..errors import UserError

PrecisionName = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Precision:
    """The chosen precision and the reason to print."""

    name: PrecisionName
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """torch's dtype for it."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.name]

    def __str__(self) -> str:
        return f"precision: {self.name} ({self.reason})"


def resolve_precision(wanted: str, device_type: str) -> Precision:
    """Choose the precision for `wanted` (`auto` or a name) on a device, or refuse it.

    Raises:
        UserError: if the device cannot compute in the wanted precision.
    """
    if wanted == "fp32":
        return Precision("fp32", "asked for")
    has_bf16, why = _native_bf16(device_type)
    if wanted == "bf16":
        if not has_bf16:
            raise UserError(f"--precision bf16: {why}; use --precision auto, which takes what the device has")
        return Precision("bf16", "asked for")
    if wanted == "fp16":
        if device_type != "cuda":
            raise UserError(f"--precision fp16 needs a CUDA device, this one is {device_type}; use --precision auto")
        return Precision("fp16", "asked for")
    if has_bf16:
        return Precision("bf16", why)
    if device_type == "cuda":
        return Precision("fp16", f"{why}, so fp16 with dynamic loss scaling")
    return Precision("fp32", why)


def _native_bf16(device_type: str) -> tuple[bool, str]:
    if device_type == "cuda":
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return True, f"{name} computes in bf16"
        return False, f"{name} has no bf16"
    if device_type == "cpu":
        instructions = cpu_bf16_instructions()
        if instructions:
            return True, f"the CPU has {', '.join(instructions)}"
        return False, "the CPU has no bf16 instructions"
    return False, f"bf16 is not used on {device_type}"


def cpu_bf16_instructions() -> list[str]:
    """The bf16 matrix instructions that this CPU has and torch uses."""
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    if not capabilities:  # older torch
        checks = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
        capabilities = {name: getattr(torch.cpu, check, bool)() for name, check in checks.items()}
    return [name for name in ("avx512_bf16", "amx_bf16", "sve_bf16", "bf16") if capabilities.get(name)]


def current_device_type(use_cpu: bool) -> str:
    """`cuda`, `mps`, … where torch finds an accelerator and it is wanted, also by `accelerate launch`, else `cpu`."""
    if use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return "cpu"
    accelerator = torch.accelerator.current_accelerator()
    return accelerator.type if accelerator is not None else "cpu"
