"""Where text comes from: the hub, a folder in the hub's layout, files, or the embedded corpus.

In: `DataArguments`. Out: a `Source` of documents per split. Next stage: `tokenization`, or `streaming`.
"""

import dataclasses
import glob
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import datasets
import fsspec.asyn
import pyarrow as pa
from datasets import Dataset, IterableDataset
from torch.utils.data import get_worker_info

from ..errors import UserError, first_line
from ..options.arguments import DataArguments
from ..runtime.hub import ensure_hub_or_offline, is_hub_id, is_local_path
from . import python_docs
from .fingerprints import file_key
from .folders import PlainFolder, plain_folder
from .readers import (
    DocumentUnit,
    Format,
    Place,
    TextFile,
    columns_of,
    errors_of,
    headers_of,
    is_empty,
    read_rows,
    text_file,
    texts_of,
)

SPLITS = ("train", "validation", "test")

_DEFAULT_TEXT_COLUMNS = ("text", "content")
_ROWS_AT_A_TIME = 1000
_STREAMED_ROWS_AT_A_TIME = 64  # which may come over a slow line


class Cursor(NamedTuple):
    """Where a document begins in a source: file, place of the row in it, and documents of the row before it."""

    file: int = 0
    offset: int = 0
    line: int = 0
    part: int = 0


class Source(Protocol):
    """The documents of one split, in order."""

    @property
    def name(self) -> str:
        """The split."""

    @property
    def origin(self) -> str:
        """The option that gave it, and what the option says."""

    @property
    def layout(self) -> str:
        """What is taken for the text, for the user."""

    def parts(self, count: int) -> Sequence["Source"] | None:
        """`count` sources of which each document is in one, and each file read by one; `None` if there are too few."""

    def in_order(self, parts: Sequence[Any]) -> Iterator[tuple[str | None, Cursor]]:
        """The documents in their order, each with the cursor that it has in its part."""

    def documents(self, start: Cursor = ...) -> Iterator[tuple[str | None, Cursor]]:
        """Each document from `start` on, blank ones included, and where it begins."""

    def key(self) -> str:
        """A name for exactly this text, cut exactly so."""


@dataclass(frozen=True)
class FileSource:
    """Documents of local files, one after the other; their formats may differ.

    Attributes:
        name: the split.
        files: where they are and how they are read.
        numbers: which of the files are read; all when left out.
    """

    name: str
    files: tuple[TextFile, ...]
    numbers: tuple[int, ...] | None = None

    @property
    def origin(self) -> str:
        """The option and the first of the files."""
        first, others = self.files[0], len(self.files) - 1
        return f"{first.option}: {first.path}{f' and {others:,} more' if others else ''}"

    @property
    def layout(self) -> str:
        """The layouts of the files, the most common first."""
        layouts = Counter(file.layout for file in self.files).most_common()
        return "; ".join(f"{count:,} file{'s' * (count != 1)}: {layout}" for layout, count in layouts)

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

    def documents(self, start: Cursor = Cursor()) -> Iterator[tuple[str | None, Cursor]]:  # noqa: B008
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
        keys = []
        for file in self.files:
            with errors_of(file):
                content = file_key(file.path)
            keys.append((str(file.format), file.compression, file.delimiter, str(file.unit), file.column, content))
        return repr(keys)


@dataclass(frozen=True)
class RowSource:
    """Documents of a dataset that the datasets library holds or streams.

    Attributes:
        name: the split.
        dataset: its rows.
        column: which of the columns holds the text.
        unit: what is one document.
        version: of the files, where the dataset has no fingerprint of its own because it is streamed.
        dataset_name: what the user called it.
        part: number of a part, which its cursors have in the place of a file's.
    """

    name: str
    dataset: Dataset | IterableDataset
    column: str
    unit: DocumentUnit
    version: str = ""
    dataset_name: str = ""
    part: int = 0

    @property
    def origin(self) -> str:
        """The option and its value."""
        return f"--dataset_name: {self.dataset_name}"

    @property
    def layout(self) -> str:
        """The column and the unit."""
        part = "" if self.unit is DocumentUnit.ROW else f", each {self.unit} of it a document"
        return f"column {self.column!r} is the text{part}"

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

    def documents(self, start: Cursor = Cursor()) -> Iterator[tuple[str | None, Cursor]]:  # noqa: B008
        """Read the rows from a row number on."""
        for number, text in enumerate(self._texts(start.offset), start.offset):
            if text is not None and not isinstance(text, str):
                raise UserError(f"--text_column: column {self.column!r} holds {type(text).__name__}, not text")
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

    def _column(self, first: int) -> Iterator[Any]:
        if isinstance(self.dataset, IterableDataset):
            if get_worker_info() is not None:
                fsspec.asyn.reset_lock()  # the library does so too: a lock taken before a fork stays locked
            # in batches, because row by row the library would divide the rows among the workers by itself
            for batch in self.dataset.skip(first).iter(_STREAMED_ROWS_AT_A_TIME):
                yield from texts_of(batch[self.column])
            return
        column = self.dataset.select_columns([self.column]).with_format("arrow")
        for start in range(first, len(column), _ROWS_AT_A_TIME):
            yield from texts_of(column[start : start + _ROWS_AT_A_TIME][self.column].to_pylist())

    def key(self) -> str:
        """The library's fingerprint, which follows the content of the hub's files."""
        version = self.version or self.dataset._fingerprint
        return repr((version, self.name, self.column, str(self.unit)))


