"""Weights in the layout of oneDNN's products, for generating text on a CPU in 16 bits.

To generate a token every weight is read once, and nothing else takes long. torch's product of a few rows with a plain
16-bit matrix reads it at about two thirds of the rate that it reads a packed one. Packing takes a copy of the weights
and as long as a few tokens, so it is for many of them.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@contextlib.contextmanager
def packed_weights(model: nn.Module) -> Iterator[bool]:
    """Let the linear layers of a model use packed copies of their weights; no gradients inside.

    Args:
        model: left as it is unless it is a bf16 model on a CPU whose torch has the kernels.

    Yields:
        Whether they do.
    """
    layers = [module for module in model.modules() if type(module) in (Conv1D, nn.Linear) and _can_pack(module.weight)]
    for layer in layers:
        layer.forward = _packed_forward(layer)
    try:
        yield bool(layers)
    finally:
        for layer in layers:
            del layer.forward  # that of the class is behind it


def _can_pack(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def _packed_forward(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    # The kernels that torch's own compiler uses for layers whose weights no longer change.
    weight, bias = layer.weight.detach(), layer.bias
    if isinstance(layer, Conv1D):
        weight = weight.t().contiguous()  # [out, in]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)

    def forward(hidden_states: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(hidden_states, packed, bias, "none", [], "")

    return forward
