"""One file to rows of text, as a stream: nothing but the row at hand is in memory.

In: a `TextFile`. Out: `(text, place)` for every row; reading can begin again at any place. Next stage: `sources`.

Every error names the file and the byte or line, because a corpus of thousands of files is not searched by hand.
"""

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError

# A line, paragraph or row beyond this is no text but an accident (a dump without line ends, base64), and would cost
# gigabytes to tokenise at once.
MAX_ROW_CHARACTERS = 8 << 20
# Whole files (--document_unit file, JSON arrays) are held in memory one at a time.
MAX_FILE_BYTES = 512 << 20

_ROWS_SEARCHED_FOR_COLUMNS = 100
_PIECE_BYTES = 1 << 20
# What may go on in the next piece: a line end, or the last character of UTF-8.
_UNFINISHED = re.compile(rb"(?:\r|[\xc0-\xff][\x80-\xbf]{0,2})\Z")


class Format(StrEnum):
    """How the bytes of a file are to be read; a file's ending decides."""

    TEXT = "text"
    MARKDOWN = "markdown"
    JSON = "json"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"


class DocumentUnit(StrEnum):
    """What is one document."""

    LINE = "line"
    PARAGRAPH = "paragraph"
    FILE = "file"
    ROW = "row"


_FORMATS = {
    ".txt": Format.TEXT,
    ".text": Format.TEXT,
    ".md": Format.MARKDOWN,
    ".json": Format.JSON,
    ".jsonl": Format.JSON,
    ".ndjson": Format.JSON,
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".parquet": Format.PARQUET,
}
_OPENERS: dict[str, Callable[[str], Any]] = {
    "": partial(open, mode="rb"),
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    # Arrow carries the zstd library, which Python has only from 3.14 on
    ".zst": lambda path: io.BufferedReader(pa.input_stream(path, compression="zstd"), 1 << 20),
}


class Place(NamedTuple):
    """Where a row begins: at which byte, or row number (Parquet, JSON array), and after how many lines."""

    offset: int = 0
    line: int = 0


Row = tuple[str | None, Place]


@dataclass(frozen=True)
class TextFile:
    """A file of text and how to read it.

    Attributes:
        path: where it is.
        option: the option it was given by, for errors.
        format: see `Format`.
        compression: the ending of the compressed file, or "".
        delimiter: between the fields of a CSV file.
        unit: what is one document.
        column: which field holds the text, in formats that have fields.
    """

    path: str
    option: str
    format: Format
    compression: str = ""
    delimiter: str = ","
    unit: DocumentUnit = DocumentUnit.LINE
    column: str | None = None

    @property
    def has_columns(self) -> bool:
        """Whether the format has named fields."""
        return self.format not in (Format.TEXT, Format.MARKDOWN)

    def fail(self, problem: str, remedy: str) -> UserError:
        """The error for a problem of this file."""
        return UserError(f"{self.option}: {self.path}{problem}; {remedy}")


def text_file(path: str, option: str) -> TextFile:
    """Look at a file's ending.

    Raises:
        UserError: if the ending is unknown.
    """
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in _OPENERS else ""
    file_format = _FORMATS.get(suffixes[-1] if suffixes else "")
    if file_format is None or (file_format is Format.PARQUET and compression):
        compressions = ", ".join(ending for ending in _OPENERS if ending)
        raise UserError(
            f"{option}: {path} has no known ending; use one of {', '.join(_FORMATS)} "
            f"(all but .parquet also with {compressions})"
        )
    return TextFile(path, option, file_format, compression, "\t" if file_format is Format.TSV else ",")


def columns_of(file: TextFile) -> list[str]:
    """The names of a file's fields; of a JSON file those of its first rows.

    Raises:
        UserError: if the file cannot be read.
    """
    with errors_of(file):
        if file.format is Format.PARQUET:
            return list(pq.read_schema(file.path).names)
        if file.format in (Format.CSV, Format.TSV):
            return next((fields for fields, _ in _csv_rows(file, Place())), [])
        rows = itertools.islice(_json_rows(file, Place()), _ROWS_SEARCHED_FOR_COLUMNS)
        return list(dict.fromkeys(name for row, _ in rows for name in row))


def read_rows(file: TextFile, start: Place = Place()) -> Iterator[Row]:  # noqa: B008 (a Place cannot change)
    """Read the rows of a file from a place on: lines, paragraphs or the whole of a text file, else rows.

    Line ends are `\\n` whatever the system the file comes from, and stay: they are part of what the model learns
    to write. White space between paragraphs belongs to none of them.

    Raises:
        UserError: if the file cannot be read, is not what its ending says, or holds what cannot be text.
    """
    with errors_of(file):
        if file.format is Format.PARQUET:
            rows = _parquet_texts(file, start)
        elif file.format in (Format.CSV, Format.TSV):
            rows = _csv_texts(file, start)
        elif file.format is Format.JSON:
            rows = _json_texts(file, start)
        elif file.unit is DocumentUnit.FILE:
            rows = _whole(file, start)
        elif file.unit is DocumentUnit.PARAGRAPH:
            rows = _paragraphs(file, start)
        else:
            rows = _lines(file, start)
        yield from rows


