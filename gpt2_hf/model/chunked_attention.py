"""Causal attention for training on a CPU, with dropout and without ever holding all the scores.

In: query, key and value. Out: the attended values, differentiable once. torch's own kernel for CPUs knows neither
dropout nor documents of unequal length; with dropout, torch keeps several matrices of all scores, the future's too.
Here they exist for some rows of some heads at a time, small enough for the processor's cache, end at the diagonal and
at the document's edges, and are formed again for the gradients (FlashAttention, Dao et al. 2022, arXiv:2205.14135,
algorithms 1 and 4).

This file travels with a saved model (`trust_remote_code=True`): relative imports only.

Legend: B batch, H heads, T time, D head size, N = B * H, G heads of one chunk, R rows of one chunk, E keys they see.
"""

import contextlib
import itertools
import math
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .differentiable_once import differentiable_once
from .dropout import draw_seed, drop_, exact_probability, keep_mask

# On two Zen 4 cores, 128 rows of 12 heads of 1,024 keys: 6 MB of scores in fp32.
_ROWS_PER_CHUNK = 128
_SCORES_PER_CHUNK = 12 * 128 * 1024
# In 16 bits oneDNN makes a kernel for each shape of a product, so documents of many lengths share those of a few.
_ROWS_MULTIPLE_OF = 16
# Weights are powers of 2: torch's kernel for them takes a fifth of the time of the one for e.
_LOG2_E = math.log2(math.e)

_lock = threading.Lock()
_found: list[str] = []  # oneDNN's precision before, once for each thread that has changed it


def chunked_causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaling: float,
    dropout: float = 0.0,
    boundaries: Sequence[int] | None = None,
) -> Tensor:
    """`dropout(softmax(query @ key.T * scaling + causal mask)) @ value`.

    Scores and softmax are at least fp32; the products with the weights run in the inputs' dtype.

    Args:
        query, key, value: `[B, H, T, D]`, on a CPU.
        scaling: factor of the scores.
        dropout: probability that a weight is dropped, in [0, 1).
        boundaries: `[0, end of document 1, …]`, if each row holds several documents, hidden from each other. Positions
            after the last one belong to no document.

    Returns:
        `[B, H, T, D]`, in the inputs' dtype; 0 where there is no document.
    """
    if boundaries is None:
        boundaries = (0, query.shape[-2])
    return _ChunkedCausalAttention.apply(query, key, value, scaling, dropout, tuple(boundaries))


class _Chunk(NamedTuple):
    heads: slice
    rows: slice
    keys: slice
    sees_all: bool  # the last rows of a document, which see all of it
    num_rows: int  # from here on the rows belong to the next document, whose own chunks come later, and overwrite them


class _ChunkedCausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        dropout: float,
        boundaries: tuple[int, ...],
    ) -> Tensor:
        shape = query.shape
        query, key, value = (x.reshape(-1, *shape[-2:]) for x in (query, key, value))  # [N, T, D]
        dtype = torch.promote_types(query.dtype, torch.float32)
        factor = scaling * _LOG2_E
        wide_query, wide_key = query.to(dtype), key.to(dtype)
        output = torch.empty_like(query)
        log_normalizer = query.new_empty(*query.shape[:2], 1, dtype=dtype)  # to base 2
        seeds: list[int] = []
        buffers = _Buffers()
        with torch.autocast("cpu", enabled=False), _exact_products(query.dtype):
            for heads, rows, keys, _, _ in _chunks(query, boundaries):
                scores = buffers.product("scores", wide_query[heads, rows], wide_key[heads, keys].transpose(1, 2))
                _hide_future(scores)
                largest = scores.amax(dim=-1, keepdim=True) * factor
                weights = torch.add(-largest, scores, alpha=factor, out=scores).exp2_()
                normalizer = weights.sum(dim=-1, keepdim=True)
                log_normalizer[heads, rows] = normalizer.log2() + largest
                weights = buffers.cast("weights", weights, query.dtype)
                if dropout:
                    seeds.append(draw_seed())
                    drop_(weights, keep_mask(tuple(weights.shape), dropout, seeds[-1]))
                    normalizer *= 1 - exact_probability(dropout)
                output[heads, rows] = torch.bmm(weights, value[heads, keys]) / normalizer
        output[:, boundaries[-1] :] = 0.0
        ctx.save_for_backward(query, key, value, output, log_normalizer)
        ctx.scaling, ctx.dropout, ctx.seeds, ctx.boundaries = scaling, dropout, seeds, boundaries
        return output.view(shape)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        query, key, value, output, log_normalizer = ctx.saved_tensors
        shape, dtype = grad_output.shape, log_normalizer.dtype
        wide_grad = grad_output.reshape(query.shape).to(dtype)
        # Sum over the keys of weight x its gradient, which is that of output x its gradient.
        correction = (wide_grad * output).sum(dim=-1, keepdim=True)  # [N, T, 1]
        if ctx.dropout:
            wide_grad = wide_grad / (1 - exact_probability(ctx.dropout))
        grad_output = wide_grad.to(query.dtype)
        factor = ctx.scaling * _LOG2_E
        wide_query, wide_key = query.to(dtype), key.to(dtype)
        grad_query, grad_key, grad_value = (torch.empty_like(x, dtype=dtype) for x in (query, key, value))
        buffers = _Buffers()
        for i, chunk in enumerate(_chunks(query, ctx.boundaries)):
            heads, rows, keys, sees_all, num_rows = chunk
            with _exact_products(query.dtype):
                scores = buffers.product("scores", wide_query[heads, rows], wide_key[heads, keys].transpose(1, 2))
            _hide_future(scores)
            weights = torch.add(-log_normalizer[heads, rows], scores, alpha=factor, out=scores).exp2_()
            grads = buffers.product("half_grads", grad_output[heads, rows], value[heads, keys].transpose(1, 2))
            if ctx.dropout:  # the mask of the forward pass, made anew
                keep = keep_mask(tuple(weights.shape), ctx.dropout, ctx.seeds[i])
                drop_(grads, keep)
            grads = buffers.cast("grads", grads, dtype)
            grad_scores = grads.sub_(correction[heads, rows]).mul_(weights)
            weights = buffers.cast("weights", weights, query.dtype)
            if ctx.dropout:
                drop_(weights, keep)
            grad_scores = buffers.cast("grad_scores", grad_scores, query.dtype)
            for of_next_document in (weights[:, num_rows:], grad_scores[:, num_rows:]):
                of_next_document.zero_()
            grad_query[heads, rows] = torch.bmm(grad_scores, key[heads, keys])
            key_term = torch.bmm(grad_scores.transpose(1, 2), query[heads, rows])
            value_term = torch.bmm(weights.transpose(1, 2), grad_output[heads, rows])
            if sees_all:
                grad_key[heads, keys], grad_value[heads, keys] = key_term, value_term
            else:
                grad_key[heads, keys] += key_term
                grad_value[heads, keys] += value_term
        for grad in (grad_query, grad_key, grad_value):
            grad[:, ctx.boundaries[-1] :] = 0.0
        grad_query *= ctx.scaling
        grad_key *= ctx.scaling
        return *(grad.to(query.dtype).view(shape) for grad in (grad_query, grad_key, grad_value)), None, None, None