def split_document(text: str | None, unit: DocumentUnit) -> Iterable[str | None]:
    """Cut a row into lines or paragraphs if that is what is asked for."""
    if text is None or unit in (DocumentUnit.ROW, DocumentUnit.FILE):
        return (text,)
    if unit is DocumentUnit.LINE:
        return _lines(text) or (text,)
    return _paragraphs(text)


def _paragraphs(text: str) -> list[str]:
    """Runs of lines that are not blank. Lines end at line feeds only: `str.splitlines` knows eight other ends."""
    paragraphs: list[list[str]] = []
    inside = False
    for line in _lines(text):
        blank = not line or line.isspace()
        if not blank and not inside:
            paragraphs.append([])
        if not blank:
            paragraphs[-1].append(line)
        inside = not blank
    return ["".join(lines) for lines in paragraphs] or [text]


def _lines(text: str) -> list[str]:
    """The lines of a text with their ends."""
    *lines, last = text.split("\n")
    return [*(line + "\n" for line in lines), *([last] if last else [])]


def load_sources(args: DataArguments) -> dict[str, Source]:
    """Find the text of every split that there is.

    Raises:
        UserError: if the source is missing, unreadable, empty, or has no such column.
    """
    if args.train_file or args.validation_file or args.test_file:
        return _sources_of_files(args)
    if args.dataset_name == python_docs.NAME:
        return {"train": _row_source("train", python_docs.load_python_docs(), args)}
    return _sources_of_name(args)


# ---- files ----


def _sources_of_files(args: DataArguments) -> dict[str, Source]:
    """train_file, validation_file and test_file, each a path or a glob."""
    sources: dict[str, Source] = {}
    for split in SPLITS:
        pattern = getattr(args, f"{split}_file")
        if pattern is not None:
            option = f"--{split}_file"
            files = [text_file(path, option) for path in _matches(pattern, option)]
            sources[split] = _file_source(split, files, args)
    return sources


def _matches(pattern: str, option: str) -> list[str]:
    expanded = os.path.expanduser(pattern)
    if os.path.isdir(expanded):
        raise UserError(
            f"{option}: {pattern} is a folder; give --dataset_name {pattern}, or a quoted glob such as "
            f"'{os.path.join(pattern, '**', '*.txt')}'"
        )
    paths = sorted(glob.glob(_without_names(expanded, option), recursive=True))
    paths = [path for path in paths if os.path.isfile(path)]
    if not paths:
        raise UserError(f"{option}: no file matches {pattern!r}; give a path or a quoted glob")
    return paths


def _without_names(pattern: str, option: str) -> str:
    """The pattern with those parts escaped that are names as they stand: a folder may be called `data [v1]`."""
    path, escaped = "", ""
    for part in _components(pattern):
        here = path + part
        if not os.path.lexists(here):
            return escaped + pattern[len(path) :]
        literal = escaped + glob.escape(part)
        others = set(glob.glob(escaped + part)) - {here} if glob.has_magic(part) else set()
        if others:
            raise UserError(
                f"{option}: {pattern!r} begins with the name {here!r}, which is also a pattern and matches "
                f"{min(others)!r}; for the name write {literal + pattern[len(here) :]!r}, or rename one of them"
            )
        path, escaped = here, literal
    return escaped


def _components(pattern: str) -> list[str]:
    """The names in a path, each with the separator after it."""
    separators = tuple(mark for mark in (os.sep, os.altsep) if mark)
    components = [""]
    for mark in pattern:
        components[-1] += mark
        if mark in separators:
            components.append("")
    return [component for component in components if component]


def _file_source(split: str, files: list[TextFile], args: DataArguments) -> FileSource:
    filled = [file for file in files if not is_empty(file)]
    if not filled:
        raise UserError(f"{files[0].option}: {files[0].path} is empty; give a file with text")
    return FileSource(split, tuple(_resolved(file, args) for file in filled))


