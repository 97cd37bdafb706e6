"""The documents of a split, from files or the datasets library: in order, from any place on, in parts."""

import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import datasets
import fsspec.asyn
import pyarrow as pa
from datasets import Dataset, IterableDataset
from torch.utils.data import get_worker_info

from ...errors import UserError, first_line
from ..fingerprints import file_key, sample_key
from ..readers import DocumentUnit, Place, TextFile, errors_of, not_text, read_rows, texts_of, with_line_feeds
from .documents import split_document

SPLITS = ("train", "validation", "test")
_ROWS_AT_A_TIME = 1000
_STREAMED_ROWS_AT_A_TIME = 64  # which may come over a slow line


class Cursor(NamedTuple):
    """Where a document begins in a source: file, place of the row in it, and documents of the row before it."""

    file: int = 0
    offset: int = 0
    line: int = 0
    part: int = 0


class Documents(Protocol):
    """The documents of one split, in order: what is tokenized."""

    @property
    def name(self) -> str:
        """The split."""

    def documents(self, start: Cursor = ...) -> Iterator[tuple[str | None, Cursor]]:
        """Each document from `start` on, blank ones included, and where it begins."""

    def key(self) -> str:
        """A name for exactly this text, cut exactly so."""


class Source(Documents, Protocol):
    """A split that is told of, and may be divided among processes."""

    @property
    def origin(self) -> str:
        """The option that gave it, and what the option says."""

    @property
    def layout(self) -> str:
        """What is taken for the text, for the user."""

    def stream_key(self, dated: bool = False) -> str:
        """A name for this text that is found without reading all of it; `dated` as `sample_key` takes it."""

    def parts(self, count: int) -> Sequence["Source"] | None:
        """`count` sources of which each document is in one, and each file read by one; `None` if there are too few."""

    def in_order(self, parts: Sequence[Any]) -> Iterator[tuple[str | None, Cursor]]:
        """The documents in their order, each with the cursor that it has in its part."""


@dataclass(frozen=True)
class FileSource:
    """Documents of local files, one after the other; their formats may differ.

    Attributes:
        name: the split.
        files: where they are and how they are read.
        numbers: which of the files are read; all when left out.
        note: what else the user must know of the text.
    """

    name: str
    files: tuple[TextFile, ...]
    numbers: tuple[int, ...] | None = None
    note: str = ""

    @property
    def paths(self) -> list[str]:
        """Where the files are."""
        return [file.path for file in self.files]

    @property
    def origin(self) -> str:
        """The option and the first of the files."""
        first, others = self.files[0], len(self.files) - 1
        return f"{first.option}: {first.path}{f' and {others:,} more' if others else ''}"

    @property
    def layout(self) -> str:
        """The layouts of the files, the most common first, and the note."""
        layouts = Counter(file.layout for file in self.files).most_common()
        lines = [f"{count:,} file{'s' * (count != 1)}: {layout}" for layout, count in layouts]
        return "; ".join(filter(None, [*lines, self.note]))

    def parts(self, count: int) -> Sequence["FileSource"] | None:
        """Parts of whole files, of about the same number of bytes."""
        if count > len(self.files):
            return None
        sizes = [os.path.getsize(file.path) for file in self.files]
        parts: list[list[int]] = [[] for _ in range(count)]
        loads = [0] * count
        # the largest first, each to the part that has least; one more byte, so that every part gets a file
        for number in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            part = loads.index(min(loads))
            parts[part].append(number)
            loads[part] += sizes[number] + 1
        return [dataclasses.replace(self, numbers=tuple(sorted(numbers))) for numbers in parts]

    def in_order(self, parts: Sequence["FileSource"]) -> Iterator[tuple[str | None, Cursor]]:
        """The documents; parts number the files as the whole does."""
        return self.documents()

    def documents(self, start: Cursor = Cursor()) -> Iterator[tuple[str | None, Cursor]]:  # noqa: B008 (a Cursor cannot change)
        """Read the files as a stream."""
        for number in range(len(self.files)) if self.numbers is None else self.numbers:
            if number < start.file:
                continue
            file = self.files[number]
            here = start if number == start.file else Cursor(number)
            for text, place in read_rows(file, Place(here.offset, here.line)):
                documents = split_document(text, file.unit)
                skipped = here.part if place.offset == here.offset else 0
                for part, document in enumerate(documents):
                    if part >= skipped:
                        yield document, Cursor(number, place.offset, place.line, part)

    def key(self) -> str:
        """Contents and reading options of the files; where they lie and what they are called does not matter."""
        return self._key(file_key)

    def stream_key(self, dated: bool = False) -> str:
        """The same, with samples of the contents."""
        return self._key(partial(sample_key, dated=dated))

    def _key(self, key_of_file: Callable[[str], str]) -> str:
        keys = []
        for file in self.files:
            with errors_of(file):
                content = key_of_file(file.path)
            keys.append((str(file.format), file.compression, file.delimiter, str(file.unit), file.column, content))
        return repr(keys)


