"""Dropout whose random numbers do not hold up a CPU.

torch draws one number per element on a single thread there, 11 to 14 ns each, which is more than the rest of a layer's
element-wise work together. Here one 64-bit number decides on four elements.

This file travels with a saved model (`trust_remote_code=True`): relative imports only.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

_LEVELS = 1 << 16  # probabilities are multiples of 1 / 65,536


def exact_probability(p: float) -> float:
    """The probability that `drop_mask` really has."""
    return _dropped_levels(p) / _LEVELS


def _dropped_levels(p: float) -> int:
    return min(round(p * _LEVELS), _LEVELS - 1)


def drop_mask(shape: tuple[int, ...], p: float) -> Tensor:
    """Which elements are dropped, bool on the CPU, each with probability `exact_probability(p)`.

    Seeded by torch's default generator, so that whatever sets or restores its state repeats the mask.
    """
    num_elements = math.prod(shape)
    seed = int(torch.randint(torch.iinfo(torch.int64).max, ()).item())
    words = np.random.PCG64(seed).random_raw((num_elements + 3) // 4)
    lanes = torch.from_numpy(words.view(np.int16)[:num_elements])
    return (lanes < _dropped_levels(p) - _LEVELS // 2).view(shape)


class Dropout(nn.Dropout):
    """`torch.nn.Dropout`, fast on CPUs too."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        eager_on_cpu = hidden_states.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (self.training and eager_on_cpu and 0 < self.p < 1):
            return super().forward(hidden_states)
        dropped = drop_mask(tuple(hidden_states.shape), self.p)
        scale = torch.full((), 1 / (1 - exact_probability(self.p)), dtype=hidden_states.dtype)
        return hidden_states * torch.where(dropped, 0.0, scale)


__all__ = ["Dropout", "drop_mask", "exact_probability"]
