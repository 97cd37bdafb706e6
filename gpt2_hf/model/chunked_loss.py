"""Cross-entropy of a language-model head without ever holding all the logits.

In: hidden states, the head's weight, target ids. Out: the summed loss, or without gradients that of
each position. With V = 50,257 the logits are the largest tensor of a GPT-2 step by far; here they exist
for `rows_per_chunk` positions at a time, and their gradient is formed in the forward pass while they do,
written over them. On a CPU the passes of the softmax go over a few rows at a time, so that these stay in
its cache.

This file travels with a saved model (`trust_remote_code=True`): relative imports only.

Legend: N scored positions, C width, V vocabulary, R rows of one chunk.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .differentiable_once import differentiable_once

IGNORE_INDEX = -100

# 512 rows x 50,257 x 4 bytes is 103 MB; in 16 bits twice as many rows take the same. On two Zen 4 cores larger
# chunks are no faster; a GPU needs more rows to fill its matrix units, and has 0.6 GB of logits with so many.
_ROWS_PER_CHUNK = {"cpu": 512, "cuda": 2048}
# In 16 bits cuBLAS is fast where rows begin at multiples of 16 bytes, which rows of 50,257 do not; nanoGPT takes 64.
_CPU_ROWS_MULTIPLE_OF = 64
_HEAD_ROWS_MULTIPLE_OF = {"cuda": 64}
# 3.2 MB in fp32, which stay in a CPU's cache: 16 rows of 50,257.
_CPU_LOGITS_PER_SOFTMAX = 16 * 50_257
# In fp32, MKL multiplies with all of a wide matrix at two thirds of the rate that it has for some tokens at a time.
_CPU_TOKENS_PER_PRODUCT = 512
_TOKENS_PER_WIDE_PRODUCT = 8192

# Logits `[R, V]` of a chunk and the rows that they are of, to the summed loss and its gradient, written over them.
ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]


def chunked_cross_entropy(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    label_smoothing: float = 0.0,
    num_padding_rows: int = 0,
    copies_of_last_row: int = 1,
    rows_per_chunk: int | None = None,
) -> Tensor:
    """Sum of the token losses of `softmax(hidden_states @ weight.T)` against `labels`.

    Equal to `torch.nn.functional.cross_entropy(..., reduction="sum")` on the full logits. Under
    autocast the products run in the autocast dtype; softmax, loss and the accumulated weight gradient
    are at least fp32. Differentiable once.

    Args:
        hidden_states: `[..., C]`, the last hidden states.
        weight: `[V, C]`, the head.
        labels: `[...]`, int64 ids already aligned with `hidden_states` (no shift is applied); −100 is not scored.
        label_smoothing: mass in [0, 1) spread evenly over the vocabulary.
        num_padding_rows: number of last rows of `weight` that stand for no token and get no probability.
        copies_of_last_row: number of tokens that the last row before those stands for. No label may be one of them.
        rows_per_chunk: positions whose logits are held at once; chosen by device when left out.

    Returns:
        A scalar, fp32 (fp64 for fp64 input), the sum in nats. 0 when no position is scored.
    """
    hidden_states = hidden_states.reshape(-1, hidden_states.shape[-1]).to(weight.device)
    labels = labels.reshape(-1).to(weight.device)
    device_type = weight.device.type
    dtype = product_dtype(hidden_states, device_type)
    rows = rows_per_chunk or default_rows_per_chunk(device_type, dtype)
    num_rows = weight.shape[0] - num_padding_rows
    if torch.compiler.is_compiling():
        need_grads = [torch.is_grad_enabled() and tensor.requires_grad for tensor in (hidden_states, weight)]
        loss, *_ = _loss_operator(
            hidden_states,
            weight,
            labels,
            num_rows,
            copies_of_last_row,
            label_smoothing,
            rows,
            dtype,
            *need_grads,
        )
        return loss
    targets = _Targets(num_rows, copies_of_last_row, label_smoothing)
    if device_type == "cpu":
        # Positions that are not scored need no logits at all. On an accelerator the number of kept
        # rows would have to be read back by the host, which costs more than it saves.
        targets, scored = _look_for_unscored(targets, labels)
        if scored is not None:
            hidden_states, labels = hidden_states[scored], labels[scored]
    need_grad = torch.is_grad_enabled() and (hidden_states.requires_grad or weight.requires_grad)
    chunk_loss = _cross_entropy_of_chunks(labels, targets, dtype, need_grad)
    return sum_over_chunks(hidden_states, weight, chunk_loss, rows, dtype)


def product_dtype(hidden_states: Tensor, device_type: str) -> torch.dtype:
    """The type in which they are multiplied on a device: autocast's where it is on."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):  # torch would refuse that one
        return torch.get_autocast_dtype(device_type)
    return hidden_states.dtype


