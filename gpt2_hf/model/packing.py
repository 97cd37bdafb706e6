"""Several documents in one row without padding: where they lie, and that none sees another.

In: what a caller of the model says about its rows (`cu_seq_lens_q`, position ids that restart). Out: how attention
sees the documents, and a refusal of whatever would let them see each other.

This file travels with a saved model (`trust_remote_code=True`): relative imports only.

Legend: T tokens of the row, S documents, L longest document; S_k, L_k, T_k those of a length bucket.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .chunked_loss import IGNORE_INDEX

# Padding may cost so many times what the documents themselves do, in arithmetic (squares) and in memory (lengths).
_MOST_PADDED = 1.3


class LengthClass(NamedTuple):
    """A length bucket: documents of about one length, which attention sees as right-padded rows `[S_k, L_k]`.

    With a causal mask the padding is never read by a real position, so no mask is needed and the fast kernels stay
    in use.
    """

    slots: Tensor  # [T_k] int64, the place of each token in the flattened [S_k * L_k] rows
    num_documents: int  # S_k
    max_length: int  # L_k

    def to_rows(self, flat: Tensor) -> Tensor:
        """`[T_k, X]` to right-padded `[S_k, L_k, X]`."""
        rows = flat.new_zeros(self.num_documents * self.max_length, flat.shape[-1])
        rows = rows.index_copy_(0, self.slots.to(flat.device), flat)
        return rows.view(self.num_documents, self.max_length, flat.shape[-1])

    def to_flat(self, rows: Tensor) -> Tensor:
        """`[S_k, L_k, X]` back to `[T_k, X]`."""
        return rows.flatten(0, 1).index_select(0, self.slots.to(rows.device))


@dataclass(frozen=True)
class PackedDocuments:
    """Where the documents of a flattened batch lie.

    Attention is the only layer in which positions meet; everything else works on the flat row. A kernel that takes
    lengths gets the flat row too. Any other gets the documents as padded rows: in a few length buckets, so that
    one long document does not pad all others, where the host knows the lengths; else all in one bucket.
    """

    cu_seq_lens: Tensor  # [S + 1] int32, on the device of the row
    num_tokens: int  # T
    max_length: int  # L
    boundaries: tuple[int, ...] | None = None  # [S + 1], where the host knows them
    has_kernel: bool = False  # attention takes `cu_seq_lens` as they are
    classes: tuple[LengthClass, ...] = ()
    order: Tensor | None = field(default=None, repr=False)  # [T] int64, the tokens by class, if there are several
    inverse: Tensor | None = field(default=None, repr=False)  # [T] int64, the place of each token in `order`

    @classmethod
    def from_cu_seq_lens(
        cls,
        cu_seq_lens: Tensor | None,
        max_length: int | None,
        inputs_embeds: Tensor,
        document_lengths: Sequence[int] | np.ndarray | None = None,
    ) -> "PackedDocuments":
        """Read the field's usual cumulative lengths `[0, end of document 1, …, T]`, int32 `[S + 1]`.

        Args:
            cu_seq_lens: on any device.
            max_length: L.
            inputs_embeds: `[1, T, C]`.
            document_lengths: `[S]`, the same lengths on the host, which does not read those of an accelerator.
        """
        if cu_seq_lens is None or max_length is None:
            raise ValueError("cu_seq_lens_q needs max_length_q, the length of the longest document")
        num_rows, num_tokens, _ = inputs_embeds.shape
        if num_rows != 1:
            raise ValueError(f"cu_seq_lens_q describes one row with several documents, got {num_rows} rows")
        boundaries = None if torch.compiler.is_compiling() else _on_the_host(cu_seq_lens, document_lengths)
        if boundaries is not None:
            lengths = np.diff(boundaries)
            if (
                (boundaries[0], boundaries[-1], len(boundaries)) != (0, num_tokens, len(cu_seq_lens))
                or lengths.max() > max_length
                or lengths.min() < 1
            ):
                raise ValueError(
                    f"cu_seq_lens_q must rise from 0 to the {num_tokens} tokens of the row in steps of 1 to "
                    f"max_length_q ({max_length}), got {list(boundaries)}"
                )
        return cls(cu_seq_lens.to(inputs_embeds.device, non_blocking=True), num_tokens, max_length, boundaries)

    def positions(self) -> Tensor:
        """The position of each token in its document, int64 `[T]`."""
        document = self._document_of_tokens(self._lengths())
        return torch.arange(self.num_tokens, device=document.device) - self.cu_seq_lens[:-1].long()[document]

    def in_classes(self, all_in_one: bool = False) -> "PackedDocuments":
        """With the rows that attention sees; the indices are made on the device, which is not waited for.

        Args:
            all_in_one: every document is padded to the longest one.
        """
        groups = [(0, len(self.cu_seq_lens) - 1, self.max_length)]
        lengths, starts = self._lengths(), self.cu_seq_lens[:-1].long()
        if self.boundaries is not None and not all_in_one:
            by_length = np.sort(np.diff(self.boundaries))[::-1]
            groups = _length_groups(by_length)
        if len(groups) == 1:
            document = self._document_of_tokens(lengths)
            positions = torch.arange(self.num_tokens, device=document.device) - starts[document]
            only = LengthClass(document * groups[0][2] + positions, groups[0][1], groups[0][2])
            return self._with(classes=(only,))
        lengths, rank = lengths.sort(descending=True, stable=True)  # [S]
        document = self._document_of_tokens(lengths)  # [T], counted by length
        positions = torch.arange(self.num_tokens, device=document.device) - (lengths.cumsum(0) - lengths)[document]
        order = starts[rank[document]] + positions
        inverse = torch.empty_like(order).scatter_(0, order, torch.arange(self.num_tokens, device=order.device))
        classes, token = [], 0
        for begin, end, longest in groups:
            tokens = slice(token, token := token + int(by_length[begin:end].sum()))
            slots = (document[tokens] - begin) * longest + positions[tokens]
            classes.append(LengthClass(slots, end - begin, longest))
        return self._with(classes=tuple(classes), order=order, inverse=inverse)

    def with_kernel(self) -> "PackedDocuments":
        """For a kernel that takes the lengths."""
        return self._with(has_kernel=True)

    def attend(self, flat: Tensor, attend: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Apply a function of `[S_k, L_k, X]` and the class's number to each class, `[1, T, X]` to `[1, T, Y]`."""
        if self.order is None or self.inverse is None:
            (only,) = self.classes
            return only.to_flat(attend(only.to_rows(flat[0]), 0)).unsqueeze(0)
        by_class = flat[0].index_select(0, self.order.to(flat.device)).split([len(c.slots) for c in self.classes])
        parts = [
            c.to_flat(attend(c.to_rows(x), i)) for i, (c, x) in enumerate(zip(self.classes, by_class, strict=True))
        ]
        return torch.cat(parts).index_select(0, self.inverse.to(flat.device)).unsqueeze(0)

    def _with(self, **changes: Any) -> "PackedDocuments":
        # dataclasses.replace cannot be traced by every compiler
        return PackedDocuments(self.cu_seq_lens, self.num_tokens, self.max_length, self.boundaries, **changes)

    def _lengths(self) -> Tensor:
        return self.cu_seq_lens[1:].long() - self.cu_seq_lens[:-1].long()

    def _document_of_tokens(self, lengths: Tensor) -> Tensor:
        numbers = torch.arange(lengths.shape[0], device=lengths.device)
        return torch.repeat_interleave(numbers, lengths, output_size=self.num_tokens)