def _resolved(file: TextFile, args: DataArguments) -> TextFile:
    """Settle what a document of the file is, and which column holds it."""
    if file.has_columns:
        file = dataclasses.replace(file, unit=_unit_of_rows(args, file.path))
        if file.format in (Format.CSV, Format.TSV):
            return _with_header(file, args)
        return dataclasses.replace(file, column=_find_text_column(columns_of(file), args, file.path))
    if args.text_column not in (None, "text"):
        raise UserError(f"--text_column: {file.path} is plain text and has no columns; leave the option out")
    if args.document_unit == DocumentUnit.ROW:
        raise UserError(
            f"--document_unit row: {file.path} is plain text and has no rows; use line, paragraph or file, or leave "
            "the option out"
        )
    default = DocumentUnit.FILE if file.format is Format.MARKDOWN else DocumentUnit.LINE
    return dataclasses.replace(file, unit=DocumentUnit(args.document_unit or default))


def _unit_of_rows(args: DataArguments, name: str) -> DocumentUnit:
    if args.document_unit == DocumentUnit.FILE:
        raise UserError(
            f"--document_unit file: {name} has rows, which need not belong together; use row, line or paragraph, or "
            "--sequence_mode blocks to train on one stream"
        )
    return DocumentUnit(args.document_unit or DocumentUnit.ROW)


def _with_header(file: TextFile, args: DataArguments) -> TextFile:
    """Settle what is between the fields of a CSV file: what makes its header name the column of the text."""
    headers = headers_of(file)
    wanted = _wanted_columns(args)
    several = {mark: fields for mark, fields in headers.items() if len(fields) > 1}
    found = [mark for mark, fields in several.items() if any(name in fields for name in wanted)]
    if len(found) > 1:
        raise UserError(
            f"{file.option}: the header of {file.path} can be read in {len(found)} ways, with the delimiters "
            f"{' and '.join(map(repr, found))}; quote its names, or write the file again as jsonl"
        )
    if found:
        delimiter = found[0]
    elif any(fields[0] in wanted for fields in headers.values() if len(fields) == 1):
        delimiter = next(mark for mark, fields in headers.items() if len(fields) == 1)
    else:  # the column is not there: say what there is
        delimiter = max(headers, key=lambda mark: len(headers[mark]))
    columns = headers[delimiter]
    if args.text_column is None and len(columns) == 1 and columns[0] not in wanted:
        raise UserError(
            f"--text_column: {file.path} has a single column, which its first line calls {columns[0]!r}; give "
            "--text_column with that name if the line is a header, else write one above it"
        )
    return dataclasses.replace(file, delimiter=delimiter, column=_find_text_column(columns, args, file.path))


def _wanted_columns(args: DataArguments) -> tuple[str, ...]:
    return _DEFAULT_TEXT_COLUMNS if args.text_column is None else (args.text_column,)


def _find_text_column(columns: list[str], args: DataArguments, where: str) -> str:
    wanted = args.text_column
    there = ", ".join(columns) or "none"
    if wanted is None:
        candidates = [name for name in _DEFAULT_TEXT_COLUMNS if name in columns]
        wanted = candidates[0] if candidates else columns[0] if len(columns) == 1 else None
    if wanted is None:
        raise UserError(f"--text_column: which column of {where} holds the text? It has {there}")
    if wanted not in columns:
        raise UserError(f"--text_column: {where} has no column {wanted!r}; it has {there}")
    if columns.count(wanted) > 1:
        raise UserError(f"--text_column: {where} has {columns.count(wanted)} columns {wanted!r}; rename them")
    return wanted


# ---- hub and folders ----


def _sources_of_name(args: DataArguments) -> dict[str, Source]:
    assert args.dataset_name is not None
    name = os.path.expanduser(args.dataset_name)
    if is_local_path(name) and not os.path.isdir(name):
        raise UserError(f"--dataset_name: there is no folder {name}; give a hub id, or a folder in the hub's layout")
    if is_hub_id(name):
        ensure_hub_or_offline()
    try:
        if os.path.isdir(name):
            return _sources_of_folder(name, args)
        return _sources_of_library(name, _choose_config(name, args), args)
    except (ConnectionError, FileNotFoundError) as error:
        raise _not_found(name, error) from error
    except (datasets.exceptions.DatasetGenerationError, ValueError, RuntimeError) as error:  # scripts: RuntimeError
        if isinstance(error, UserError):
            raise
        raise UserError(f"--dataset_name: {name} cannot be loaded: {first_line(error.__cause__ or error)}") from error
    except OSError as error:
        raise UserError(f"--dataset_name: {name} cannot be loaded: {error.strerror or error}") from error


