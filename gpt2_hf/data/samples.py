"""Token ids to training samples: one class for documents, one for a continuous stream.

In: `TokenizedDocuments`. Out: a map-style torch dataset of `{"input_ids": int64 [n + 1]}`. Next stage: `collators`.

A sample holds n + 1 tokens for n scored positions: the inputs are all but its last token, the targets all but
its first. So every token of a document, save the very first, is a target exactly once, whatever the length of
the document and of the model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from operator import index as as_int
from typing import Any, overload

import numpy as np
from torch.utils.data import Dataset

from .sampling import FILLER, EpochSampler, allot, offset_of
from .tokenization import TokenizedDocuments

_DOCUMENTS_AT_A_TIME = 1 << 18


class SequenceMode(StrEnum):
    """How documents become rows of a batch; docs/reference/sequence-modes.md has a table."""

    PADDED = "padded"
    PADDING_FREE = "padding_free"
    BLOCKS = "blocks"


@dataclass(frozen=True)
class Accounting:
    """Where every row and every token of a split went.

    Attributes:
        rows: of the source.
        blank_rows: with nothing but white space.
        short_rows: of a single token, which has nothing to be predicted from.
        continued_rows: longer than a sample: cut if `truncate` is asked for, else continued in further samples.
        samples: that the split gives.
        text_tokens: of all rows; those that are not dropped are in a sample.
        separator_tokens: between documents, not among the text tokens.
        dropped_tokens: text tokens in no sample.
        scored_tokens: targets; all tokens that are kept save the first of each document (of the stream, in blocks).
        batch_share: share of a batch's positions that is text, not padding; 1 where nothing is padded.
    """

    rows: int
    blank_rows: int
    short_rows: int
    continued_rows: int
    samples: int
    text_tokens: int
    separator_tokens: int
    dropped_tokens: int
    scored_tokens: int
    truncated: bool = False
    batch_share: float = 1.0

    @property
    def kept_tokens(self) -> int:
        """Text tokens in a sample."""
        return self.text_tokens - self.dropped_tokens

    def line(self, split: str) -> str:
        """One line for the user."""
        parts = [
            f"{self.rows:,} rows",
            f"{self.blank_rows:,} blank",
            f"{self.short_rows:,} too short to train on",
            f"{self.continued_rows:,} {'cut' if self.truncated else 'longer than max_length and continued'}",
            f"{self.text_tokens:,} text tokens",
            f"{self.kept_tokens:,} kept",
            f"{self.dropped_tokens:,} dropped",
        ]
        if self.separator_tokens:
            parts.append(f"{self.separator_tokens:,} separators")
        parts += [
            f"{self.samples:,} samples",
            f"{self.scored_tokens:,} scored tokens",
            f"{self.batch_share:.1%} of a batch is text",
        ]
        return f"{split}: " + ", ".join(parts)

    def short(self) -> str:
        """The tokens that are used; what was dropped and why, if anything was; and if most rows have no text."""
        mostly_blank = self.blank_rows * 2 > self.rows
        blank = f", {self.blank_rows:,} of {self.rows:,} rows are blank" if mostly_blank else ""
        if not self.dropped_tokens:
            return f"{self.kept_tokens:,} tokens{blank}"
        rows = {"cut": self.continued_rows if self.truncated else 0, "too short": self.short_rows}
        reasons = [f"{count:,} row{'s' * (count != 1)} {reason}" for reason, count in rows.items() if count]
        return (
            f"{self.kept_tokens:,} of {self.text_tokens:,} tokens ({self.dropped_tokens:,} DROPPED: "
            f"{', '.join(reasons)}){blank}"
        )

    @classmethod
    def of_all(cls, texts: Iterable["Accounting"]) -> "Accounting":
        """The sums over several texts."""
        texts = list(texts)
        counts = [f.name for f in fields(cls) if f.name not in ("truncated", "batch_share")]
        sums = {name: sum(getattr(text, name) for text in texts) for name in counts}
        return cls(**sums, truncated=any(text.truncated for text in texts), batch_share=1.0)


class Samples(Dataset):
    """What both kinds of samples share. They are indexed as a list is; `FILLER` is the index of a sampler.

    Attributes:
        lengths: scored positions of each sample.
        accounting: of the whole split, whatever `limit` leaves of it.
    """

    lengths: np.ndarray
    accounting: Accounting

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """A sample, counted from the end if negative, or the list of samples that a slice names."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number = as_int(index)
        if number == FILLER:
            return {"input_ids": np.zeros(2, dtype=np.int64), "is_filler": True}
        if -len(self) <= number < len(self):
            return {"input_ids": self._tokens(number % len(self), 0)}
        offset = offset_of(number, len(self)) if len(self) else -1
        if not 0 <= offset < self.num_offsets:
            raise IndexError(f"sample {number} of {len(self)}")
        return {"input_ids": self._tokens(number % len(self), offset)}

    def lengths_of(self, order: np.ndarray) -> np.ndarray:
        """Scored positions of the samples that a sampler names."""
        return self.lengths[order % len(self)]

    @property
    def mixture(self) -> list[tuple[int, int]] | None:
        """Of several texts how many samples each has, and how many of them are in an epoch; `None` for one text."""
        return None

    @property
    def num_offsets(self) -> int:
        """At how many places of the text the first block may begin; 1: always at the same one."""
        return 1

    @property
    def epoch_lengths(self) -> np.ndarray:
        """Lengths of the samples of the first epoch, in the order of the data."""
        return self.lengths[EpochSampler(len(self), 0, shuffle=False, mixture=self.mixture).order()]

    @property
    def first_targets(self) -> np.ndarray:
        """int64 `[samples]`, the place in the stream of each sample's first target, if they are not shifted."""
        raise NotImplementedError

    @property
    def document_starts(self) -> np.ndarray:
        """int64 `[documents]`, the place of each document's first token in that stream."""
        raise NotImplementedError

    def _tokens(self, index: int, offset: int) -> np.ndarray:
        raise NotImplementedError

    def limit(self, num_samples: int) -> None:
        """Leave only the first samples."""
        self.lengths = self.lengths[:num_samples]


