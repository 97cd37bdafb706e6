"""Samples to batches.

In: a list of samples `{"input_ids": int64 [n + 1]}`. Out: tensors for `GPT2HFForCausalLM.forward`.
Next stage: `trainer`.

A sample marked `is_filler` has no targets: it only completes a batch, so that every process has one.

Both collators give the very same positions and targets; only the layout differs, so loss and gradients
agree to rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..model.chunked_loss import IGNORE_INDEX


@dataclass(frozen=True)
class PaddingCollator:
    """One sample per row, right-padded to the longest of the batch.

    No attention mask is needed: padding comes after every real position of its row, where causal attention
    does not look, and its targets are −100.

    Args:
        pad_token_id: id put on padding; any id of the vocabulary will do.
        pad_to_length: pad every row to this many positions instead.
    """

    pad_token_id: int
    pad_to_length: int | None = None

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `shift_labels`, both int64 `[B, T]`."""
        rows = [np.asarray(sample["input_ids"]) for sample in samples]
        length = self.pad_to_length or max(len(row) for row in rows) - 1
        targets = [_targets(sample, row) for sample, row in zip(samples, rows, strict=True)]
        return {
            "input_ids": pad_rows([row[:-1] for row in rows], length, self.pad_token_id),
            "shift_labels": pad_rows(targets, length, IGNORE_INDEX),
        }


@dataclass(frozen=True)
class FlatteningCollator:
    """All samples in one row without padding; the model keeps them apart by their cumulative lengths."""

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return `input_ids`, `shift_labels`, `position_ids` `[1, T]`, and where each sample begins.

        `cu_seq_lens_q` and `cu_seq_lens_k` (int32 `[S + 1]`) and `max_length_q` and `max_length_k` (int) are
        named as in transformers' flash-attention arguments. `document_lengths` (int64 `[S]`) is no tensor, so that it
        stays on the host when a batch goes to the device.
        """
        rows = [np.asarray(sample["input_ids"]) for sample in samples]
        targets = [_targets(sample, row) for sample, row in zip(samples, rows, strict=True)]
        lengths = [len(row) - 1 for row in rows]
        cu_seq_lens = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
        return {
            "input_ids": torch.from_numpy(np.concatenate([row[:-1] for row in rows])[None]),
            "shift_labels": torch.from_numpy(np.concatenate(targets)[None]),
            "position_ids": torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])[None]),
            "cu_seq_lens_q": cu_seq_lens,
            "cu_seq_lens_k": cu_seq_lens,
            "max_length_q": max(lengths),
            "max_length_k": max(lengths),
            "document_lengths": np.array(lengths),
        }


def pad_rows(rows: Sequence[np.ndarray], length: int, value: int) -> torch.Tensor:
    """Rows of at most `length` numbers as int64 `[B, length]`, filled up on the right with a value."""
    padded = np.full((len(rows), length), value, dtype=np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


def _targets(sample: dict[str, Any], row: np.ndarray) -> np.ndarray:
    return np.full(len(row) - 1, IGNORE_INDEX) if sample.get("is_filler") else row[1:]