def default_rows_per_chunk(device_type: str, dtype: torch.dtype) -> int:
    """Positions whose logits are held at once."""
    rows = _ROWS_PER_CHUNK.get(device_type, 1024)
    return 2 * rows if device_type == "cpu" and dtype.itemsize == 2 else rows


def cpu_rows_per_softmax(logits: Tensor) -> int:
    """Rows of `[R, V]` that the passes of a softmax go over at once on a CPU: fewer the larger the vocabulary."""
    return max(_CPU_LOGITS_PER_SOFTMAX // max(logits.shape[1], 1), 1)


def sum_over_chunks(
    hidden_states: Tensor, weight: Tensor, chunk_loss: ChunkLoss, rows_per_chunk: int, dtype: torch.dtype
) -> Tensor:
    """The sum of a loss of logits, made a chunk at a time, with its gradients. Differentiable once.

    Args:
        hidden_states: `[N, C]`.
        weight: `[V, C]`, the head.
        chunk_loss: the loss of some rows from their logits `[R, V']`, V' ≥ V: the rows that it may be given more,
            to suit the device's products, stand for no token and must get a gradient of 0.
        rows_per_chunk: R at the most.
        dtype: of the products.

    Returns:
        A scalar, at least fp32.
    """
    loss: Tensor = _ChunkedLoss.apply(
        hidden_states, weight, chunk_loss, rows_per_chunk, dtype, torch.is_grad_enabled()
    )
    return loss


def _cross_entropy_of_chunks(labels: Tensor, targets: "_Targets", dtype: torch.dtype, need_grad: bool) -> ChunkLoss:
    loss_dtype = torch.promote_types(dtype, torch.float32)
    return lambda logits, rows: _chunk_loss(logits, labels[rows], targets, loss_dtype, need_grad)


@torch.no_grad()
def chunked_token_losses(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    num_padding_rows: int = 0,
    rows_per_chunk: int | None = None,
) -> Tensor:
    """The loss of each position, of which `chunked_cross_entropy` is the sum; its arguments, but no gradients.

    Returns:
        `[...]` as `labels`, fp32 (fp64 for fp64 input), in nats; 0 at positions that are not scored.
    """
    device_type = weight.device.type
    dtype = product_dtype(hidden_states, device_type)
    loss_dtype = torch.promote_types(dtype, torch.float32)
    labels = labels.to(weight.device)
    scored = labels != IGNORE_INDEX
    hidden_states, target_ids = hidden_states.to(weight.device)[scored], labels[scored]  # [N, C], [N]
    targets = _Targets(weight.shape[0] - num_padding_rows)
    rows = rows_per_chunk or default_rows_per_chunk(device_type, dtype)
    losses = []
    with torch.autocast(device_type, enabled=False):
        products = HeadProducts(aligned(weight.to(dtype)))
        for chunk, ids in zip(hidden_states.to(dtype).split(rows), target_ids.split(rows), strict=True):
            logits = products.logits(chunk)
            block = cpu_rows_per_softmax(logits) if device_type == "cpu" else rows
            for values, block_ids in zip(logits.split(block), ids.split(block), strict=True):
                losses.append(_row_losses(values.to(loss_dtype), block_ids, targets, need_softmax=False))
    result = torch.zeros(labels.shape, dtype=loss_dtype, device=weight.device)
    return result.masked_scatter_(scored, torch.cat(losses)) if losses else result


def _look_for_unscored(targets: "_Targets", labels: Tensor) -> tuple["_Targets", Tensor | None]:
    """The targets of scored positions alone, and which these are, bool `[N]`; `None` if all are."""
    scored = labels != IGNORE_INDEX
    return targets._replace(all_scored=True), None if bool(scored.all()) else scored


class _Targets(NamedTuple):
    """What the labels mean."""

    num_rows: int  # ids from here on only pad the vocabulary
    copies_of_last_row: int = 1
    label_smoothing: float = 0.0
    all_scored: bool = False  # no label is −100

    @property
    def num_tokens(self) -> int:
        """The size of the vocabulary that the softmax is over."""
        return self.num_rows - 1 + self.copies_of_last_row


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: Tensor,  # [N, C]
        weight: Tensor,  # [V, C]
        chunk_loss: ChunkLoss,
        rows_per_chunk: int,
        dtype: torch.dtype,
        grad_enabled: bool,
    ) -> Tensor:
        needs = [grad_enabled and need for need in ctx.needs_input_grad[:2]]
        total, *grads = _loss_and_gradients(hidden_states, weight, chunk_loss, rows_per_chunk, dtype, *needs)
        ctx.grad_dtypes = hidden_states.dtype, weight.dtype
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return *_scaled(grad_hidden, grad_weight, grad_output, ctx.grad_dtypes), None, None, None, None