def _on_the_host(cu_seq_lens: Tensor, document_lengths: Sequence[int] | np.ndarray | None) -> tuple[int, ...] | None:
    """Where the documents begin and end; `None` if the host would have to wait for an accelerator to know.

    Then the caller is trusted, as by the kernels for variable lengths.
    """
    if cu_seq_lens.device.type == "cpu":
        return tuple(cu_seq_lens.tolist())
    if document_lengths is None:
        return None
    return (0, *np.cumsum(document_lengths).tolist())


def _length_groups(by_length: np.ndarray) -> list[tuple[int, int, int]]:
    """Split lengths, the longest first, into few groups that are padded little: begin, end, longest of each.

    The group that wastes most is cut where that saves most, until padding costs at most `_MOST_PADDED` times the
    documents: their squares first (scores), then the lengths themselves (rows).
    """
    ends = [len(by_length)]
    for power in (2, 1):
        cost = by_length.astype(np.float64) ** power
        while _padded(cost, ends) > _MOST_PADDED * cost.sum():
            cuts = [_best_cut(cost, begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
            ends = sorted([*ends, max(cuts)[1]])
    return [(begin, end, int(by_length[begin])) for begin, end in zip([0, *ends], ends, strict=False)]


def _padded(cost: np.ndarray, ends: list[int]) -> float:
    return float(sum((end - begin) * cost[begin] for begin, end in zip([0, *ends], ends, strict=False)))


def _best_cut(cost: np.ndarray, begin: int, end: int) -> tuple[float, int]:
    """What the best cut of a group saves, and where it is."""
    if end - begin < 2:
        return 0.0, begin
    saved = (cost[begin] - cost[begin + 1 : end]) * np.arange(end - begin - 1, 0, -1)
    best = int(saved.argmax())
    return float(saved[best]), begin + 1 + best


class Packing(NamedTuple):
    """What the caller says about several documents in one row."""

    lengths: dict[str, Any]  # as flash attention takes them; empty if none were given
    on_host: Sequence[int] | np.ndarray | None  # the lengths themselves, where the caller knows them
    restarts: bool  # the position ids begin anew inside a row
    paged: bool  # `generate_batch` brings a paged cache, and a mask that keeps the documents apart

    @classmethod
    def read(
        cls,
        lengths: dict[str, Any],
        on_host: Sequence[int] | np.ndarray | None,
        position_ids: Tensor | None,
        attention_mask: Tensor | None,
        paged: bool,
    ) -> "Packing":
        """Tell from the arguments of the model's `forward`; `lengths` from `lengths_of_documents`."""
        looks = position_ids is not None and not lengths and not paged
        return cls(lengths, on_host, looks and _restarts(position_ids, attention_mask), paged)

    @property
    def must_isolate(self) -> bool:
        """Whether it is the model that keeps documents apart."""
        return self.restarts or (bool(self.lengths) and not self.paged)

    def looks_at_positions(self, use_cache: bool) -> bool:
        """Whether the mask is to part documents where the position ids jump.

        Where a cache is returned, whose next call sees all tokens, nothing is parted; but a compiler cannot look at
        the positions, and so does not know whether they restart.
        """
        return not self.lengths and (not use_cache or torch.compiler.is_compiling())

    def refuse_leaks(self, **leaks: Any) -> None:
        """Raise a `ValueError` for an argument that is given and would let the documents see each other."""
        for name, value in leaks.items():
            if value is not None and value is not False:
                raise ValueError(
                    f"several documents in one row (cu_seq_lens_q, or position_ids that restart) cannot be combined "
                    f"with {name}: they would see each other; leave it out"
                )

    def documents(self, inputs_embeds: Tensor) -> PackedDocuments | None:
        """Where the documents lie, if their lengths were given."""
        if not self.lengths or self.paged:
            return None
        return PackedDocuments.from_cu_seq_lens(
            self.lengths["cu_seq_lens_q"], self.lengths["max_length_q"], inputs_embeds, self.on_host
        )


def lengths_of_documents(
    cu_seq_lens_q: Tensor | None, cu_seq_lens_k: Tensor | None, max_length_q: int | None, max_length_k: int | None
) -> dict[str, Any]:
    """The lengths of queries and keys, which are the same; empty if there are none."""
    if cu_seq_lens_q is None:
        return {}
    return {
        "cu_seq_lens_q": cu_seq_lens_q,
        "cu_seq_lens_k": cu_seq_lens_q if cu_seq_lens_k is None else cu_seq_lens_k,
        "max_length_q": max_length_q,
        "max_length_k": max_length_q if max_length_k is None else max_length_k,
    }


def without_first_tokens(labels: Tensor, cu_seq_lens: Tensor) -> Tensor:
    """Labels `[1, T]` that do not score the first token of a document, which does not continue the one before it."""
    return labels.index_fill(1, cu_seq_lens[1:-1].to(labels.device, torch.long), IGNORE_INDEX)


def next_tokens(labels: Tensor | None, cu_seq_lens: Tensor | None) -> Tensor:
    """The target of each position, int64 `[B, T]`: the label of the next one, if it is of the same document."""
    assert labels is not None
    if cu_seq_lens is not None:
        labels = without_first_tokens(labels, cu_seq_lens)
    return torch.nn.functional.pad(labels[..., 1:], (0, 1), value=IGNORE_INDEX)


def _restarts(position_ids: Tensor, attention_mask: Tensor | None) -> bool:
    """Whether a document begins inside a row: position 0 right after a token that is no padding."""
    num_tokens = position_ids.shape[-1]
    if num_tokens == 1 or torch.compiler.is_compiling():
        return False
    begins = position_ids[:, 1:] == 0
    if attention_mask is not None:
        if attention_mask.ndim != 2:
            return False  # the caller has decided who sees whom
        real = attention_mask[:, -num_tokens:].to(position_ids.device, torch.bool)
        begins = begins & real[:, 1:] & real[:, :-1]
    return bool(begins.any())


__all__ = ["LengthClass", "PackedDocuments", "Packing", "lengths_of_documents", "next_tokens", "without_first_tokens"]
