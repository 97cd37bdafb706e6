"""Documents to token ids, once; afterwards from a memory-mapped cache.

In: a `datasets.Dataset` with a text column, a tokenizer. Out: `TokenizedDocuments`. Next stage: `samples`.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from ..errors import UserError

# Part of the cache key: raise it when the ids written for the same text change.
_CACHE_VERSION = "1"


class TokenizedDocuments:
    """The token ids of a split as one memory-mapped stream, with the place of each document in it.

    Rows without text are not documents; they are only counted.

    Attributes:
        num_rows: rows of the source, blank ones included.
        num_blank_rows: rows with nothing but white space.
        starts: int64 `[documents + 1]`, where each document begins in the stream, and its end.
    """

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._open()

    def _open(self) -> None:
        columns = self._dataset.data.column("input_ids").chunks
        self._chunks = [_values_of(chunk) for chunk in columns]
        self._chunk_starts = np.cumsum([0] + [len(chunk) for chunk in self._chunks])
        lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in columns] or [np.zeros(0, np.int64)])
        self.num_rows = len(lengths)
        self.num_blank_rows = int((lengths == 0).sum())
        self.starts = np.concatenate([[0], np.cumsum(lengths[lengths > 0], dtype=np.int64)])

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

    def fingerprint(self) -> str:
        """A hash of every token and every document boundary."""
        digest = xxhash.xxh3_128(self.starts.tobytes())
        for chunk in self._chunks:
            digest.update(chunk.data)
        return digest.hexdigest()

    # Workers get the dataset, which pickles as the name of its cache file, and map it again.
    def __getstate__(self) -> dict[str, Any]:
        return {"_dataset": self._dataset}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._dataset = state["_dataset"]
        self._open()


def _values_of(chunk: pa.ListArray) -> np.ndarray:
    """The ids under a list array, without copying them."""
    first, last = chunk.offsets[0].as_py(), chunk.offsets[-1].as_py()
    return chunk.values.slice(first, last - first).to_numpy(zero_copy_only=True)


def tokenize(
    dataset: Dataset, text_column: str, tokenizer: PreTrainedTokenizerBase, num_proc: int | None = None
) -> TokenizedDocuments:
    """Tokenise each row, without adding special tokens, or read the result of an earlier run from the cache.

    Ids are stored in two bytes where the vocabulary allows. Nothing but white space gives no ids.

    Raises:
        UserError: if a row is not text.
    """
    features = Features({"input_ids": List(Value("uint16" if len(tokenizer) <= 1 << 16 else "int32"))})

    def encode(batch: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        texts = batch[text_column]
        for text in texts:
            if text is not None and not isinstance(text, str):
                raise UserError(f"--text_column: column {text_column!r} holds {type(text).__name__}, not text")
        texts = ["" if text is None or text.isspace() else text for text in texts]
        ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, return_attention_mask=False).input_ids
        return {"input_ids": ids}

    key = xxhash.xxh3_128()
    for part in (dataset._fingerprint, _tokenizer_key(tokenizer), text_column, _CACHE_VERSION):
        key.update(part.encode())
    tokenized = dataset.map(
        encode,
        batched=True,
        remove_columns=dataset.column_names,
        features=features,
        new_fingerprint=key.hexdigest(),
        num_proc=num_proc,
        desc="tokenising",
    )
    return TokenizedDocuments(tokenized)


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """What decides the ids: the fast tokenizer's whole definition, else the class and vocabulary."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return str(backend.to_str())
    return f"{type(tokenizer).__name__}{sorted(tokenizer.get_vocab().items())}{tokenizer.init_kwargs}"
