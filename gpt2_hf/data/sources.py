"""Where text comes from: the hub, a folder in the hub's layout, files, or the embedded corpus.

In: `DataArguments`. Out: a `Source` of documents per split. Next stage: `tokenization`, or `streaming`.
"""

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset

from ..errors import UserError
from ..options.arguments import DataArguments
from ..runtime.hub import ensure_hub_or_offline, is_hub_id, is_local_path
from . import python_docs
from .fingerprints import file_key
from .readers import DocumentUnit, Format, Place, TextFile, columns_of, errors_of, is_empty, read_rows, text_file

SPLITS = ("train", "validation", "test")

_DEFAULT_TEXT_COLUMNS = ("text", "content")


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

    def documents(self, start: Cursor = ...) -> Iterator[tuple[str | None, Cursor]]:
        """Each document from `start` on, blank ones included, and where it begins."""

    def key(self) -> str:
        """A name for exactly this text, cut exactly so."""


@dataclass(frozen=True)
class FileSource:
    """Documents of local files, one after the other; their formats may differ."""

    name: str
    files: tuple[TextFile, ...]

    def documents(self, start: Cursor = Cursor()) -> Iterator[tuple[str | None, Cursor]]:  # noqa: B008
        """Read the files as a stream."""
        for number in range(start.file, len(self.files)):
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
    """

    name: str
    dataset: Dataset | IterableDataset
    column: str
    unit: DocumentUnit
    version: str = ""

    def documents(self, start: Cursor = Cursor()) -> Iterator[tuple[str | None, Cursor]]:  # noqa: B008
        """Read the rows from a row number on."""
        for number, text in enumerate(self._texts(start.offset), start.offset):
            if text is not None and not isinstance(text, str):
                raise UserError(f"--text_column: column {self.column!r} holds {type(text).__name__}, not text")
            skipped = start.part if number == start.offset else 0
            for part, document in enumerate(split_document(text, self.unit)):
                if part >= skipped:
                    yield document, Cursor(0, number, number, part)

    def _texts(self, first: int) -> Iterator[Any]:
        number = first
        try:
            for text in self._column(first):
                yield text
                number += 1
        except (UnicodeDecodeError, pa.ArrowException) as error:
            raise UserError(
                f"--dataset_name: column {self.column!r} of the {self.name} split cannot be read after row {number:,} "
                f"({_first_line(error)}); repair the files"
            ) from error

    def _column(self, first: int) -> Iterator[Any]:
        if isinstance(self.dataset, IterableDataset):
            yield from (row[self.column] for row in self.dataset.skip(first))
            return
        column = self.dataset.select_columns([self.column]).with_format("arrow")
        for start in range(first, len(column), 1000):
            yield from column[start : start + 1000][self.column].to_pylist()

    def key(self) -> str:
        """The library's fingerprint, which follows the content of the hub's files."""
        version = self.version or self.dataset._fingerprint
        return repr((version, self.name, self.column, str(self.unit)))


def split_document(text: str | None, unit: DocumentUnit) -> Iterable[str | None]:
    """Cut a row into lines or paragraphs if that is what is asked for."""
    if text is None or unit in (DocumentUnit.ROW, DocumentUnit.FILE):
        return (text,)
    if unit is DocumentUnit.LINE:
        if "\n" not in text[:-1]:
            return (text,)
        return [line + "\n" for line in text[:-1].split("\n")[:-1]] + [text[text.rindex("\n", 0, -1) + 1 :]]
    return _paragraphs(text)


def _paragraphs(text: str) -> list[str]:
    paragraphs: list[str] = []
    inside = False
    for line in text.splitlines(keepends=True):
        if line.isspace():
            inside = False
        elif inside:
            paragraphs[-1] += line
        else:
            paragraphs.append(line)
            inside = True
    return paragraphs or [text]


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
    # a file that is there may have the marks of a glob in its name
    paths = [expanded] if os.path.isfile(expanded) else sorted(glob.glob(expanded, recursive=True))
    paths = [path for path in paths if os.path.isfile(path)]
    if not paths:
        raise UserError(f"{option}: no file matches {pattern!r}; give a path or a quoted glob")
    return paths


def _file_source(split: str, files: list[TextFile], args: DataArguments) -> FileSource:
    filled = [file for file in files if not is_empty(file)]
    if not filled:
        raise UserError(f"{files[0].option}: {files[0].path} is empty; give a file with text")
    return FileSource(split, tuple(_resolved(file, args) for file in filled))


def _resolved(file: TextFile, args: DataArguments) -> TextFile:
    """Settle what a document of the file is, and which column holds it."""
    if file.has_columns:
        unit = _unit_of_rows(args, file.path)
        return dataclasses.replace(file, unit=unit, column=_find_text_column(columns_of(file), args, file.path))
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


def _find_text_column(columns: list[str], args: DataArguments, where: str) -> str:
    wanted = args.text_column
    if wanted is None:
        candidates = [name for name in _DEFAULT_TEXT_COLUMNS if name in columns]
        wanted = candidates[0] if candidates else columns[0] if len(columns) == 1 else None
    if wanted is None:
        raise UserError(
            f"--text_column: which column of {where} holds the text? It has {', '.join(columns) or 'none'}"
        )
    if wanted not in columns:
        raise UserError(f"--text_column: {where} has no column {wanted!r}; it has {', '.join(columns) or 'none'}")
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
        config_name = _choose_config(name, args)
        if os.path.isdir(name):
            sources = _sources_of_folder(name, config_name, args)
            if sources is not None:
                return sources
        if args.streaming:
            builder = datasets.load_dataset_builder(name, config_name)
            loaded, version = dict(builder.as_streaming_dataset()), f"{builder.config_id} {builder.hash}"
        else:
            loaded, version = dict(datasets.load_dataset(name, config_name)), ""
    except (ConnectionError, FileNotFoundError) as error:
        raise _not_found(name, error) from error
    except (datasets.exceptions.DatasetGenerationError, ValueError, RuntimeError) as error:  # scripts: RuntimeError
        if isinstance(error, UserError):
            raise
        raise UserError(f"--dataset_name: {name} cannot be loaded: {_first_line(error.__cause__ or error)}") from error
    except OSError as error:
        raise UserError(f"--dataset_name: {name} cannot be loaded: {error.strerror or error}") from error
    return {split: _row_source(split, dataset, args, version) for split, dataset in loaded.items() if split in SPLITS}


def _sources_of_folder(name: str, config_name: str | None, args: DataArguments) -> dict[str, Source] | None:
    """The files that the hub's layout gives to each split; `None` if they are not of a format that `readers` knows."""
    config: Any = datasets.load_dataset_builder(name, config_name).config
    if type(config).__name__ not in ("TextConfig", "JsonConfig", "CsvConfig", "ParquetConfig"):
        return None
    if getattr(config, "field", None) is not None or getattr(config, "column_names", None) is not None:
        return None
    sources: dict[str, Source] = {}
    for split in SPLITS:
        if split not in config.data_files:
            continue
        files = [text_file(str(path), "--dataset_name") for path in config.data_files[split]]
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
    raise UserError(f"--dataset_config_name: {name} has no config {wanted!r}; available: {', '.join(available)}")


def _row_source(split: str, dataset: Dataset | IterableDataset, args: DataArguments, version: str = "") -> RowSource:
    where = f"the {split} split of {args.dataset_name}"
    columns = dataset.column_names or list(next(iter(dataset), {}))
    column = _find_text_column(columns, args, where)
    return RowSource(split, dataset, column, _unit_of_rows(args, where), version)


def _not_found(name: str, error: OSError) -> UserError:
    if os.path.isdir(name):
        return UserError(
            f"--dataset_name: the folder {name} holds no data files; put txt, md, jsonl, csv or parquet files into "
            "it, or give --train_file"
        )
    if isinstance(error, FileNotFoundError) and ensure_hub_or_offline():  # the hub answered
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            return UserError(
                f"--dataset_name: the hub has no {name!r}, or not without a login ({_first_line(error).rstrip('.')}); "
                "check the name, or ask for access and log in with: hf auth login"
            )
        return UserError(f"--dataset_name: {name} cannot be loaded: {_first_line(error)}")
    return UserError(
        f"--dataset_name: {name!r} is not in the local cache and the hub cannot be reached; point --dataset_name at "
        "a local folder in the hub's layout, or --train_file at a file, or use --dataset_name python-docs"
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