@contextlib.contextmanager
def errors_of(file: TextFile) -> Iterator[None]:
    """Turn what the libraries raise about a file into one line."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise file.fail(f" is damaged or not {file.compression} ({error})", "fetch or compress it again") from error
    except pa.ArrowException as error:
        raise file.fail(f" cannot be read as parquet ({_first_line(error)})", "fetch or write it again") from error
    except csv.Error as error:
        raise file.fail(f" cannot be read as csv ({error})", "quote fields that hold line ends") from error
    except OSError as error:
        if file.compression and error.errno is None:
            problem = f" is damaged or not {file.compression} ({_first_line(error)})"
            raise file.fail(problem, "fetch or compress it again") from error
        raise file.fail(
            f" cannot be read ({error.strerror or error})", "check the path and its permissions"
        ) from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# ---- lines: what text, JSON lines and CSV have in common ----


def _open(file: TextFile) -> BinaryIO:
    stream: BinaryIO = _OPENERS[file.compression](file.path)
    return stream


def _skip(stream: BinaryIO, offset: int) -> None:
    """Go to a byte of the (decompressed) text."""
    if isinstance(stream, io.BufferedReader) and not stream.raw.seekable():
        while offset > 0 and (skipped := len(stream.read(min(offset, 1 << 20)))):
            offset -= skipped
    else:
        stream.seek(offset)


def _lines(file: TextFile, start: Place) -> Iterator[tuple[str, Place]]:
    """Each line with its end, checked to be text."""
    offset, number = start
    limit = 4 * MAX_ROW_CHARACTERS  # bytes: no character of UTF-8 has more than four
    with _open(file) as stream:
        _skip(stream, offset)
        while raw := stream.readline(limit + 1):
            place = Place(offset, number)
            offset, number = offset + len(raw), number + 1
            text = _decode(file, raw, place)
            if len(text) > MAX_ROW_CHARACTERS:
                raise _too_long(file, f"line {number}")
            yield text, place


def _decode(file: TextFile, raw: bytes, place: Place) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        problem = f" is not UTF-8: byte 0x{byte:02x} at byte {place.offset + error.start}, line {place.line + 1}"
        raise file.fail(problem, "convert it to UTF-8 (iconv -t UTF-8)") from error
    if "\0" in text:
        at = place.offset + raw.index(b"\0")
        problem = f" holds a NUL byte at byte {at}, line {place.line + 1}: it is no text, or UTF-16"
        raise file.fail(problem, "convert it to UTF-8, or remove the byte")
    if place.offset == 0:
        text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def _too_long(file: TextFile, where: str) -> UserError:
    remedy = "split it" if file.has_columns else "use --document_unit file, which takes any length, or break the line"
    return file.fail(f": {where} is longer than {MAX_ROW_CHARACTERS:,} characters", remedy)


# ---- text ----


def _paragraphs(file: TextFile, start: Place) -> Iterator[Row]:
    lines: list[str] = []
    length = 0
    begin = start
    for line, place in _lines(file, start):
        if line.isspace():
            if lines:
                yield "".join(lines), begin
            lines, length = [], 0
            continue
        if not lines:
            begin = place
        lines.append(line)
        length += len(line)
        if length > MAX_ROW_CHARACTERS:
            raise _too_long(file, f"the paragraph from line {begin.line + 1} on")
    if lines:
        yield "".join(lines), begin


def _whole(file: TextFile, start: Place) -> Iterator[Row]:
    if start.offset:
        return
    text = io.StringIO()
    offset, number = 0, 0
    with _open(file) as stream:
        for raw in _pieces(stream):
            text.write(_decode(file, raw, Place(offset, number)))
            offset, number = offset + len(raw), number + raw.count(b"\n")
            if offset > MAX_FILE_BYTES:
                problem = f" is larger than {MAX_FILE_BYTES >> 20} MiB, too much for one document"
                raise file.fail(problem, "use --document_unit line or paragraph; blocks join them to one stream")
    yield text.getvalue(), Place()


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """The bytes of a stream in pieces that cut neither a character nor a line end in two."""
    rest = b""
    while more := stream.read(_PIECE_BYTES):
        raw = rest + more
        unfinished = _UNFINISHED.search(raw, max(len(raw) - 3, 0))
        end = unfinished.start() if unfinished else len(raw)
        rest = raw[end:]
        yield raw[:end]
    yield rest


# ---- rows with columns ----


def _checked(file: TextFile, value: Any, place: Place, where: str) -> Row:
    if value is not None and not isinstance(value, str):
        raise UserError(
            f"--text_column: column {file.column!r} holds {type(value).__name__}, not text, in {where} of {file.path}"
        )
    if value is not None and len(value) > MAX_ROW_CHARACTERS:
        raise _too_long(file, where)
    try:
        (value or "").encode("utf-8")
    except UnicodeEncodeError as error:
        raise file.fail(f": {where} holds half of a surrogate pair ({_first_line(error)})", "repair it") from error
    return value, place


def _json_texts(file: TextFile, start: Place) -> Iterator[Row]:
    for row, place in _json_rows(file, start):
        yield _checked(file, row.get(str(file.column)), place, f"line {place.line + 1}")


def _json_rows(file: TextFile, start: Place) -> Iterator[tuple[dict[str, Any], Place]]:
    """Rows of JSON lines, or of a file that is one array of objects."""
    if _is_array(file):
        yield from _json_array(file, start)
        return
    for line, place in _lines(file, start):
        if line.isspace():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            problem = f" is broken in line {place.line + 1} ({error.msg}, column {error.colno})"
            raise file.fail(problem, "each line must be one JSON object") from error
        if not isinstance(row, dict):
            problem = f": line {place.line + 1} holds {type(row).__name__}, not an object"
            raise file.fail(problem, "each line must be one JSON object")
        yield row, place


def _is_array(file: TextFile) -> bool:
    with _open(file) as stream:
        return stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _json_array(file: TextFile, start: Place) -> Iterator[tuple[dict[str, Any], Place]]:
    with _open(file) as stream:
        raw = stream.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise file.fail(f" is one JSON array of more than {MAX_FILE_BYTES >> 20} MiB", "write one object a line")
    try:
        rows = json.loads(_decode(file, raw, Place()))
    except json.JSONDecodeError as error:
        problem = f" is broken in line {error.lineno} ({error.msg}, column {error.colno})"
        raise file.fail(problem, "it must be one JSON array of objects, or one object a line") from error
    for i, row in enumerate(rows[start.offset :], start.offset):
        if not isinstance(row, dict):
            raise file.fail(f": element {i} is {type(row).__name__}, not an object", "write objects")
        yield row, Place(i, i)


def _csv_texts(file: TextFile, start: Place) -> Iterator[Row]:
    header, first = next(_csv_rows(file, Place()), ([], Place()))
    if not header:
        return
    index = header.index(str(file.column))
    for fields, place in _csv_rows(file, start):
        if place == first:
            continue
        if len(fields) != len(header):
            problem = f": the row in line {place.line + 1} has {len(fields)} fields, the header has {len(header)}"
            raise file.fail(problem, "quote fields that hold the delimiter")
        yield _checked(file, fields[index], place, f"line {place.line + 1}")


def _csv_rows(file: TextFile, start: Place) -> Iterator[tuple[list[str], Place]]:
    csv.field_size_limit(2 * MAX_ROW_CHARACTERS)
    places: list[Place] = []

    def lines() -> Iterator[str]:
        for line, place in _lines(file, start):
            places.append(place)
            yield line

    for fields in csv.reader(lines(), delimiter=file.delimiter, strict=True):
        if fields:
            yield fields, places[0]
        places.clear()


def _parquet_texts(file: TextFile, start: Place) -> Iterator[Row]:
    with pq.ParquetFile(file.path) as parquet:
        column_type = parquet.schema_arrow.field(file.column).type
        value_type = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
        if not (pa.types.is_string(value_type) or pa.types.is_large_string(value_type)):
            raise UserError(f"--text_column: column {file.column!r} of {file.path} holds {value_type}, not text")
        row = 0
        for group in range(parquet.num_row_groups):
            rows_of_group = parquet.metadata.row_group(group).num_rows
            if row + rows_of_group <= start.offset:
                row += rows_of_group
                continue
            for batch in parquet.iter_batches(1024, row_groups=[group], columns=[file.column]):
                if row + len(batch) <= start.offset:
                    row += len(batch)
                    continue
                for text in _strings(file, batch.column(0), row):
                    if row >= start.offset:
                        yield _checked(file, text, Place(row, row), f"row {row + 1}")
                    row += 1


def _strings(file: TextFile, column: pa.Array, first_row: int) -> list[str | None]:
    try:
        texts: list[str | None] = column.to_pylist()
    except UnicodeDecodeError as error:
        row = next(i for i, value in enumerate(column, first_row + 1) if not _is_utf8(value))
        raise file.fail(f" is not UTF-8 in row {row}", "write it again from text in UTF-8") from error
    return texts


def _is_utf8(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    return True


def is_empty(file: TextFile) -> bool:
    """Whether a file has no bytes at all."""
    return os.path.getsize(file.path) == 0