@dataclass(frozen=True)
class RowSource:
    """Documents of a dataset that the datasets library holds or streams, with `\\n` for every line end.

    Attributes:
        name: the split.
        dataset: its rows.
        column: which of the columns holds the text.
        unit: what is one document.
        version: of the files, where the dataset has no fingerprint that follows their content.
        dataset_name: what the user called it.
        part: number of a part, which its cursors have in the place of a file's.
        note: what else the user must know of the text.
        files: local files with its content, or their addresses, where the version does not follow it.
        line_end: the line feeds that each row ends with, where the library has taken them off.
    """

    name: str
    dataset: Dataset | IterableDataset
    column: str
    unit: DocumentUnit
    version: str = ""
    dataset_name: str = ""
    part: int = 0
    note: str = ""
    files: tuple[str, ...] = ()
    line_end: str = ""

    @property
    def origin(self) -> str:
        """The option and its value."""
        return f"--dataset_name: {self.dataset_name}"

    @property
    def layout(self) -> str:
        """The column, the unit, and the note."""
        part = "" if self.unit is DocumentUnit.ROW else f", each {self.unit} of it a document"
        return "; ".join(filter(None, [f"column {self.column!r} is the text{part}", self.note]))

    def parts(self, count: int) -> Sequence["RowSource"] | None:
        """Parts of consecutive rows, of a dataset that is streamed parts of consecutive files."""
        available = self.dataset.num_shards if isinstance(self.dataset, IterableDataset) else len(self.dataset)
        if count > available:
            return None
        shards = [self.dataset.shard(count, part, contiguous=True) for part in range(count)]
        return [dataclasses.replace(self, dataset=shard, part=part) for part, shard in enumerate(shards)]

    def in_order(self, parts: Sequence["RowSource"]) -> Iterator[tuple[str | None, Cursor]]:
        """The documents of part after part."""
        return itertools.chain.from_iterable(part.documents() for part in parts)

    def documents(self, start: Cursor = Cursor()) -> Iterator[tuple[str | None, Cursor]]:  # noqa: B008 (a Cursor cannot change)
        """Read the rows from a row number on."""
        for number, text in enumerate(self._texts(start.offset), start.offset):
            if text is not None and not isinstance(text, str):
                raise not_text(self.column, type(text).__name__)
            if text is not None:
                text = with_line_feeds(text)
                while not text.endswith(self.line_end):
                    text += "\n"
            skipped = start.part if number == start.offset else 0
            for part, document in enumerate(split_document(text, self.unit)):
                if part >= skipped:
                    yield document, Cursor(self.part, number, number, part)

    def _texts(self, first: int) -> Iterator[Any]:
        number = first
        try:
            for text in self._column(first):
                yield text
                number += 1
        except (UnicodeDecodeError, pa.ArrowException) as error:
            raise UserError(
                f"--dataset_name: column {self.column!r} of the {self.name} split cannot be read after row {number:,} "
                f"({first_line(error)}); repair the files"
            ) from error
        except (ValueError, KeyError, datasets.exceptions.DatasetsError) as error:  # rows of another shape
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"--dataset_name: the {self.name} split of {self.dataset_name} cannot be read after row {number:,} "
                f"({first_line(error)}); its files do not all have the same columns"
            ) from error
        except OSError as error:  # of the network too
            raise UserError(
                f"--dataset_name: the {self.name} split of {self.dataset_name} cannot be read after row {number:,} "
                f"({first_line(error)}); try again, and a run that had begun with --resume_from latest"
            ) from error

    def _column(self, first: int) -> Iterator[Any]:
        if isinstance(self.dataset, IterableDataset):
            if get_worker_info() is not None:
                fsspec.asyn.reset_lock()  # the library does so too: a lock taken before a fork stays locked
            # in batches, because row by row the library would divide the rows among the workers by itself
            rows = self.dataset.select_columns([self.column])  # images of other columns are not decoded
            for batch in rows.skip(first).iter(_STREAMED_ROWS_AT_A_TIME):
                yield from texts_of(batch[self.column])
            return
        column = self.dataset.select_columns([self.column]).with_format("arrow")
        for start in range(first, len(column), _ROWS_AT_A_TIME):
            yield from texts_of(column[start : start + _ROWS_AT_A_TIME][self.column].to_pylist())

    def key(self) -> str:
        """The content of local files; else the library's fingerprint, which follows the content of the hub's."""
        return self._key(file_key)

    def stream_key(self, dated: bool = False) -> str:
        """The same, with samples of the content of local files."""
        return self._key(partial(sample_key, dated=dated))

    def _key(self, key_of_file: Callable[[str], str]) -> str:
        contents = [key_of_file(path) if os.path.isfile(path) else path for path in self.files]
        version = f"{self.version}{contents}" if contents else self.version or self.dataset._fingerprint
        return repr((version, self.name, self.column, str(self.unit), *filter(None, [self.line_end])))
