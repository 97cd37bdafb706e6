"""A corpus that is not stored: read, shuffled and tokenised while the model trains.

In: a `Source` and a tokenizer. Out: `StreamingSamples`, an endless torch dataset, and `StreamingLoader`, which makes
batches of it and knows exactly where it is. Next stage: `trainer`.

A shard is one worker of one process. Where there are as many files as shards, each shard reads files that no other
reads. The files are put into as many parts of about the same size; shard s reads part s in the first pass over the
corpus, and part s + 1 in the next, so that over the passes no part is read more often than another. Where there are
fewer files, each shard reads all of them, and document number i belongs to shard i modulo the number of shards; blank
ones have no number. Either way no document of a pass is left out, and none comes twice.

Documents are read in windows, of `buffer_size` over all shards, and shuffled inside each. Each sample carries its
`Position`: where its window begins in the corpus, and how many samples of the window have been given. A position is
eight numbers, whatever the size of the buffer, and travels with the batch from the worker to the checkpoint. Going on
from it reads one window again, at most, and of plain files nothing before it. A compressed file is decompressed from
its beginning, a JSON array is parsed whole, and the datasets library, which streams from the hub, reads the rows
before it once more and drops them. Without a validation split every start also reads the first documents, up to
100,000, to know which are set aside.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..runtime.stop_signals import shield_workers
from .cache import entry_key
from .encoding import EncodedBatch, Encoder, has_text
from .samples import SequenceMode
from .sources import Cursor, Documents, Source
from .tokenization import is_set_aside, share_of, tokenizer_key
from .tokenizer import separator_id

# Part of the key: raise it when the same text and options give other samples, or in another order.
_STREAM_VERSION = "3"
# Without a validation split, documents are set aside among so many first ones: they can be found without reading all.
_SET_ASIDE_AMONG = 100_000

POSITION_KEY = "stream_position"


class Position(NamedTuple):
    """How far a shard has come: a window, where it begins in the corpus, and samples given of it."""

    epoch: int = 0
    window: int = 0
    given: int = 0
    file: int = 0
    offset: int = 0
    line: int = 0
    part: int = 0
    shard: int = 0

    @property
    def cursor(self) -> Cursor:
        """Where the window begins."""
        return Cursor(self.file, self.offset, self.line, self.part)


@dataclass(frozen=True)
class _SetAside:
    """The documents of the beginning of a stream that are kept for validation."""

    source: Source
    share: Fraction
    name: str = "validation"

    def documents(self, start: Cursor = Cursor()) -> Iterator[tuple[str | None, Cursor]]:  # noqa: B008
        return _set_aside(self.source.documents(start), self.share)

    def key(self) -> str:
        source_key = self.source.stream_key(dated=True)  # of the text only the beginning is read
        return repr(("set aside of documents with text", _SET_ASIDE_AMONG, str(self.share), source_key))


def _set_aside(documents: Iterator[tuple[str | None, Cursor]], share: Fraction) -> Iterator[tuple[str | None, Cursor]]:
    numbered = (document for document in documents if has_text(document[0]))
    for index, document in enumerate(itertools.islice(numbered, _SET_ASIDE_AMONG)):
        if is_set_aside(index, share):
            yield document


def set_aside_of_stream(source: Source, percentage: float) -> tuple[Documents, str]:
    """The validation documents of a streamed source without a validation split, and the line that says so."""
    line = (
        f"no validation split: of the first {_SET_ASIDE_AMONG:,} documents, {percentage:g} %, evenly spaced, are set "
        "aside (--validation_split_percentage)"
    )
    return _SetAside(source, share_of(percentage)), line


@dataclass
class StreamingSamples(IterableDataset):
    """Samples of a corpus without end: after its last document the next epoch begins, in another order.

    Each item is `{"input_ids": int64 [n + 1], "position": Position}`. In `blocks` the documents of a window, of one
    shard, are one stream; its last block is short, and nothing is dropped.

    Args:
        source: the documents.
        tokenizer: makes the token ids.
        max_length: longest sample, in scored positions.
        mode: how documents become samples.
        truncate: cut documents instead of continuing them.
        seed: of the order.
        buffer_size: documents that are shuffled together, over all shards.
        set_aside_percentage: leave out what `set_aside_of_stream` has set aside.
        epochs: number of passes after which it ends; never when left out.
        rank: number of this process, `world_size` of how many.
        world_size: processes that train together.
        num_threads: that tokenise where no worker does; one for each core when left out.
    """

    source: Source
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    mode: SequenceMode = SequenceMode.PADDING_FREE
    truncate: bool = False
    seed: int = 42
    buffer_size: int = 10_000
    set_aside_percentage: float | None = None
    epochs: int | None = None
    rank: int = 0
    world_size: int = 1
    num_threads: int | None = None
    # Where each worker goes on, and which of them gives the next batch; set by `StreamingLoader`.
    positions: dict[int, Position] = dataclasses.field(default_factory=dict)
    first_worker: int = 0
    # The source, the tokenizer and the keys of both, once they are known; `dataclasses.replace` carries them along.
    known_key: tuple[Source, PreTrainedTokenizerBase, tuple[str, str]] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )
    # Where the documents are that are left out, after what that depends on: source, percentage and number of shards.
    # They are found once, and carried along to the workers.
    known_set_aside: tuple[Source, float | None, int, frozenset[Cursor]] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    @property
    def separator(self) -> int:
        """The id before each document of `blocks`; -1 in the other modes."""
        return separator_id(self.tokenizer) if self.mode is SequenceMode.BLOCKS else -1

    def key(self) -> str:
        """A name for exactly this sequence of samples, save for how it is divided among processes.

        Files and tokenizer are looked at once, not at every checkpoint: the name is that of the text that training
        began with.
        """
        known = self.known_key
        if known is None or known[0] is not self.source or known[1] is not self.tokenizer:
            keys = self.source.stream_key(), tokenizer_key(self.tokenizer)
            known = self.known_key = self.source, self.tokenizer, keys
        parts = (*known[2], str(self.mode), str(self.max_length))
        options = (self.truncate, self.seed, self.buffer_size, self.set_aside_percentage, self.separator)
        return entry_key(_STREAM_VERSION, *parts, repr(options))

    def parts(self, num_shards: int) -> Sequence[Source] | None:
        """What each shard reads in the first pass; `None` if each reads all."""
        return self.source.parts(num_shards) if num_shards > 1 else None

    def find_set_aside(self, num_shards: int) -> frozenset[Cursor]:
        """Where the documents begin that are set aside. The first time it reads the beginning of the text."""
        known, percentage = self.known_set_aside, self.set_aside_percentage
        if known is None or known[0] is not self.source or known[1:3] != (percentage, num_shards):
            places: frozenset[Cursor] = frozenset()
            if percentage is not None:
                parts = self.parts(num_shards)
                documents = self.source.documents() if parts is None else self.source.in_order(parts)
                places = frozenset(cursor for _, cursor in _set_aside(documents, share_of(percentage)))
            # last, because reading may break off
            known = self.known_set_aside = self.source, percentage, num_shards, places
        return known[3]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        num_workers = info.num_workers if info is not None else 1
        # a DataLoader always asks its worker 0 first
        worker = ((info.id if info is not None else 0) + self.first_worker) % num_workers
        shard = _Shard(self, self.rank * num_workers + worker, self.world_size * num_workers, info is not None)
        yield from shard.samples(self.positions.get(worker, Position(shard=worker))._replace(shard=worker))


class _Shard:
    """What one worker does."""

    def __init__(self, stream: StreamingSamples, number: int, count: int, in_worker: bool):
        self.stream = stream
        self.number = number
        self.count = count
        self.encoder = Encoder(stream.tokenizer, 1 if in_worker else stream.num_threads)
        self.separator = stream.separator
        self.set_aside = stream.find_set_aside(count)
        self.parts = stream.parts(count)
        self.window_size = stream.buffer_size if self.parts is None else max(stream.buffer_size // count, 1)

    def samples(self, position: Position) -> Iterator[dict[str, Any]]:
        blank_epochs = 0
        while self.stream.epochs is None or position.epoch < self.stream.epochs:
            found = position.given > 0 or position.window > 0
            for begin, texts in self._windows(position):
                for given, ids in enumerate(self._cut(texts)):
                    found = True
                    if given >= begin.given:
                        yield {"input_ids": ids, "position": begin._replace(given=given + 1)}
            blank_epochs = 0 if found else blank_epochs + 1
            if blank_epochs == (1 if self.parts is None else self.count):  # after which every part was read
                raise self._no_text()
            position = Position(epoch=position.epoch + 1, shard=position.shard)

    def _no_text(self) -> UserError:
        source = self.stream.source
        shard = f" for process and worker {self.number + 1} of {self.count}" if self.count > 1 else ""
        remedy = "use fewer --num_workers, or " if self.count > 1 else ""
        return UserError(
            f"{source.origin}: the {source.name} split has no text{shard}; {remedy}give a text that is not blank, or "
            "another --text_column"
        )

    def _windows(self, position: Position) -> Iterator[tuple[Position, list[str]]]:
        """Each window from a position on: where it begins, and this shard's documents of it in their order."""
        size = self.window_size
        source = self.stream.source if self.parts is None else self.parts[(self.number + position.epoch) % self.count]
        own: list[str] = []
        begin = position
        index = position.window * size
        for text, cursor in source.documents(position.cursor):
            if not has_text(text):
                continue
            if index % size == 0 and index > position.window * size:
                yield begin, self._shuffled(own, begin)
                own = []
                begin = Position(position.epoch, index // size, 0, *cursor, position.shard)
            is_own = self.parts is not None or index % self.count == self.number
            if is_own and cursor not in self.set_aside:
                own.append(text)
            index += 1
        yield begin, self._shuffled(own, begin)

    def _shuffled(self, texts: list[str], begin: Position) -> list[str]:
        generator = np.random.Generator(np.random.Philox(key=[self.stream.seed, begin.epoch]))
        generator = np.random.Generator(
            np.random.Philox(key=[int(generator.integers(1 << 63)) + begin.window, self.number])
        )
        return [texts[i] for i in generator.permutation(len(texts))]

    def _cut(self, texts: list[str]) -> Iterator[np.ndarray]:
        """The samples of documents, in their order."""
        length = self.stream.max_length
        if self.stream.mode is SequenceMode.BLOCKS:
            yield from _blocks(self.encoder.encode_stream(texts), length, self.separator)
            return
        for batch in self.encoder.encode_stream(texts):
            for ids in np.split(batch.ids.astype(np.int64), np.cumsum(batch.lengths)[:-1]):
                stop = min(len(ids) - 1, length) if self.stream.truncate else len(ids) - 1
                for start in range(0, stop, length):
                    yield ids[start : start + length + 1]


def _blocks(batches: Iterator[EncodedBatch], length: int, separator: int) -> Iterator[np.ndarray]:
    rest = np.zeros(0, dtype=np.int64)
    for batch in batches:
        starts = np.cumsum(batch.lengths) - batch.lengths
        stream = np.concatenate([rest, np.insert(batch.ids.astype(np.int64), starts, separator)])
        whole = max(len(stream) - 1, 0) // length
        for block in range(whole):
            yield stream[block * length : (block + 1) * length + 1]
        rest = stream[whole * length :]
    if len(rest) > 1:
        yield rest


class StreamingLoader:
    """Batches of `StreamingSamples`, with the exact position after the last batch that was given.

    Batches that workers have prepared ahead are not counted, because positions come with the batches.

    Args:
        samples: the stream; `rank` and `world_size` of it are those of this process.
        batch_size: samples of a batch.
        collator: makes a batch.
        num_workers: processes that read and tokenise; 0: threads of this process.
        device: where batches go, from pinned memory without a wait; they stay on the host when left out.
        options: further options of `torch.utils.data.DataLoader`.
    """

    def __init__(
        self,
        samples: StreamingSamples,
        batch_size: int,
        collator: Callable[[list[dict[str, Any]]], dict[str, Any]],
        num_workers: int = 0,
        device: torch.device | None = None,
        **options: Any,
    ):
        self.device = device
        self.dataset = samples
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.collator = collator
        self.options = options
        self._positions: dict[int, Position] = {}
        self._next_worker = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.dataset.find_set_aside(self.dataset.world_size * max(self.num_workers, 1))
        samples = dataclasses.replace(self.dataset, positions=dict(self._positions), first_worker=self._next_worker)
        loader = DataLoader(
            samples,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_PositionedCollator(self.collator),
            # of its own, so that making it does not move the random numbers of training
            generator=torch.Generator(),
            **self.options,
        )
        for batch in _plain_errors(shield_workers(loader)):
            position = Position(*batch.pop(POSITION_KEY)[0].tolist())
            self._positions[position.shard] = position
            self._next_worker = (position.shard + 1) % max(self.num_workers, 1)
            yield batch if self.device is None else send_to_device(batch, self.device, non_blocking=True)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue after the last batch; plain numbers, for JSON."""
        return {
            "key": self.dataset.key(),
            "rank": self.dataset.rank,
            "world_size": self.dataset.world_size,
            "num_workers": self.num_workers,
            "next_worker": self._next_worker,
            "positions": {str(worker): list(position) for worker, position in self._positions.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was called.

        Raises:
            UserError: if the stream is another one, or divided otherwise.
        """
        if state["key"] != self.dataset.key():
            raise UserError(
                "--resume_from: the streamed text, its tokenizer or its options are not those of the checkpoint, or "
                "it is of an earlier version of gpt2_hf; start a new run with --model_name_or_path"
            )
        for name, option, current in (
            ("world_size", "processes", self.dataset.world_size),
            ("num_workers", "--num_workers", self.num_workers),
        ):
            if state[name] != current:
                raise UserError(
                    f"--resume_from: a streamed run resumes with as many {option} as before, {state[name]}, not "
                    f"{current}"
                )
        self._positions = {int(worker): Position(*values) for worker, values in state["positions"].items()}
        self._next_worker = state["next_worker"]


def _plain_errors(loader: DataLoader) -> Iterator[dict[str, Any]]:
    """The batches; what the user got wrong is one line again, without the worker's traceback around it."""
    try:
        yield from loader
    except UserError as error:
        message = str(error.args[0]).strip().split("\n")[-1]
        raise UserError(message.removeprefix(f"{UserError.__module__}.UserError: ")) from None


@dataclass(frozen=True)
class _PositionedCollator:
    """Adds the position of a batch's last sample to the batch."""

    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self.collator(samples), POSITION_KEY: torch.tensor([list(samples[-1]["position"])])}