class DocumentSamples(Samples):
    """Each document is one sample; what exceeds `max_length` positions continues in further samples.

    With `truncate` it is dropped instead. A document of a single token has no target and gives no sample.
    """

    def __init__(self, documents: TokenizedDocuments, max_length: int, truncate: bool = False):
        self.documents = documents
        starts, lengths, short, continued = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], 0, 0
        # a part of the corpus at a time, because the scratch space is several times what is kept
        for first in range(0, len(documents), _DOCUMENTS_AT_A_TIME):
            begins = documents.starts[first : first + _DOCUMENTS_AT_A_TIME + 1]
            targets = np.diff(begins) - 1  # scored positions of each document
            windows = np.minimum(targets, 1) if truncate else -(-targets // max_length)
            document = np.repeat(np.arange(len(targets)), windows)
            first_window = np.repeat(np.cumsum(windows) - windows, windows)
            offsets = (np.arange(len(document)) - first_window) * max_length
            starts.append(begins[:-1][document] + offsets)
            lengths.append(np.minimum(targets[document] - offsets, max_length).astype(np.int32))
            short += int((targets == 0).sum())
            continued += int((targets > max_length).sum())
        self.starts = np.concatenate(starts)
        self.lengths = np.concatenate(lengths)
        scored = int(self.lengths.sum(dtype=np.int64))
        targets_in_all = documents.num_tokens - len(documents)
        self.accounting = Accounting(
            rows=documents.num_rows,
            blank_rows=documents.num_blank_rows,
            short_rows=short,
            continued_rows=continued,
            samples=len(self.lengths),
            text_tokens=documents.num_tokens,
            separator_tokens=0,
            dropped_tokens=targets_in_all - scored + short,
            scored_tokens=scored,
            truncated=truncate,
        )

    @property
    def first_targets(self) -> np.ndarray:
        return self.starts[: len(self)] + 1

    @property
    def document_starts(self) -> np.ndarray:
        return self.documents.starts[:-1]

    def _tokens(self, index: int, offset: int) -> np.ndarray:
        start = int(self.starts[index])
        return self.documents.read(start, start + int(self.lengths[index]) + 1)


class MixedSamples(Samples):
    """The samples of several texts, one text after the other.

    An epoch has as many samples as there are in all; `shares` says how many of them are of which text. A text that has
    fewer is repeated, of one that has more each epoch takes a further part (see `EpochSampler`).

    Args:
        texts: the samples of each text by its name.
        shares: of an epoch's samples for each text, summing to 1; as many as it has when left out.
    """

    def __init__(self, texts: Mapping[str, Samples], shares: Mapping[str, float] | None = None):
        self.texts = dict(texts)
        self.shares = dict(shares) if shares is not None else None
        self.accounting = Accounting.of_all(samples.accounting for samples in self.texts.values())
        self._join()

    def _join(self) -> None:
        self.lengths = np.concatenate([samples.lengths for samples in self.texts.values()])
        self._ends = np.cumsum(self.sizes)

    @property
    def sizes(self) -> list[int]:
        """Samples of each text."""
        return [len(samples) for samples in self.texts.values()]

    @property
    def mixture(self) -> list[tuple[int, int]]:
        """As the shares say; without them every sample is in it."""
        counts = self.sizes if self.shares is None else allot(len(self), list(self.shares.values()))
        return list(zip(self.sizes, counts, strict=True))

    @property
    def num_offsets(self) -> int:
        """That of the texts, which are cut alike."""
        return max(samples.num_offsets for samples in self.texts.values())

    def _tokens(self, index: int, offset: int) -> np.ndarray:
        text = int(np.searchsorted(self._ends, index, side="right"))
        samples = list(self.texts.values())[text]
        return samples._tokens(index - int(self._ends[text]) + len(samples), offset)

    def limit(self, num_samples: int) -> None:
        """Leave only the first samples of each text, in proportion to what it has, at least one."""
        if num_samples >= len(self):
            return
        spare = [size - 1 for size in self.sizes]
        counts = allot(num_samples - len(spare), [size / sum(spare) for size in spare])
        for samples, count in zip(self.texts.values(), counts, strict=True):
            samples.limit(count + 1)
        self._join()


class BlockSamples(Samples):
    """One stream, a separator before each document, cut into blocks of `max_length` positions.

    The separator before the first document is its context, so that every text token is a target. With `joined` it is
    the only one. The last block is shorter; nothing is dropped.

    With `circular` the text begins again where it ends, so that the blocks may begin at any place of it (see
    `EpochSampler`): each token is a target once whatever the place, the first separator too.
    """

    def __init__(
        self,
        documents: TokenizedDocuments,
        max_length: int,
        separator_id: int,
        joined: bool = False,
        circular: bool = False,
    ):
        self.documents = documents
        self.max_length = max_length
        self.separator_id = separator_id
        self.circular = circular
        # Place of each separator in the stream with separators, and the stream's end.
        first_tokens = documents.starts[[0, -1]] if joined and len(documents) else documents.starts
        self._separators = first_tokens + np.arange(len(first_tokens))
        scored = max(int(self._separators[-1]) - (not circular), 0)
        num_samples = -(-scored // max_length)
        self.lengths = np.full(num_samples, max_length, dtype=np.int32)
        if num_samples:
            self.lengths[-1] = scored - (num_samples - 1) * max_length
        self.accounting = Accounting(
            rows=documents.num_rows,
            blank_rows=documents.num_blank_rows,
            short_rows=0,
            continued_rows=int((documents.lengths > max_length).sum()),
            samples=num_samples,
            text_tokens=documents.num_tokens,
            separator_tokens=len(self._separators) - 1,
            dropped_tokens=0,
            scored_tokens=scored,
        )
        self._end = scored  # where the circle closes

    def limit(self, num_samples: int) -> None:
        """Leave only the first samples."""
        super().limit(num_samples)
        self._end = int(self.lengths.sum())

    @property
    def num_offsets(self) -> int:
        """Beginnings of the first block, one token apart."""
        return self.max_length if self.circular else 1

    @property
    def first_targets(self) -> np.ndarray:
        return np.arange(len(self)) * self.max_length + 1

    @property
    def document_starts(self) -> np.ndarray:
        starts = self.documents.starts[:-1]
        separators_between = np.arange(len(starts)) if len(self._separators) > 2 else 0
        return starts + separators_between + 1

    def _tokens(self, index: int, offset: int) -> np.ndarray:
        start = index * self.max_length
        stop = start + int(self.lengths[index]) + 1
        if not self.circular:
            return self.read(start, stop)
        first = (start + offset) % self._end
        last = first + stop - start
        if last <= self._end:
            return self.read(first, last)
        return np.concatenate([self.read(first, self._end), self.read(0, last - self._end)])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens `[start, stop)` of the stream with separators."""
        first = int(np.searchsorted(self._separators, start))  # the first separator at or after `start`
        last = int(np.searchsorted(self._separators[:-1], stop))  # one past the last separator before `stop`
        # Up to `first` separators lie before the span, so the text begins that many places earlier.
        text = self.documents.read(start - first, stop - last)
        return np.insert(text, self._separators[first:last] - start - np.arange(last - first), self.separator_id)


def padded_share(lengths: np.ndarray, batch_size: int, pad_to_length: int | None = None) -> float:
    """The share of text in padded batches of samples that are drawn at random.

    Exactly: the mean length over the expected longest of `batch_size` samples, from the distribution of lengths.
    """
    if not len(lengths):
        return 1.0
    mean = float(lengths.mean())
    if pad_to_length is not None:
        return mean / pad_to_length
    at_most = np.cumsum(np.bincount(lengths)) / len(lengths)  # share of the samples no longer than 0, 1, …
    return mean / float((1 - at_most**batch_size).sum())
