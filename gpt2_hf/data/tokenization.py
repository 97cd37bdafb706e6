"""Documents to token ids, once; afterwards from a memory-mapped cache.

In: the `Documents` of a source, and a tokenizer. Out: `TokenizedDocuments`. Next stage: `samples`.

The text streams through: neither it nor the ids are ever whole in memory, and no copy of the text is stored.
"""

import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .cache import entry_key, open_entry
from .encoding import EncodedBatch, Encoder
from .sources import Documents

# Part of the cache key: raise it when the ids written for the same text, or their layout, change.
_CACHE_VERSION = "5"
# Ids in one record batch of the cache file.
_IDS_PER_BATCH = 1 << 21
_WHOLE, _REST, _CUT = "documents", "rest", "cut"
# Shorter documents, such as "Yes.", may well stand in a text twice.
_LONG_DOCUMENT = 32
# What transformers notes of how a tokenizer was loaded; so it does in the names of its files.
_OF_LOADING = {"name_or_path", "is_local", "local_files_only", "files_loaded", "auto_map"}


class TokenizedDocuments:
    """The token ids of a split as one memory-mapped stream, with the place of each document in it.

    Rows without ids are not documents; they are only counted.

    Attributes:
        num_rows: rows of the source, blank ones included.
        num_blank_rows: rows that are not documents: those with nothing but white space, unless it was kept.
        starts: int64 `[documents + 1]`, where each document begins in the stream, and its end.
    """

    def __init__(self, dataset: Dataset, fingerprint: str | None = None):
        self._dataset = dataset
        self._fingerprint = fingerprint
        self._open()

    @classmethod
    def joined(cls, parts: Sequence["TokenizedDocuments"]) -> "TokenizedDocuments":
        """The documents of several texts, made by one tokenizer, one text after the other; nothing is copied."""
        return cls(concatenate_datasets([part._dataset for part in parts]))

    def _open(self) -> None:
        self._used_ids: dict[int, np.ndarray] = {}
        columns = self._dataset.data.column("input_ids").chunks
        self._chunks = [_values_of(chunk) for chunk in columns]
        self._chunk_starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])
        lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in columns] or [np.zeros(0, np.int32)])
        self.num_rows = len(lengths)
        lengths = lengths[lengths > 0]
        self.num_blank_rows = self.num_rows - len(lengths)
        self.starts = np.zeros(len(lengths) + 1, dtype=np.int64)
        np.cumsum(lengths, out=self.starts[1:])

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def num_tokens(self) -> int:
        """Text tokens of the split, without separators."""
        return int(self.starts[-1])

    @property
    def lengths(self) -> np.ndarray:
        """int64 `[documents]`, tokens of each document."""
        return np.diff(self.starts)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Copy the tokens `[start, stop)` of the stream as int64."""
        out = np.empty(stop - start, dtype=np.int64)
        chunk = int(np.searchsorted(self._chunk_starts, start, side="right")) - 1
        done = 0
        while done < len(out):
            offset = start + done - self._chunk_starts[chunk]
            part = self._chunks[chunk][offset : offset + len(out) - done]
            out[done : done + len(part)] = part
            done += len(part)
            chunk += 1
        return out

    def used_ids(self, num_ids: int) -> np.ndarray:
        """int64, ascending: which of the ids below `num_ids` occur."""
        if num_ids not in self._used_ids:  # every token is looked at
            occurs = np.zeros(num_ids, dtype=bool)
            for chunk in self._chunks:
                occurs[chunk] = True
            self._used_ids[num_ids] = np.flatnonzero(occurs)
        return self._used_ids[num_ids]

    def fingerprint(self) -> str:
        """A hash of every token and every document boundary."""
        if self._fingerprint is None:
            fingerprint = _Fingerprint()
            fingerprint.update(self.lengths, *self._chunks)
            self._fingerprint = fingerprint.hexdigest()
        return self._fingerprint

    # Workers get the dataset, which pickles as the name of its cache file, and map it again.
    def __getstate__(self) -> dict[str, Any]:
        return {"_dataset": self._dataset, "_fingerprint": self._fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class _Fingerprint:
    """A hash of tokens and document lengths, whatever the parts in which they come."""

    def __init__(self) -> None:
        self._tokens, self._lengths = xxhash.xxh3_128(), xxhash.xxh3_128()

    def update(self, lengths: np.ndarray, *tokens: np.ndarray) -> None:
        self._lengths.update(lengths[lengths > 0].astype(np.int64).tobytes())
        for part in tokens:
            self._tokens.update(part.data)

    def hexdigest(self) -> str:
        return xxhash.xxh3_128_hexdigest(self._tokens.digest() + self._lengths.digest())


def _values_of(chunk: pa.ListArray) -> np.ndarray:
    """The ids under a list array, without copying them."""
    first, last = chunk.offsets[0].as_py(), chunk.offsets[-1].as_py()
    return chunk.values.slice(first, last - first).to_numpy(zero_copy_only=True)


def tokenize(
    source: Documents,
    tokenizer: PreTrainedTokenizerBase,
    num_workers: int | None = None,
    keep_white_space: bool = False,
) -> TokenizedDocuments:
    """Tokenise each document, without adding special tokens, or read what an earlier run made of the same text.

    Ids are stored in two bytes where the vocabulary allows. Nothing but white space gives no ids.

    Args:
        source: the documents.
        tokenizer: makes the ids.
        num_workers: threads that tokenise; one for each core when left out. It does not change the result.
        keep_white_space: documents of nothing but white space have ids too, if any other has text: the blank lines of
            a text whose lines are joined again.

    Raises:
        UserError: if the text cannot be read, or the cache not be written.
    """
    folder, record = _tokenize(source, tokenizer, num_workers, None, keep_white_space)
    return _open(folder, _WHOLE, record["fingerprints"][_WHOLE])


class CutText(NamedTuple):
    """A text of which a part was set aside.

    Attributes:
        rest: what is left.
        cut: the documents that are set aside.
        known_tokens: of those that the rest has too, long ones alone.
        documents: in both, without those of white space alone.
    """

    rest: TokenizedDocuments
    cut: TokenizedDocuments
    known_tokens: int
    documents: int


def tokenize_and_cut(
    source: Documents,
    tokenizer: PreTrainedTokenizerBase,
    percentage: float,
    num_workers: int | None = None,
    keep_white_space: bool = False,
) -> CutText:
    """As `tokenize`, with documents at even distances set aside.

    Which ones is a function of their number alone (see `is_set_aside`); blank rows stay with the rest.
    """
    folder, record = _tokenize(source, tokenizer, num_workers, share_of(percentage), keep_white_space)
    rest, cut = (_open(folder, name, record["fingerprints"][name]) for name in (_REST, _CUT))
    # earlier versions did not count either
    return CutText(rest, cut, record.get("known_tokens", 0), record.get("documents", len(rest) + len(cut)))


def share_of(percentage: float) -> Fraction:
    """A percentage as it is written, exactly."""
    return Fraction(str(percentage)) / 100


def is_set_aside(index: int, share: Fraction) -> bool:
    """Whether a document is set aside: evenly spaced from the second on, so that two documents are enough.

    >>> [i for i in range(50) if is_set_aside(i, Fraction(5, 100))]
    [1, 21, 41]
    """
    part, whole = share.numerator, share.denominator  # whole numbers: every document of a text asks
    offset = max(whole - 2 * part, 0)
    return (index * part + offset) % whole + part >= whole


def _tokenize(
    source: Documents,
    tokenizer: PreTrainedTokenizerBase,
    num_workers: int | None,
    share: Fraction | None,
    keep_white_space: bool,
) -> tuple[Path, dict[str, Any]]:
    """The cache's folder with the ids, and its record."""
    source_key = source.key()
    white_space = ["with white space"] if keep_white_space else []
    key = entry_key(_CACHE_VERSION, source_key, tokenizer_key(tokenizer), str(share), *white_space)

    def fill(folder: Path) -> dict[str, Any]:
        encoder = Encoder(tokenizer, num_workers, keep_white_space)
        names = [_WHOLE] if share is None else [_REST, _CUT]
        writers = [_Writer(folder / f"{name}.arrow", encoder.dtype) for name in names]
        repetitions = _Repetitions()
        documents = 0
        try:
            for batch in _none_if_all_blank(encoder.encode_stream(text for text, _ in source.documents())):
                if share is None:
                    writers[0].write(batch)
                    continue
                # blank rows count for nothing, whether or not they have ids
                chosen = np.zeros(len(batch.lengths), dtype=bool)
                for i in np.flatnonzero(batch.have_text & (batch.lengths > 0)):
                    chosen[i] = is_set_aside(documents, share)
                    documents += 1
                rest, cut = _select(batch, ~chosen), _select(batch, chosen)
                writers[0].write(rest)
                writers[1].write(cut)
                repetitions.add(rest, cut)
        finally:
            for writer in writers:
                writer.close()
        if source.key() != source_key:
            raise UserError(
                f"the text of the {source.name} split was changed while it was read; start again when it is complete"
            )
        # made while writing: reading the ids again would fill the memory with the pages of the file
        return {
            "fingerprints": {name: writers[i].fingerprint.hexdigest() for i, name in enumerate(names)},
            "known_tokens": repetitions.known_tokens(),
            **({} if share is None else {"documents": documents}),
        }

    return open_entry(key, fill)


