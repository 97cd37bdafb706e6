"""Refuse a second derivative where the backward pass of an operation has none.

This file travels with a saved model (`trust_remote_code=True`): relative imports only.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MESSAGE = (
    b"this operation can be differentiated once; for a second derivative use attn_implementation='eager', call the "
    b"model without labels, and compute the loss from its logits"
)


def differentiable_once(backward: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
    """Decorate a backward pass: whoever differentiates its gradients gets an error.

    torch's `once_differentiable` gives none where the incoming gradient is a constant, as that of a loss is: the
    gradients then are constants as well, and a second derivative lacks them without a word.
    """

    @functools.wraps(backward)
    def guarded(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        with torch.no_grad():
            outputs = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # without `create_graph`
            return outputs
        leaves = [None if output is None else output.detach().requires_grad_() for output in outputs]
        guards: tuple[Any, ...] = torch._C._functions.DelayedError(_MESSAGE, len(leaves))(*leaves)
        return guards

    return guarded


__all__ = ["differentiable_once"]
