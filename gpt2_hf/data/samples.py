"""Token ids to training samples: one class for documents, one for a continuous stream.

In: `TokenizedDocuments`. Out: a map-style torch dataset of `{"input_ids": int64 [n + 1]}`. Next stage: `collators`.

A sample holds n + 1 tokens for n scored positions: the inputs are all but its last token, the targets all but
its first. So every token of a document, save the very first, is a target exactly once, whatever the length of
the document and of the model.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from torch.utils.data import Dataset

from .tokenization import TokenizedDocuments


class SequenceMode(StrEnum):
    """How documents become rows of a batch; see the README's table."""

    PADDED = "padded"
    PADDING_FREE = "padding_free"
    BLOCKS = "blocks"


@dataclass(frozen=True)
class Accounting:
    """Where every row and every token of a split went."""

    rows: int
    blank_rows: int
    short_rows: int
    continued_rows: int
    samples: int
    text_tokens: int
    separator_tokens: int
    dropped_tokens: int
    scored_tokens: int

    def line(self, split: str) -> str:
        """One line for the user."""
        parts = [
            f"{self.rows:,} rows",
            f"{self.blank_rows:,} blank",
            f"{self.short_rows:,} too short to train on",
            f"{self.continued_rows:,} longer than max_length",
            f"{self.text_tokens:,} text tokens",
        ]
        if self.separator_tokens:
            parts.append(f"{self.separator_tokens:,} separators")
        parts += [
            f"{self.dropped_tokens:,} dropped",
            f"{self.samples:,} samples",
            f"{self.scored_tokens:,} scored tokens",
        ]
        return f"{split}: " + ", ".join(parts)


class DocumentSamples(Dataset):
    """Each document is one sample; what exceeds `max_length` positions continues in further samples.

    With `truncate` it is dropped instead. A document of a single token has no target and gives no sample.
    """

    def __init__(self, documents: TokenizedDocuments, max_length: int, truncate: bool = False):
        self.documents = documents
        targets = np.maximum(documents.lengths - 1, 0)  # scored positions of each document
        windows = np.minimum(targets, 1) if truncate else -(-targets // max_length)
        document = np.repeat(np.arange(len(targets)), windows)
        first_window = np.repeat(np.cumsum(windows) - windows, windows)
        offsets = (np.arange(len(document)) - first_window) * max_length
        self.starts = documents.starts[:-1][document] + offsets
        self.lengths = np.minimum(targets[document] - offsets, max_length)  # scored positions of each sample
        scored = int(self.lengths.sum())
        short = int((targets == 0).sum())
        self.accounting = Accounting(
            rows=documents.num_rows,
            blank_rows=documents.num_blank_rows,
            short_rows=short,
            continued_rows=int((targets > max_length).sum()),
            samples=len(document),
            text_tokens=documents.num_tokens,
            separator_tokens=0,
            dropped_tokens=int(targets.sum()) - scored + short,
            scored_tokens=scored,
        )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        start = int(self.starts[index])
        return {"input_ids": self.documents.read(start, start + int(self.lengths[index]) + 1)}


class BlockSamples(Dataset):
    """One stream, a separator before each document, cut into blocks of `max_length` positions.

    The separator before the first document is its context, so that every text token is a target. The last
    block is shorter; nothing is dropped.
    """

    def __init__(self, documents: TokenizedDocuments, max_length: int, separator_id: int):
        self.documents = documents
        self.max_length = max_length
        self.separator_id = separator_id
        # Place of each document's separator in the stream with separators, and the stream's end.
        self._separators = documents.starts + np.arange(len(documents) + 1)
        scored = max(int(self._separators[-1]) - 1, 0)
        num_samples = -(-scored // max_length)
        self.lengths = np.full(num_samples, max_length, dtype=np.int64)
        if num_samples:
            self.lengths[-1] = scored - (num_samples - 1) * max_length
        self.accounting = Accounting(
            rows=documents.num_rows,
            blank_rows=documents.num_blank_rows,
            short_rows=0,
            continued_rows=int((documents.lengths > max_length).sum()),
            samples=num_samples,
            text_tokens=documents.num_tokens,
            separator_tokens=len(documents),
            dropped_tokens=0,
            scored_tokens=scored,
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.max_length
        return {"input_ids": self.read(start, start + int(self.lengths[index]) + 1)}

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `[start, stop)` of the stream with separators."""
        first = int(np.searchsorted(self._separators, start))  # the first separator at or after `start`
        last = int(np.searchsorted(self._separators[:-1], stop))  # one past the last separator before `stop`
        # Up to `first` separators lie before the span, so the text begins that many places earlier.
        text = self.documents.read(start - first, stop - last)
        return np.insert(text, self._separators[first:last] - start - np.arange(last - first), self.separator_id)


Samples = DocumentSamples | BlockSamples
