"""Text to token ids, on several threads, with bounded memory.

The tokenizers library leaves the interpreter lock while it works, so threads are as fast as processes, and need no
second copy of the interpreter, of the text or of the vocabulary.
"""

import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple, TypeGuard, TypeVar

import numpy as np
from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerBase

from ..errors import UserError, first_line
from .readers import MAX_ROW_CHARACTERS
from .tokenizer import num_ids

# A batch is closed when it has this number of documents or characters; some 150 bytes of memory go to each character.
_BATCH_DOCUMENTS = 1000
_BATCH_CHARACTERS = 1 << 18
_PIECE_CHARACTERS = 1 << 18
_MAX_PIECE_CHARACTERS = 1 << 20
# A byte-level BPE begins a new word here, whatever comes before and after: at a single white space between two
# characters that are none, and at East Asian punctuation after a letter.
_WORD_BORDER = re.compile(r"(?<=\S)(?=\s\S)|(?<=\w)(?=[。，、！？；：])")


_Text = TypeVar("_Text", str, str | None)


class EncodedBatch(NamedTuple):
    """Token ids of several documents: all in one array, how many belong to each, which hold more than white space."""

    ids: np.ndarray
    lengths: np.ndarray
    have_text: np.ndarray


def has_text(document: str | None) -> TypeGuard[str]:
    """Whether a document holds more than white space."""
    return bool(document and not document.isspace())


class Encoder:
    """Token ids of documents, without special tokens added. White space alone gives none.

    Args:
        tokenizer: any tokenizer of transformers; those with a Rust backend run on several threads.
        num_threads: how many batches are tokenised at a time; the processor's cores when left out.
        keep_white_space: white space alone is tokenised too.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, num_threads: int | None = None, keep_white_space: bool = False
    ):
        self.keep_white_space = keep_white_space
        self.dtype = np.dtype(np.uint16 if num_ids(tokenizer) <= 1 << 16 else np.int32)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._encode: Callable[[list[str]], list[list[int]]]
        if backend is None:
            self._encode = lambda texts: tokenizer(texts, add_special_tokens=False).input_ids
            self.num_threads = 1
            self._cuts_anywhere = False
        else:
            backend = Tokenizer.from_str(backend.to_str())  # a copy, whose settings are ours
            backend.no_padding()
            backend.no_truncation()
            backend.encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
            self._encode = lambda texts: [
                encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)
            ]
            self.num_threads = num_threads or available_cores()
            self._cuts_anywhere = backend.normalizer is None and _is_gpt2_style(backend)

    def encode(self, texts: list[str | None]) -> EncodedBatch:
        """Tokenise one batch in the calling thread."""
        pieces: list[str] = []
        owners: list[int] = []
        have_text = np.array([has_text(text) for text in texts], dtype=bool)
        for i, text in enumerate(texts):
            if text and (self.keep_white_space or have_text[i]):
                parts = self._pieces(text)
                pieces += parts
                owners += [i] * len(parts)
        counts: list[int] = []
        ids = [np.zeros(0, dtype=self.dtype)]
        for group in batches_of(pieces):  # of one long document, not all at once: ids are small, encodings are not
            with _single_thread(), errors_of_tokenizer():
                encoded = self._encode(group)
                ids.append(np.fromiter(chain.from_iterable(encoded), dtype=self.dtype))
            counts += map(len, encoded)
        lengths = np.bincount(np.array(owners, dtype=np.int64), weights=counts, minlength=len(texts))
        return EncodedBatch(np.concatenate(ids), lengths.astype(np.int32), have_text)

    def _pieces(self, text: str) -> list[str]:
        """Cut a long text so that the ids stay the same."""
        if self._cuts_anywhere:
            return pieces_of(text)
        if len(text) > MAX_ROW_CHARACTERS:
            raise UserError(
                f"--document_unit: a document of {len(text):,} characters is too long for this tokenizer, which "
                "cannot work in pieces; use --document_unit line or paragraph, and break longer lines"
            )
        return [text]

    def encode_stream(self, texts: Iterable[str | None]) -> Iterator[EncodedBatch]:
        """Tokenise any number of documents in order; only a few batches are in memory at a time."""
        pending: deque[Future[EncodedBatch]] = deque()
        with ThreadPoolExecutor(self.num_threads, "tokenise") as threads:
            try:
                for batch in batches_of(texts):
                    pending.append(threads.submit(self.encode, batch))
                    if len(pending) > self.num_threads:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()


@contextmanager
def errors_of_tokenizer() -> Iterator[None]:
    """Turn what a tokenizer raises about a text into one line; the tokenizers library has no class for it."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # without a Rust backend: a token that is no number
        raise UserError(
            f"the tokenizer cannot encode the text ({first_line(error)}); take out the characters that it lacks, or "
            "take another tokenizer, with an unknown token or byte fallback"
        ) from error


def available_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def pieces_of(text: str) -> list[str]:
    """Cut a long text where a byte-level BPE begins a new word anyhow.

    Where a text has no such place for a million characters it is cut all the same: every character is kept, and one
    word of a million characters becomes two.
    """
    pieces = []
    begin = 0
    while len(text) - begin > _PIECE_CHARACTERS:
        border = _WORD_BORDER.search(text, begin + _PIECE_CHARACTERS, begin + _MAX_PIECE_CHARACTERS)
        end = border.start() if border else min(begin + _MAX_PIECE_CHARACTERS, len(text))
        pieces.append(text[begin:end])
        begin = end
    return [*pieces, text[begin:]] if begin < len(text) else pieces


def batches_of(texts: Iterable[_Text]) -> Iterator[list[_Text]]:
    """Group documents into batches of bounded size."""
    batch: list[_Text] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text) if text else 0
        if len(batch) >= _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _is_gpt2_style(backend: Tokenizer) -> bool:
    """Whether words are found by GPT-2's pattern, which never spans a `_WORD_BORDER`."""
    pre_tokenizer = backend.pre_tokenizer
    return (
        isinstance(pre_tokenizer, pre_tokenizers.ByteLevel)
        and pre_tokenizer.use_regex
        and not pre_tokenizer.add_prefix_space
    )


class _SingleThread:
    """Keeps the library from spreading a batch over all cores by itself, while any thread is in it.

    The variable is one of the whole process: the first to come sets it, the last to go puts back what was there.
    """

    _NAME = "TOKENIZERS_PARALLELISM"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: str | None = None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._before = os.environ.get(self._NAME)
                os.environ[self._NAME] = "false"
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    if self._before is None:
                        del os.environ[self._NAME]
                    else:
                        os.environ[self._NAME] = self._before


_single_thread = _SingleThread()