def _chunks(query: Tensor, boundaries: Sequence[int]) -> Iterator[_Chunk]:
    """Heads, rows, and the keys that those rows may see; the last rows of a document come first."""
    num_heads, num_tokens, _ = query.shape
    multiple = _ROWS_MULTIPLE_OF if query.dtype.itemsize == 2 else 1
    for begin, end in itertools.pairwise(boundaries):
        length = end - begin
        heads_per_chunk = max(_SCORES_PER_CHUNK // (min(_ROWS_PER_CHUNK, length) * length), 1)
        for head in range(0, num_heads, heads_per_chunk):
            for row in reversed(range(begin, end, _ROWS_PER_CHUNK)):
                num_rows = min(_ROWS_PER_CHUNK, end - row)
                stop = min(row + num_rows + -num_rows % multiple, num_tokens)
                heads = slice(head, head + heads_per_chunk)
                yield _Chunk(heads, slice(row, stop), slice(begin, stop), row + num_rows == end, num_rows)


def _hide_future(scores: Tensor) -> None:
    """Set the scores `[G, R, E]` of keys that are later than their row to −∞; the last row sees all keys."""
    num_rows = scores.shape[1]
    diagonal = scores[:, :, -num_rows:]
    diagonal += scores.new_full((num_rows, num_rows), -math.inf).triu_(1)


@contextlib.contextmanager
def _exact_products(dtype: torch.dtype) -> Iterator[None]:
    """Let fp32 products of numbers that are bf16 be computed as bf16 with sums in fp32: the same, in half the time.

    The setting is the process's: fp32 products of other threads are computed so too while a thread is inside.
    """
    settings = getattr(torch.backends.mkldnn, "matmul", None)  # older than torch 2.9
    if dtype != torch.bfloat16 or settings is None:
        yield
        return
    with _lock:
        _found.append(_found[0] if _found else settings.fp32_precision)
        settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        with _lock:
            before = _found.pop()
            if not _found:
                settings.fp32_precision = before


class _Buffers:
    """Memory that chunks hand on to each other: fresh pages cost more than what is computed in them."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        """`[G, R, X]` times `[G, X, E]`."""
        return torch.bmm(a, b, out=self._view(name, (a.shape[0], a.shape[1], b.shape[2]), a.dtype))

    def cast(self, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """The tensor in another dtype."""
        if tensor.dtype == dtype:
            return tensor
        return self._view(name, tuple(tensor.shape), dtype).copy_(tensor)

    def _view(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        num_elements = math.prod(shape)
        if name not in self._flat or self._flat[name].numel() < num_elements:
            self._flat[name] = torch.empty(num_elements, dtype=dtype)
        return self._flat[name][:num_elements].view(shape)


__all__ = ["chunked_causal_attention"]