def _sources_of_library(name: str, config_name: str | None, args: DataArguments) -> dict[str, Source]:
    """What the datasets library reads, stored or streamed."""
    if args.streaming:
        builder = datasets.load_dataset_builder(name, config_name)
        loaded, version = dict(builder.as_streaming_dataset()), f"{builder.config_id} {builder.hash}"
    else:
        loaded, version = dict(datasets.load_dataset(name, config_name)), ""
    return _row_sources(loaded, args, version)


def _row_sources(loaded: Mapping[str, Any], args: DataArguments, version: str = "") -> dict[str, Source]:
    return {split: _row_source(split, rows, args, version) for split, rows in loaded.items() if split in SPLITS}


def _sources_of_folder(name: str, args: DataArguments) -> dict[str, Source]:
    if any(os.path.isfile(os.path.join(name, mark)) for mark in ("state.json", "dataset_dict.json")):
        return _sources_of_disk(name, args)
    with plain_folder(name) as folder:
        config_name = _choose_config(folder.path, args)
        sources = _sources_of_files_in(folder, config_name, args)
        if sources is not None:
            return sources
        if folder.is_copy:
            raise UserError(
                f"--dataset_name: only the datasets library can read the files of {name}, and it cannot take their "
                "names; rename folder and files to letters, digits, spaces and . - _"
            )
        return _sources_of_library(name, config_name, args)


def _sources_of_disk(name: str, args: DataArguments) -> dict[str, Source]:
    """What `save_to_disk` of the datasets library has written; a dataset without splits is the training split."""
    if args.dataset_config_name is not None and not args.dataset_config_is_inherited:
        raise UserError(f"--dataset_config_name: {name} was written by save_to_disk, without configs; leave it out")
    args.dataset_config_name = None
    loaded = datasets.load_from_disk(name)
    return _row_sources({"train": loaded} if isinstance(loaded, Dataset) else loaded, args)


def _sources_of_files_in(
    folder: PlainFolder, config_name: str | None, args: DataArguments
) -> dict[str, Source] | None:
    """The files that the hub's layout gives to each split; `None` if they are not of a format that `readers` knows."""
    config: Any = datasets.load_dataset_builder(folder.path, config_name).config
    if type(config).__name__ not in ("TextConfig", "JsonConfig", "CsvConfig", "ParquetConfig"):
        return None
    if getattr(config, "field", None) is not None or getattr(config, "column_names", None) is not None:
        return None
    if len(getattr(config, "sep", ",")) != 1:
        return None
    sources: dict[str, Source] = {}
    for split in SPLITS:
        if split not in config.data_files:
            continue
        paths = [folder.original(str(path)) for path in config.data_files[split]]
        files = [text_file(path, "--dataset_name") for path in paths]
        if getattr(config, "sep", ",") != ",":
            files = [dataclasses.replace(file, delimiter=config.sep) for file in files]
        sources[split] = _file_source(split, files, args)
    return sources


def _choose_config(name: str, args: DataArguments) -> str | None:
    """The wanted config of a dataset, or its default if the wanted one came along from a config file for another.

    Then the arguments forget it, so that the record of the run does not ask this dataset for it.
    """
    wanted = args.dataset_config_name
    if wanted is None:
        return None
    available = datasets.get_dataset_config_names(name)
    if wanted in available:
        return wanted
    if args.dataset_config_is_inherited:
        args.dataset_config_name = None
        return None
    raise UserError(
        f"--dataset_config_name: {args.dataset_name} has no config {wanted!r}; available: {', '.join(available)}"
    )


def _row_source(split: str, dataset: Dataset | IterableDataset, args: DataArguments, version: str = "") -> RowSource:
    where = f"the {split} split of {args.dataset_name}"
    columns = dataset.column_names or list(next(iter(dataset), {}))
    column = _find_text_column(columns, args, where)
    return RowSource(split, dataset, column, _unit_of_rows(args, where), version, str(args.dataset_name))


def _not_found(name: str, error: OSError) -> UserError:
    if os.path.isdir(name):
        return UserError(
            f"--dataset_name: the folder {name} holds no data files; put txt, md, jsonl, csv or parquet files into "
            "it, or give --train_file"
        )
    if isinstance(error, FileNotFoundError) and ensure_hub_or_offline():  # the hub answered
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            return UserError(
                f"--dataset_name: the hub has no {name!r}, or not without a login ({first_line(error).rstrip('.')}); "
                "check the name, or ask for access and log in with: hf auth login"
            )
        return UserError(f"--dataset_name: {name} cannot be loaded: {first_line(error)}")
    return UserError(
        f"--dataset_name: {name!r} is not in the local cache and the hub cannot be reached; point --dataset_name at "
        "a local folder in the hub's layout, or --train_file at a file, or use --dataset_name python-docs"
    )