def _open(folder: Path, name: str, fingerprint: str) -> TokenizedDocuments:
    return TokenizedDocuments(Dataset.from_file(str(folder / f"{name}.arrow")), fingerprint)


def _select(batch: EncodedBatch, chosen: np.ndarray) -> EncodedBatch:
    return EncodedBatch(batch.ids[np.repeat(chosen, batch.lengths)], batch.lengths[chosen], batch.have_text[chosen])


def _none_if_all_blank(batches: Iterator[EncodedBatch]) -> Iterator[EncodedBatch]:
    """The batches; no ids for white space if there is nothing else."""
    blank: list[EncodedBatch] = []
    for batch in batches:
        if not batch.have_text.any():
            blank.append(batch)
            continue
        yield from blank
        yield batch
        yield from batches
        return
    for batch in blank:
        yield EncodedBatch(batch.ids[:0], np.zeros_like(batch.lengths), batch.have_text)


class _Repetitions:
    """Finds documents that are set aside although the rest has the same, by 8 bytes for each long one."""

    def __init__(self) -> None:
        self._rest: list[np.ndarray] = []
        self._cut: list[np.ndarray] = []
        self._cut_lengths: list[np.ndarray] = []

    def add(self, rest: EncodedBatch, cut: EncodedBatch) -> None:
        """Take note of a part of both."""
        self._rest.append(_hashes_of_long(rest))
        self._cut.append(_hashes_of_long(cut))
        self._cut_lengths.append(cut.lengths[cut.lengths >= _LONG_DOCUMENT])

    def known_tokens(self) -> int:
        """Tokens of the documents that are in both."""
        if not self._rest:
            return 0
        known = np.isin(np.concatenate(self._cut), np.concatenate(self._rest))
        return int(np.concatenate(self._cut_lengths)[known].sum())


