"""Several documents in one row without padding: where they lie, and that none sees another.

In: what a caller of the model says about its rows (`cu_seq_lens_q`, position ids that restart). Out: the rows in which
attention sees the documents, and a refusal of whatever would let them see each other. Used by: `modeling_gpt2_hf`.

This file travels with a saved model (`trust_remote_code=True`): relative imports only.

Legend: T tokens of the row, S documents, L longest document.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedDocuments:
    """Where the documents of a flattened batch lie, and how attention sees them.

    Attention is the only layer in which positions meet. It gets the documents as right-padded rows
    `[S, L]`; with a causal mask the padding is never read by a real position, so no mask is needed and the
    fast kernels stay in use. Everything else works on the flat row.
    """

    slots: Tensor  # [T] int64, the place of each token in the flattened [S * L] rows
    num_documents: int  # S
    max_length: int  # L
    boundaries: tuple[int, ...] | None = None  # [S + 1], where the host knows them

    @classmethod
    def from_cu_seq_lens(
        cls, cu_seq_lens: Tensor | None, max_length: int | None, inputs_embeds: Tensor
    ) -> "PackedDocuments":
        """Read the field's usual cumulative lengths `[0, end of document 1, …, T]`, int32 `[S + 1]`."""
        if cu_seq_lens is None or max_length is None:
            raise ValueError("cu_seq_lens_q needs max_length_q, the length of the longest document")
        num_rows, num_tokens, _ = inputs_embeds.shape
        if num_rows != 1:
            raise ValueError(f"cu_seq_lens_q describes one row with several documents, got {num_rows} rows")
        starts = cu_seq_lens[:-1].long()
        lengths = cu_seq_lens[1:].long() - starts
        # An accelerator would have to be waited for; there the caller is trusted, as by the varlen kernels.
        boundaries = None
        if cu_seq_lens.device.type == "cpu" and not torch.compiler.is_compiling():
            boundaries = tuple(cu_seq_lens.tolist())
            if (
                (boundaries[0], boundaries[-1]) != (0, num_tokens)
                or int(lengths.max()) > max_length
                or int(lengths.min()) < 1
            ):
                raise ValueError(
                    f"cu_seq_lens_q must rise from 0 to the {num_tokens} tokens of the row in steps of 1 to "
                    f"max_length_q ({max_length}), got {cu_seq_lens.tolist()}"
                )
        document = torch.repeat_interleave(
            torch.arange(lengths.shape[0], device=lengths.device), lengths, output_size=num_tokens
        )
        positions = torch.arange(num_tokens, device=lengths.device) - starts[document]
        return cls(document * max_length + positions, lengths.shape[0], max_length, boundaries)

    def to_rows(self, flat: Tensor) -> Tensor:
        """`[1, T, X]` to right-padded `[S, L, X]`."""
        rows = flat.new_zeros(self.num_documents * self.max_length, flat.shape[-1])
        rows = rows.index_copy_(0, self.slots.to(flat.device), flat[0])
        return rows.view(self.num_documents, self.max_length, flat.shape[-1])

    def to_flat(self, rows: Tensor) -> Tensor:
        """`[S, L, X]` back to `[1, T, X]`."""
        return rows.flatten(0, 1).index_select(0, self.slots.to(rows.device)).unsqueeze(0)


class Packing(NamedTuple):
    """What the caller says about several documents in one row."""

    lengths: dict[str, Any]  # as flash attention takes them; empty if none were given
    restarts: bool  # the position ids begin anew inside a row
    paged: bool  # `generate_batch` brings a paged cache, and a mask that keeps the documents apart

    @classmethod
    def read(
        cls, lengths: dict[str, Any], position_ids: Tensor | None, attention_mask: Tensor | None, paged: bool
    ) -> "Packing":
        """Tell from the arguments of the model's `forward`; `lengths` from `lengths_of_documents`."""
        looks = position_ids is not None and not lengths and not paged
        return cls(lengths, looks and _restarts(position_ids, attention_mask), paged)

    @property
    def must_isolate(self) -> bool:
        """Whether it is the model that keeps documents apart."""
        return self.restarts or (bool(self.lengths) and not self.paged)

    def refuse_leaks(self, **leaks: Any) -> None:
        """Raise a `ValueError` for an argument that is given and would let the documents see each other."""
        for name, value in leaks.items():
            if value is not None and value is not False:
                raise ValueError(
                    f"several documents in one row (cu_seq_lens_q, or position_ids that restart) cannot be combined "
                    f"with {name}: they would see each other; leave it out"
                )

    def as_rows(self, inputs_embeds: Tensor) -> PackedDocuments | None:
        """Where the documents lie, if their lengths were given."""
        if not self.lengths or self.paged:
            return None
        return PackedDocuments.from_cu_seq_lens(
            self.lengths["cu_seq_lens_q"], self.lengths["max_length_q"], inputs_embeds
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


__all__ = ["PackedDocuments", "Packing", "lengths_of_documents"]