def _scaled(
    grad_hidden: Tensor | None,
    grad_weight: Tensor | None,
    grad_output: Tensor,
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients, which are those of the plain sum, times that of the sum.

    Scaling them only here, after the sums, keeps fp16 away from the underflow that 1 / number of tokens would cause.
    """
    if grad_hidden is not None:
        grad_hidden = grad_hidden.to(dtypes[0]) * grad_output
    if grad_weight is not None:
        grad_weight = (grad_weight * grad_output).to(dtypes[1])
    return grad_hidden, grad_weight


def _loss_and_gradients(
    hidden_states: Tensor,  # [N, C]
    weight: Tensor,  # [V, C]
    chunk_loss: ChunkLoss,
    rows_per_chunk: int,
    dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    loss_dtype = torch.promote_types(dtype, torch.float32)
    grad_hidden = torch.empty_like(hidden_states, dtype=dtype) if need_hidden else None
    grad_weight = None
    total = hidden_states.new_zeros((), dtype=loss_dtype)
    with torch.autocast(hidden_states.device.type, enabled=False):
        head = aligned(weight.to(dtype))
        products = HeadProducts(head)
        for first in range(0, hidden_states.shape[0], rows_per_chunk):
            rows = slice(first, first + rows_per_chunk)
            chunk = with_few_lengths(hidden_states[rows].to(dtype), dtype)
            num_rows = len(hidden_states[rows])
            logits = products.logits(chunk)
            loss, grad_logits = chunk_loss(logits[:num_rows], rows)
            total += loss
            if num_rows < len(chunk):  # on a CPU, where the gradient is written over the logits
                logits[num_rows:] = 0.0
                grad_logits = logits
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_logits @ head)[:num_rows]
            if need_weight:
                grad_weight = products.add_grad_weight(grad_weight, grad_logits, chunk, loss_dtype)
    if need_weight:
        grad_weight = (
            torch.zeros_like(weight, dtype=loss_dtype) if grad_weight is None else grad_weight[: weight.shape[0]]
        )
    return total, grad_hidden, grad_weight


# ---- for a compiler: one operation, whatever the number of chunks ----


# A name for each copy of this file: one that travels with a saved model may be loaded beside the package's own, and
# torch takes the first operation away when a second one gets its name. In hexadecimal, since the module of a copy is
# named after its folder, and torch takes only ASCII letters, digits and _.
_OPERATOR = f"gpt2_hf::chunked_cross_entropy_{__name__.encode().hex()}"


@torch.library.custom_op(_OPERATOR, mutates_args=())
def _loss_operator(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    num_rows: int,
    copies_of_last_row: int,
    label_smoothing: float,
    rows_per_chunk: int,
    dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and both gradients; one that is not needed is empty. Traced, the loop would be a graph for each length."""
    targets = _Targets(num_rows, copies_of_last_row, label_smoothing)
    scored = None
    if weight.device.type == "cpu":
        targets, scored = _look_for_unscored(targets, labels)
    own = (hidden_states, labels) if scored is None else (hidden_states[scored], labels[scored])
    chunk_loss = _cross_entropy_of_chunks(own[1], targets, dtype, need_hidden or need_weight)
    total, grad_hidden, grad_weight = _loss_and_gradients(
        own[0], weight, chunk_loss, rows_per_chunk, dtype, need_hidden, need_weight
    )
    if grad_hidden is not None and scored is not None:
        grad_hidden = torch.zeros_like(hidden_states, dtype=dtype).masked_scatter_(scored.unsqueeze(1), grad_hidden)
    empty = hidden_states.new_empty(0)
    return (
        total,
        empty if grad_hidden is None else grad_hidden,
        empty.clone() if grad_weight is None else grad_weight,
    )


@_loss_operator.register_fake
def _(
    hidden_states: Tensor,
    weight: Tensor,
    labels: Tensor,
    num_rows: int,
    copies_of_last_row: int,
    label_smoothing: float,
    rows_per_chunk: int,
    dtype: torch.dtype,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    loss_dtype = torch.promote_types(dtype, torch.float32)
    return (
        hidden_states.new_empty((), dtype=loss_dtype),
        torch.empty_like(hidden_states, dtype=dtype) if need_hidden else hidden_states.new_empty(0),
        torch.empty_like(weight, dtype=loss_dtype) if need_weight else hidden_states.new_empty(0),
    )


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden_states, weight, *_, need_hidden, need_weight = inputs
    ctx.grad_dtypes, ctx.needs = (hidden_states.dtype, weight.dtype), (need_hidden, need_weight)
    ctx.save_for_backward(*output[1:])


@differentiable_once
def _give_gradients(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Any, ...]:
    (grad_hidden, grad_weight), (need_hidden, need_weight) = ctx.saved_tensors, ctx.needs
    grads = _scaled(
        grad_hidden if need_hidden else None, grad_weight if need_weight else None, grad_output, ctx.grad_dtypes
    )
    return *grads, *[None] * 8


_loss_operator.register_autograd(_give_gradients, setup_context=_keep_gradients)


# ---- one chunk ----


def aligned(head: Tensor) -> Tensor:
    """`[V, C]` with so many more rows as the device's matrix products want; the softmax leaves them out."""
    missing = -head.shape[0] % _HEAD_ROWS_MULTIPLE_OF.get(head.device.type, 1) if head.dtype.itemsize == 2 else 0
    return nn.functional.pad(head, (0, 0, 0, missing)) if missing else head


def with_few_lengths(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """`[..., R, C]` with rows of zeros, so that R is one of few: in 16 bits on a CPU each one costs kernels of oneDNN.

    Args:
        rows: what is multiplied.
        dtype: of the products.
    """
    missing = -rows.shape[-2] % _CPU_ROWS_MULTIPLE_OF if rows.is_cpu and dtype.itemsize == 2 else 0
    return nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


class HeadProducts:
    """The products with all tokens. On a CPU they reuse memory: fresh pages cost as much as a pass over them."""

    def __init__(self, head: Tensor):
        self._head = head
        self._buffers: dict[str, Tensor] = {}
        fp32_on_cpu = head.device.type == "cpu" and head.dtype == torch.float32
        self._tokens_at_once = _CPU_TOKENS_PER_PRODUCT if fp32_on_cpu else head.shape[0]

    def logits(self, chunk: Tensor) -> Tensor:
        """`chunk @ head.T`, `[R, C]` to `[R, V]`; the first chunk is the one with the most rows."""
        out = self._buffer("logits", chunk.shape[0], self._head.shape[0])
        parts = self._head.split(self._tokens_at_once), out.split(self._tokens_at_once, dim=1)
        for head_part, out_part in zip(*parts, strict=True):
            torch.mm(chunk, head_part.t(), out=out_part)
        return out

    def add_grad_weight(self, total: Tensor | None, grad_logits: Tensor, chunk: Tensor, dtype: torch.dtype) -> Tensor:
        """`total + grad_logits.T @ chunk`, `[V, C]` in a dtype that may be wider, in the memory of `total`."""
        if chunk.dtype == torch.float16 or (chunk.dtype != dtype and chunk.device.type == "cuda"):
            if total is None:
                total = torch.zeros_like(self._head, dtype=dtype)
            # some tokens at a time: the product of all, in fp32, would be as large as the total
            parts = total.split(_TOKENS_PER_WIDE_PRODUCT), grad_logits.split(_TOKENS_PER_WIDE_PRODUCT, dim=1)
            for total_part, grad_part in zip(*parts, strict=True):
                total_part += _wide_product(grad_part.t(), chunk, dtype)
            return total
        if dtype != chunk.dtype:
            term = torch.mm(grad_logits.t(), chunk, out=self._buffer("grad_weight", *self._head.shape))
            return _add(total, term, dtype)
        if total is None:
            total = torch.zeros_like(self._head)
        parts = total.split(self._tokens_at_once), grad_logits.split(self._tokens_at_once, dim=1)
        for total_part, grad_part in zip(*parts, strict=True):
            total_part.addmm_(grad_part.t(), chunk)
        return total

    def _buffer(self, name: str, num_rows: int, num_columns: int) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = self._head.new_empty(num_rows, num_columns)
        return self._buffers[name][:num_rows]


def _wide_product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """`a @ b` of 16 bits in a wider dtype: a sum over thousands of rows can overflow fp16, before any loss scaling."""
    if a.device.type == "cuda" and torch.version.hip is None:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def _add(total: Tensor | None, term: Tensor, dtype: torch.dtype) -> Tensor:
    """`total + term` in the memory of `total`, whose dtype may be wider."""
    if total is None:
        return term.to(dtype, copy=True)
    if total.device.type != "cpu":
        return total.add_(term)
    # Of mixed dtypes, torch makes a converted copy first on a CPU; that of a block stays in the cache.
    for block, addend in zip(total.split(1024), term.split(1024), strict=True):
        block += addend
    return total


def _chunk_loss(
    logits: Tensor, labels: Tensor, targets: _Targets, loss_dtype: torch.dtype, need_grad: bool
) -> tuple[Tensor, Tensor]:
    """Loss sum of one chunk and its gradient `[R, V]`, which on a CPU is written over the logits."""
    if logits.device.type != "cpu":
        if logits.dtype.itemsize == 2 and not (targets.label_smoothing or logits.device.type == "mps"):
            return _mixed_softmax_loss(logits, labels, targets, loss_dtype, need_grad)
        loss, grad = _softmax_loss(logits.to(loss_dtype), labels, targets, need_grad)
        return loss, grad.to(logits.dtype)
    losses = []
    rows = cpu_rows_per_softmax(logits)
    work = logits.new_empty(min(rows, len(logits)), logits.shape[1], dtype=loss_dtype)
    for block, block_labels in zip(logits.split(rows), labels.split(rows), strict=True):
        in_place = block.dtype == loss_dtype
        values = block if in_place else work[: block.shape[0]].copy_(block)
        loss, grad = _softmax_loss(values, block_labels, targets, need_grad)
        losses.append(loss)
        if need_grad and not in_place:
            block.copy_(grad)
    return torch.stack(losses).sum(), logits


def _softmax_loss(logits: Tensor, labels: Tensor, targets: _Targets, need_grad: bool) -> tuple[Tensor, Tensor]:
    """Loss sum of some rows and its gradient, which is written over the logits."""
    scored = None if targets.all_scored else labels != IGNORE_INDEX
    ids = labels if scored is None else torch.where(scored, labels, 0)
    nll = _row_losses(logits, ids, targets, need_grad)
    loss = (nll if scored is None else torch.where(scored, nll, 0.0)).sum()
    if not need_grad:
        return loss, logits
    # d loss / d logits = softmax - target distribution; rows that are not scored get zero.
    grad, ids = logits, ids.unsqueeze(1)
    smoothing, copies, last = targets.label_smoothing, targets.copies_of_last_row, targets.num_rows - 1
    if smoothing:
        grad[:, :last] -= smoothing / targets.num_tokens
        grad[:, last] -= smoothing * copies / targets.num_tokens
    grad.scatter_add_(1, ids, torch.full_like(ids, smoothing - 1.0, dtype=grad.dtype))
    if scored is not None:
        grad *= scored.unsqueeze(1)
    return loss, grad


def _row_losses(logits: Tensor, ids: Tensor, targets: _Targets, need_softmax: bool) -> Tensor:
    """Loss of each row `[R]` for its target `[R]`; the softmax, if needed, is written over the logits `[R, V]`."""
    smoothing, copies = targets.label_smoothing, targets.copies_of_last_row
    last = targets.num_rows - 1
    logits[:, targets.num_rows :] = -math.inf
    target_logits = logits.gather(1, ids.unsqueeze(1)).squeeze(1)
    mean_logits = None
    if smoothing:
        mean_logits = (logits[:, :last].sum(dim=1) + copies * logits[:, last]) / targets.num_tokens
    if copies > 1:
        logits[:, last] += math.log(copies)
    log_normalizer = softmax_(logits, need_softmax)
    nll = log_normalizer - target_logits
    if mean_logits is not None:
        nll = (1.0 - smoothing) * nll + smoothing * (log_normalizer - mean_logits)
    return nll


def _mixed_softmax_loss(
    logits: Tensor, labels: Tensor, targets: _Targets, loss_dtype: torch.dtype, need_grad: bool
) -> tuple[Tensor, Tensor]:
    """As `_softmax_loss` for logits in 16 bits on an accelerator: 26 bytes are read or written for each instead of 52.

    Its kernels convert what they read and write, so there is no copy in another dtype; and division by the
    normalizer, mask and cast of the gradient are one multiplication.
    """
    scored = torch.ones_like(labels).bool() if targets.all_scored else labels != IGNORE_INDEX
    ids = torch.where(scored, labels, 0).unsqueeze(1)  # [R, 1]
    logits[:, targets.num_rows :] = -math.inf
    target_logits = logits.gather(1, ids).squeeze(1).to(loss_dtype)
    largest = logits.amax(dim=1).to(loss_dtype)
    exponentials = torch.sub(logits, largest.unsqueeze(1))
    if targets.copies_of_last_row > 1:
        exponentials[:, targets.num_rows - 1] += math.log(targets.copies_of_last_row)
    normalizer = exponentials.exp_().sum(dim=1)
    loss = torch.where(scored, normalizer.log() + largest - target_logits, 0.0).sum()
    if not need_grad:
        return loss, logits
    factor = (scored / normalizer).unsqueeze(1)
    grad_of_targets = exponentials.gather(1, ids) * factor - scored.unsqueeze(1).to(loss_dtype)
    grad = torch.mul(exponentials, factor, out=logits)
    return loss, grad.scatter_(1, ids, grad_of_targets.to(grad.dtype))


def softmax_(logits: Tensor, need_softmax: bool) -> Tensor:
    """Write the softmax of each row over `logits` `[R, V]`; the logarithm of its denominator `[R]`.

    These passes over [R, V] are what a small model's head spends its time on.
    """
    largest = logits.amax(dim=1)
    if logits.device.type == "cpu":
        # torch's kernel has a faster exponential, and reads a row twice before it writes over it. What it makes of
        # the largest logit is 1 / the denominator.
        torch.softmax(logits, dim=1, out=logits)
        return largest - logits.amax(dim=1).log()
    # In place and with a single exponential: another [R, V] in fp32 would be the largest tensor of a step.
    exponentials = logits.sub_(largest.unsqueeze(1)).exp_()
    normalizer = exponentials.sum(dim=1)
    if need_softmax:
        exponentials.div_(normalizer.unsqueeze(1))
    return normalizer.log() + largest


__all__ = [
    "IGNORE_INDEX",
    "ChunkLoss",
    "HeadProducts",
    "aligned",
    "chunked_cross_entropy",
    "chunked_token_losses",
    "cpu_rows_per_softmax",
    "default_rows_per_chunk",
    "product_dtype",
    "softmax_",
    "sum_over_chunks",
    "with_few_lengths",
]