def _hashes_of_long(batch: EncodedBatch) -> np.ndarray:
    ends = np.cumsum(batch.lengths)
    places = [(end - length, end) for length, end in zip(batch.lengths, ends, strict=True) if length >= _LONG_DOCUMENT]
    return np.array([xxhash.xxh3_64_intdigest(batch.ids[begin:end].data) for begin, end in places], dtype=np.uint64)


class _Writer:
    """Writes batches of ids to an Arrow file, joined to larger ones."""

    def __init__(self, path: Path, dtype: np.dtype):
        self._features = Features({"input_ids": List(Value(dtype.name))})
        # its own limit is 1,000 documents in a record batch
        self._writer = ArrowWriter(path=str(path), features=self._features, writer_batch_size=_IDS_PER_BATCH)
        self._pending: list[EncodedBatch] = []
        self._ids = 0
        self.fingerprint = _Fingerprint()

    def write(self, batch: EncodedBatch) -> None:
        self._pending.append(batch)
        self._ids += len(batch.ids)
        if self._ids >= _IDS_PER_BATCH or len(self._pending) >= 1024:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        ids = np.concatenate([batch.ids for batch in self._pending])
        lengths = np.concatenate([batch.lengths for batch in self._pending])
        self.fingerprint.update(lengths, ids)
        offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        lists = pa.ListArray.from_arrays(offsets, ids)
        table = pa.Table.from_arrays([lists], schema=self._features.arrow_schema)
        self._writer.write_table(table)
        self._pending, self._ids = [], 0

    def close(self) -> None:
        self._flush()
        self._writer.finalize()
        self._writer.close()


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides the ids: the fast tokenizer's whole definition, else the class, vocabulary and settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    split = bool(getattr(tokenizer, "split_special_tokens", False))
    if backend is not None:
        # What comes before was set by the last call that padded or truncated, and does not touch these ids.
        _, _, definition = backend.to_str().partition('"added_tokens"')
        return f"{definition}{split}{len(tokenizer)}"
    left_out = {*_OF_LOADING, *tokenizer.vocab_files_names}
    settings = {
        name: value
        for name, value in tokenizer.init_kwargs.items()
        if name not in left_out and not name.endswith("_file")
    }
    with tempfile.TemporaryDirectory() as folder:  # merges and scores are in no vocabulary
        files = [xxhash.xxh3_128_hexdigest(Path(path).read_bytes()) for path in tokenizer.save_vocabulary(folder)]
    return repr((type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), settings, split, files))
