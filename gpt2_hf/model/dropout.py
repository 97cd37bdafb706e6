"""Dropout whose random numbers do not hold up a CPU.

torch draws one number per element on a single thread there, 11 to 14 ns each, which is more than the rest of a layer's
element-wise work together. Here one 64-bit number decides on four elements.

This file travels with a saved model (`trust_remote_code=True`): relative imports only.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_LEVELS = 1 << 16  # probabilities are multiples of 1 / 65,536


def exact_probability(p: float) -> float:
    """The probability with which `keep_mask` really drops."""
    return _dropped_levels(p) / _LEVELS


def _dropped_levels(p: float) -> int:
    return min(round(p * _LEVELS), _LEVELS - 1)


def keep_mask(shape: tuple[int, ...], p: float, seed: int) -> Tensor:
    """Which elements are kept, int16 on the CPU: all bits are set, or none with probability `exact_probability(p)`.

    A bitwise "and" with the bits of a number keeps or drops it in a tenth of the time that a mask of bools takes.
    """
    num_elements = math.prod(shape)
    words = np.random.PCG64(seed).random_raw((num_elements + 3) // 4)
    lanes = torch.from_numpy(words.view(np.int16)[:num_elements])
    return torch.ge(lanes, _dropped_levels(p) - _LEVELS // 2, out=lanes).neg_().view(shape)


def drop_(tensor: Tensor, keep: Tensor) -> Tensor:
    """Set to zero what a `keep_mask` does not keep."""
    tensor.view(_INTEGERS[tensor.itemsize]).bitwise_and_(keep)
    return tensor


def draw_seed() -> int:
    """A seed from torch's default generator: whatever sets or restores its state repeats the mask."""
    return int(torch.randint(torch.iinfo(torch.int64).max, ()).item())


class _Dropped(torch.autograd.Function):
    """Elements times a factor, or zero where they are not kept."""

    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, keep: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.factor = factor
        return drop_(hidden_states * factor, keep)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        return _Dropped.apply(grad_output.contiguous(), *ctx.saved_tensors, ctx.factor), None, None


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, fast on CPUs too."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        eager_on_cpu = hidden_states.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (self.training and eager_on_cpu and 0 < self.p < 1):
            return super().forward(hidden_states)
        keep = keep_mask(tuple(hidden_states.shape), self.p, draw_seed())
        return _Dropped.apply(hidden_states.contiguous(), keep, 1 / (1 - exact_probability(self.p)))


__all__ = ["Dropout", "draw_seed", "drop_", "exact_probability", "keep_mask"]
