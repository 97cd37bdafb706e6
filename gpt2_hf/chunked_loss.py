"""Cross-entropy of a language-model head without ever holding all the logits.

In: hidden states, the head's weight, target ids. Out: the summed loss. With V = 50,257 the logits
are the largest tensor of a GPT-2 step by far; here they exist for `rows_per_chunk` positions at a
time, and their gradient is formed in the forward pass while they do.

This file travels with a saved model (`trust_remote_code=True`): relative imports only.

Legend: N scored positions, C width, V vocabulary, R rows of one chunk.
"""

from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100

# 512 rows x 50,257 x 4 bytes is 103 MB. On two Zen 4 cores larger chunks are no faster; a GPU needs
# more rows to fill its matrix units.
_ROWS_PER_CHUNK = {"cpu": 512, "cuda": 4096}


def chunked_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    ignore_index: int = IGNORE_INDEX,
    rows_per_chunk: int | None = None,
) -> Tensor:
    """Sum of the token losses of `softmax(hidden_states @ weight.T)` against `labels`.

    Equal to `torch.nn.functional.cross_entropy(..., reduction="sum")` on the full logits. Under
    autocast the products run in the autocast dtype; softmax, loss and the accumulated weight gradient
    are fp32. Differentiable once.

    Args:
        hidden_states: `[..., C]`, the last hidden states.
        weight: `[V, C]`, the head.
        labels: `[...]`, int64 ids already aligned with `hidden_states` (no shift is applied).
        label_smoothing: mass in [0, 1) spread evenly over the vocabulary.
        ignore_index: label of positions that are not scored.
        rows_per_chunk: positions whose logits are held at once; chosen by device when left out.

    Returns:
        A fp32 scalar, the sum in nats. 0 when no position is scored.
    """
    hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1])
    labels = labels.reshape(-1).to(hidden_states.device)
    device_type = hidden_states.device.type
    if device_type == "cpu":
        # Positions that are not scored need no logits at all. On an accelerator the number of kept
        # rows would have to be read back by the host, which costs more than it saves.
        scored = labels != ignore_index
        if not bool(scored.all()):
            hidden_states, labels = hidden_states[scored], labels[scored]
    dtype = hidden_states.dtype
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    rows = rows_per_chunk or _ROWS_PER_CHUNK.get(device_type, 1024)
    return _ChunkedCrossEntropy.apply(
        hidden_states, weight, labels, label_smoothing, ignore_index, rows, dtype, torch.is_grad_enabled()
    )


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,  # [N, C]
        weight: Tensor,  # [V, C]
        labels: Tensor,  # [N]
        label_smoothing: float,
        ignore_index: int,
        rows_per_chunk: int,
        dtype: torch.dtype,
        grad_enabled: bool,
    ) -> Tensor:
        need_hidden = grad_enabled and ctx.needs_input_grad[0]
        need_weight = grad_enabled and ctx.needs_input_grad[1]
        grad_hidden = torch.empty_like(hidden_states, dtype=dtype) if need_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        total = hidden_states.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden_states.device.type, enabled=False):
            head = weight.to(dtype)
            for start in range(0, hidden_states.shape[0], rows_per_chunk):
                rows = slice(start, start + rows_per_chunk)
                chunk = hidden_states[rows].to(dtype)
                loss, grad_logits = _chunk_loss(
                    chunk @ head.t(), labels[rows], label_smoothing, ignore_index, need_hidden or need_weight
                )
                total += loss
                if grad_hidden is not None:
                    torch.mm(grad_logits, head, out=grad_hidden[rows])
                if grad_weight is not None:
                    grad_weight += grad_logits.t() @ chunk
        ctx.grad_dtypes = hidden_states.dtype, weight.dtype
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        # The gradients are those of the plain sum. Scaling them only here, after the sums, keeps fp16
        # away from the underflow that 1 / number of tokens would cause.
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.grad_dtypes
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * grad_output).to(hidden_dtype)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad_output).to(weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _chunk_loss(
    logits: Tensor, labels: Tensor, label_smoothing: float, ignore_index: int, need_grad: bool
) -> tuple[Tensor, Tensor]:
    """Loss sum of one chunk and, written over the logits, its gradient `[R, V]` in the logits' dtype."""
    dtype = logits.dtype
    logits = logits.float()
    scored = labels != ignore_index
    targets = torch.where(scored, labels, 0).unsqueeze(1)  # [R, 1]
    target_logits = logits.gather(1, targets).squeeze(1)
    mean_logits = logits.mean(dim=1) if label_smoothing else None
    # Softmax by hand, in place and with a single exponential: these passes over [R, V] are what a small model's
    # head spends its time on.
    largest = logits.amax(dim=1)
    exponentials = logits.sub_(largest.unsqueeze(1)).exp_()
    normalizer = exponentials.sum(dim=1)
    log_normalizer = normalizer.log() + largest
    nll = log_normalizer - target_logits
    if mean_logits is not None:
        nll = (1.0 - label_smoothing) * nll + label_smoothing * (log_normalizer - mean_logits)
    loss = torch.where(scored, nll, 0.0).sum()
    if not need_grad:
        return loss, logits
    # d loss / d logits = softmax - target distribution; rows that are not scored get zero.
    grad = exponentials.div_(normalizer.unsqueeze(1))
    if label_smoothing:
        grad -= label_smoothing / grad.shape[1]
    grad.scatter_add_(1, targets, torch.full_like(targets, label_smoothing - 1.0, dtype=grad.dtype))
    grad *= scored.unsqueeze(1)
    return loss, grad.to(dtype)


__all__ = ["IGNORE_INDEX", "chunked_cross_entropy"]
