"""One row of the head for all tokens that the training text never uses.

In: the head's weight and target ids. Out: a smaller head and its ids, with the same loss. For `--tie_unused_tokens`.

Tokens that are neither inputs nor targets have no gradient but that of the softmax, which for equal rows is equal. So
rows that begin equal stay equal, and the softmax over the whole vocabulary is one over the used tokens and a row that
counts for all others: the same loss and gradients for less work. WikiText-2 uses 27,102 of GPT-2's 50,257 tokens.

This file travels with a saved model (`trust_remote_code=True`): relative imports only.

Legend: V tokens of the vocabulary, U of them used, C width.
"""

from typing import Any

import torch
from torch import Tensor, nn

from .chunked_loss import IGNORE_INDEX
from .differentiable_once import differentiable_once

_NO_ROW = torch.iinfo(torch.int64).max


class UnusedTokens(nn.Module):
    """Which tokens a training text uses; nothing of it is saved with a model.

    Args:
        used: int64 `[U]`, the ids that are inputs or targets, in any order; some others do no harm.
        num_tokens: V, without rows that only pad the vocabulary.

    Raises:
        ValueError: if an id is not below V.
    """

    rows: Tensor  # [U + 1], the used tokens and one unused
    unused: Tensor  # [V - U]
    compact_ids: Tensor  # [V], the place of each token in `rows`

    def __init__(self, used: Tensor, num_tokens: int):
        super().__init__()
        used = used.unique()
        if len(used) and not 0 <= int(used[0]) <= int(used[-1]) < num_tokens:
            raise ValueError(f"used ids must be in [0, {num_tokens}), got {int(used[0])} to {int(used[-1])}")
        is_unused = torch.ones(num_tokens, dtype=torch.bool, device=used.device)
        is_unused[used] = False
        # An unused token has no row in the compact head. As a target it is out of range, an error: also of a head
        # that has more rows than tokens, to suit the device's matrix products.
        compact_ids = torch.full((num_tokens,), _NO_ROW, device=used.device)
        compact_ids[used] = torch.arange(len(used), device=used.device)
        unused = is_unused.nonzero().squeeze(1)
        self.register_buffer("rows", torch.cat([used, unused[:1]]), persistent=False)
        self.register_buffer("unused", unused, persistent=False)
        self.register_buffer("compact_ids", compact_ids, persistent=False)

    @torch.no_grad()
    def tie(self, weight: Tensor) -> None:
        """Make the rows of unused tokens in `weight` `[V, C]` equal, in place."""
        weight[self.unused] = weight[self.rows[-1]].clone()

    def compact_head(self, weight: Tensor) -> Tensor:
        """`[V, C]` to `[U + 1, C]`: the used rows, then one that stands for all others."""
        return _CompactHead.apply(weight, self.rows, self.unused)

    def compact_labels(self, labels: Tensor, any_token: bool = False) -> Tensor:
        """The rows of the compact head for target ids; positions that are not scored stay −100.

        Args:
            labels: int64, ids or −100.
            any_token: allow unused tokens, for a loss without gradients: each has the probability of the last row.
                Otherwise they get an id that no head has, at which `chunked_cross_entropy` fails.
        """
        compact = self.compact_ids[labels.clamp(min=0)]
        if any_token:
            compact = compact.clamp(max=len(self.rows) - 1)
        return torch.where(labels == IGNORE_INDEX, labels, compact)


class _CompactHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, rows: Tensor, unused: Tensor) -> Tensor:
        ctx.save_for_backward(rows, unused)
        ctx.num_rows = weight.shape[0]
        return weight.index_select(0, rows)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad_head: Tensor) -> tuple[Any, ...]:
        rows, unused = ctx.saved_tensors
        grad_weight = grad_head.new_empty(ctx.num_rows, grad_head.shape[1])
        num_tokens = len(rows) + len(unused[1:])  # the first unused one is among the rows
        grad_weight[num_tokens:] = 0.0  # rows that only pad the vocabulary
        grad_weight.index_copy_(0, rows, grad_head)
        # The last row's gradient is the sum over the tokens that it stands for.
        grad_weight.index_copy_(0, unused, (grad_head[-1:] / len(unused)).expand(len(unused), -1))
        return grad_weight, None, None


__all__ = ["UnusedTokens"]
