"""One file to rows of text, as a stream: nothing but the row at hand is in memory.

In: a `TextFile`. Out: `(text, place)` for every row; reading can begin again at any place. Next stage: `sources`.

Every error names the file and the byte or line, because a corpus of thousands of files is not searched by hand.

Lines, paragraphs and rows are those of the format. Only `\\n`, `\\r\\n` and, in plain text, a lone `\\r` end a line;
what else Unicode takes for a line end (form feeds, U+0085, U+2028) is text. Of a row with columns only the text is
checked: what stands in its other fields is passed over, whatever it is.
"""

import bz2
import contextlib
import csv
import dataclasses
import gzip
import io
import itertools
import json
import lzma
import os
import re
import threading
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import UserError, first_line

# A line, paragraph or row beyond this is no text but an accident (a dump without line ends, base64), and would cost
# gigabytes to tokenise at once.
MAX_ROW_CHARACTERS = 8 << 20
# Whole files (--document_unit file, JSON arrays) are held in memory one at a time.
MAX_FILE_BYTES = 512 << 20
# A line of a file with columns may hold more than its text: an image, say.
MAX_LINE_BYTES = 64 << 20

_ROWS_SEARCHED_FOR_COLUMNS = 100
_PIECE_BYTES = 1 << 20
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_JSON_BLANKS = " \t\r\n"
_DECODER = json.JSONDecoder(strict=False)
# Python refuses to convert integers of thousands of digits. Only the type of a number is looked at.
_DECODER_OF_ANY_NUMBER = json.JSONDecoder(strict=False, parse_int=lambda digits: int(digits[:18]))
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)
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
    ".zst": lambda path: _open_zst(path),
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

    @property
    def layout(self) -> str:
        """What is taken for the text, for the user."""
        if not self.has_columns:
            return f"each {self.unit} of {self.format} is a document"
        part = "" if self.unit is DocumentUnit.ROW else f", each {self.unit} of it a document"
        text = f"column {self.column!r} of {self.format} is the text{part}"
        if self.format in (Format.CSV, Format.TSV):
            text += (
                f", the delimiter is a {_DELIMITERS.get(self.delimiter, self.delimiter)}, the first row is the header"
            )
        return text

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
            with _open(file) as stream:
                return list(pq.read_schema(stream).names)
        if file.format in (Format.CSV, Format.TSV):
            with contextlib.closing(_csv_rows(file, Place())) as csv_rows:
                return _names_of(file, next(csv_rows, None))
        with contextlib.closing(_json_rows(file, Place())) as json_rows:
            rows = itertools.islice(json_rows, _ROWS_SEARCHED_FOR_COLUMNS)
            return list(dict.fromkeys(name for row in rows for name in row.fields))


def headers_of(file: TextFile) -> dict[str, list[str]]:
    """What the header of a CSV file says for each delimiter that can read it, the usual one of the format first.

    Raises:
        UserError: if no delimiter can.
    """
    headers: dict[str, list[str]] = {}
    errors: list[UserError] = []
    # a delimiter that none but the data set's card can name is taken from there
    candidates = _DELIMITERS if file.delimiter in _DELIMITERS else (file.delimiter,)
    for delimiter in sorted(candidates, key=lambda mark: mark != file.delimiter):
        try:
            headers[delimiter] = columns_of(dataclasses.replace(file, delimiter=delimiter))
        except UserError as error:
            errors.append(error)
    if not headers:
        raise errors[0]
    return headers


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
        raise _damaged(file, error) from error
    except (pa.ArrowException, UnicodeError) as error:  # UnicodeError: of the names of columns
        raise _damaged(file, error) from error
    except csv.Error as error:
        raise file.fail(f" cannot be read as csv ({error})", "quote fields that hold line ends") from error
    except OSError as error:
        if error.errno is None:  # raised by a library about the content, not by the system
            raise _damaged(file, error) from error
        raise file.fail(
            f" cannot be read ({error.strerror or error})", "check the path and its permissions"
        ) from error


def _damaged(file: TextFile, error: Exception) -> UserError:
    if file.format is Format.PARQUET:
        return file.fail(f" cannot be read as parquet ({first_line(error)})", "fetch or write it again")
    return file.fail(f" is damaged or not {file.compression} ({first_line(error)})", "fetch or compress it again")


# ---- lines: what text, JSON lines and CSV have in common ----


def _open(file: TextFile) -> BinaryIO:
    stream: BinaryIO = _OPENERS[file.compression](file.path)
    return stream


def _open_zst(path: str) -> io.BufferedReader:
    """Arrow carries the zstd library, which Python has only from 3.14 on, but takes no name that is not UTF-8."""
    raw = open(path, "rb")  # noqa: SIM115 (closed with what is returned)
    return io.BufferedReader(pa.input_stream(raw, compression="zstd"), 1 << 20)


def _skip(stream: BinaryIO, offset: int) -> None:
    """Go to a byte of the (decompressed) text."""
    if isinstance(stream, io.BufferedReader) and not stream.raw.seekable():
        while offset > 0 and (skipped := len(stream.read(min(offset, 1 << 20)))):
            offset -= skipped
    else:
        stream.seek(offset)


def _lines(file: TextFile, start: Place) -> Iterator[tuple[str, Place]]:
    """Each line of a text file with its end, checked to be text."""
    limit = 4 * MAX_ROW_CHARACTERS  # no character of UTF-8 has more than four bytes
    for raw, place in _raw_lines(file, start, limit + 1):
        text = _decode(file, raw, place)
        if len(text) > MAX_ROW_CHARACTERS:
            raise _too_long(file, f"line {place.line + 1}")
        yield text, place


def _lines_of_rows(file: TextFile, start: Place) -> Iterator[tuple[str, Place]]:
    """Each line of a file with columns, with its end as it is; bytes that are not UTF-8 are lone surrogates."""
    for raw, place in _raw_lines(file, start, MAX_LINE_BYTES + 1):
        if len(raw) > MAX_LINE_BYTES:
            raise file.fail(f": line {place.line + 1} is longer than {MAX_LINE_BYTES >> 20} MiB", "split it")
        yield raw.decode("utf-8", "surrogateescape"), place


def _raw_lines(file: TextFile, start: Place, limit: int) -> Iterator[tuple[bytes, Place]]:
    offset, number = start
    with _open(file) as stream:
        _skip(stream, offset)
        while raw := stream.readline(limit):
            yield raw, Place(offset, number)
            offset, number = offset + len(raw), number + 1


def _decode(file: TextFile, raw: bytes, place: Place) -> str:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error, place) from error
    if "\0" in text:
        raise _nul_byte(file, raw, place)
    if place.offset == 0:
        text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def _not_utf8(file: TextFile, error: UnicodeDecodeError, place: Place) -> UserError:
    raw, at = error.object, error.start
    line = place.line + raw.count(b"\n", 0, at) + 1
    problem = f" is not UTF-8: byte 0x{raw[at]:02x} at byte {place.offset + at}, line {line}"
    return file.fail(problem, "convert it to UTF-8 (iconv -t UTF-8)")


def _nul_byte(file: TextFile, raw: bytes, place: Place) -> UserError:
    at = raw.index(b"\0")
    line = place.line + raw.count(b"\n", 0, at) + 1
    problem = f" holds a NUL byte at byte {place.offset + at}, line {line}: it is no text, or UTF-16"
    return file.fail(problem, "convert it to UTF-8, or remove the byte")


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


class _Record(NamedTuple):
    """A row with columns.

    Attributes:
        fields: list of a CSV file, dict of a JSON file.
        place: where it is, to continue from there.
        where: the same for the user.
        source: what it was read from; bytes that are not UTF-8 are lone surrogates.
        begin: where the source begins.
    """

    fields: Any
    place: Place
    where: str
    source: str
    begin: Place


def _checked(file: TextFile, value: Any, record: _Record) -> Row:
    """The text of a row, checked to be text."""
    if value is None:
        return None, record.place
    if not isinstance(value, str):
        kind = type(value).__name__
        raise UserError(
            f"--text_column: column {file.column!r} holds {kind}, not text, in {record.where} of {file.path}"
        )
    if len(value) > MAX_ROW_CHARACTERS:
        raise _too_long(file, record.where)
    if "\0" in value and "\0" in record.source:  # JSON may also write one as \u0000, and means it
        raise _nul_byte(file, record.source.encode("utf-8", "surrogateescape"), record.begin)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        if (undecodable := _undecodable(record.source)) is not None:
            raise _not_utf8(file, undecodable, record.begin) from error
        problem = f": {record.where} holds half of a surrogate pair ({first_line(error)})"
        raise file.fail(problem, "repair it") from error
    return value, record.place


def _undecodable(source: str) -> UnicodeDecodeError | None:
    """The error of what was decoded to lone surrogates."""
    try:
        source.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        return error
    return None


def _json_texts(file: TextFile, start: Place) -> Iterator[Row]:
    for record in _json_rows(file, start):
        yield _checked(file, record.fields.get(str(file.column)), record)


def _json_rows(file: TextFile, start: Place) -> Generator[_Record, None, None]:
    """Rows of JSON lines, or of a file that is one array of objects."""
    if _is_array(file):
        yield from _json_array(file, start)
        return
    for line, place in _lines_of_rows(file, start):
        text = line.removeprefix("\ufeff") if place.offset == 0 else line
        if not text.strip(_JSON_BLANKS):
            continue
        try:
            row = _json_value(text, 1)
        except json.JSONDecodeError as error:
            raise _broken_line(file, line, error, place) from error
        if not isinstance(row, dict):
            problem = f": line {place.line + 1} holds {type(row).__name__}, not an object"
            raise file.fail(problem, "each line must be one JSON object")
        if text.count(f'"{file.column}"') > 1:
            _check_single(file, [_json_pairs(text, 1)], f"line {place.line + 1}")
        yield _Record(row, place, f"line {place.line + 1}", line, place)


def _broken_line(file: TextFile, line: str, error: json.JSONDecodeError, place: Place) -> UserError:
    raw = line.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        return _nul_byte(file, raw, place)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as undecodable:
        return _not_utf8(file, undecodable, place)
    problem = f" is broken in line {place.line + 1} ({error.msg}, column {error.colno})"
    return file.fail(problem, "each line must be one JSON object")


def _json_value(text: str, depth: int) -> Any:
    """What a JSON text says, down to the objects of a depth at least, whatever stands in their fields.

    Raises:
        json.JSONDecodeError: if it is no JSON.
    """
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError):  # an integer of thousands of digits; thousands of brackets
        return _DECODER_OF_ANY_NUMBER.decode(_shallow(text, depth))


def _shallow(text: str, depth: int) -> str:
    """The JSON text with nothing inside the arrays and objects that are deeper than so many levels."""
    kept: list[str] = []
    begin, level = 0, 0
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0] in ("[", "{"):
            level += 1
            if level == depth + 1:
                kept.append(text[begin : match.end()])
        elif match[0] in ("]", "}"):
            if level == depth + 1:
                begin = match.start()
            level -= 1
    if level <= depth:
        kept.append(text[begin:])
    return "".join(kept)


def _json_pairs(text: str, depth: int) -> Any:
    """The same with each object as the list of its fields, because `dict` keeps the last of one name only."""
    return json.JSONDecoder(strict=False, parse_int=str, object_pairs_hook=list).decode(_shallow(text, depth))


def _check_single(file: TextFile, rows: list[list[tuple[str, Any]]], where: str) -> None:
    for fields in rows:
        if sum(name == file.column for name, _ in fields) > 1:
            raise file.fail(f": {where} has the field {file.column!r} twice", "keep one of them")


def _is_array(file: TextFile) -> bool:
    """Whether the first character of a JSON file begins an array."""
    with _open(file) as stream:
        begin = stream.read(4096).removeprefix(b"\xef\xbb\xbf")
        while begin and not begin.strip(_JSON_BLANKS.encode()):
            begin = stream.read(4096)
    return begin.lstrip(_JSON_BLANKS.encode())[:1] == b"["


def _json_array(file: TextFile, start: Place) -> Iterator[_Record]:
    with _open(file) as stream:
        raw = stream.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise file.fail(f" is one JSON array of more than {MAX_FILE_BYTES >> 20} MiB", "write one object a line")
    source = raw.decode("utf-8", "surrogateescape")
    text = source.removeprefix("\ufeff")
    try:
        rows = _json_value(text, 2)
    except json.JSONDecodeError as error:
        if b"\0" in raw:
            raise _nul_byte(file, raw, Place()) from error
        problem = f" is broken in line {error.lineno} ({error.msg}, column {error.colno})"
        raise file.fail(problem, "it must be one JSON array of objects, or one object a line") from error
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise file.fail(f": element {i} is {type(row).__name__}, not an object", "write objects")
    if text.count(f'"{file.column}"') > len(rows):
        _check_single(file, _json_pairs(text, 2), "an element")
    for i in range(start.offset, len(rows)):
        yield _Record(rows[i], Place(i, i), f"element {i}", source, Place())


def _csv_texts(file: TextFile, start: Place) -> Iterator[Row]:
    with contextlib.closing(_csv_rows(file, Place())) as rows:
        header = next(rows, None)
    if header is None:
        return
    width, index = len(header.fields), header.fields.index(str(file.column))
    for row in _csv_rows(file, start):
        if row.place == header.place:
            continue
        if len(row.fields) != width:
            problem = f": the row in {row.where} has {len(row.fields)} fields, the header has {width}"
            raise file.fail(problem, "quote fields that hold the delimiter")
        yield _checked(file, row.fields[index], row)


def _names_of(file: TextFile, header: _Record | None) -> list[str]:
    """The fields of a header, which is checked to be text as a whole."""
    if header is None:
        return []
    if (undecodable := _undecodable(header.source)) is not None:
        raise _not_utf8(file, undecodable, header.begin)
    if "\0" in header.source:
        raise _nul_byte(file, header.source.encode("utf-8"), header.begin)
    return list(header.fields)


def _csv_rows(file: TextFile, start: Place) -> Generator[_Record, None, None]:
    """The rows of a CSV file; a row without any field, an empty line, is none."""
    lines: list[str] = []
    place = start

    def counted() -> Iterator[str]:
        nonlocal place
        for line, begin in _lines_of_rows(file, start):
            if not lines:
                place = begin
            lines.append(line)
            yield line.removeprefix("\ufeff") if begin.offset == 0 else line

    reader = csv.reader(counted(), delimiter=file.delimiter, strict=True)
    while (fields := _next_csv_row(reader)) is not None:
        if fields:
            yield _Record(fields, place, f"line {place.line + 1}", "".join(lines), place)
        lines.clear()


_csv_lock = threading.Lock()


def _next_csv_row(reader: Iterator[list[str]]) -> list[str] | None:
    """One row of up to `MAX_LINE_BYTES`. The limit is one of the whole process: others find it as they set it."""
    with _csv_lock:
        before = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(before)


def _parquet_texts(file: TextFile, start: Place) -> Iterator[Row]:
    with _open(file) as stream, pq.ParquetFile(stream) as parquet:
        column_type = parquet.schema_arrow.field(file.column).type
        if not is_text(column_type):
            raise UserError(f"--text_column: column {file.column!r} of {file.path} holds {column_type}, not text")
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
                for text in _strings(file, batch.column(file.column), row):
                    if row >= start.offset:
                        place = Place(row, row)
                        yield _checked(file, text, _Record((), place, f"row {row + 1}", "", place))
                    row += 1


def is_text(column_type: pa.DataType) -> bool:
    """Whether a column can be read as text: strings and bytes of any layout, also coded by a dictionary.

    Older writers store text as bytes without a mark. Whether they are UTF-8 is seen when they are read.
    """
    if isinstance(column_type, pa.BaseExtensionType):
        return is_text(column_type.storage_type)
    if pa.types.is_dictionary(column_type) or pa.types.is_run_end_encoded(column_type):
        return is_text(column_type.value_type)
    kinds = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "null")
    return any(getattr(pa.types, f"is_{kind}")(column_type) for kind in kinds)


def texts_of(values: list[Any]) -> list[Any]:
    """The values of a column; bytes are read as UTF-8.

    Raises:
        UnicodeDecodeError: if they are not.
    """
    return [value.decode("utf-8") if isinstance(value, bytes) else value for value in values]


def _strings(file: TextFile, column: pa.Array, first_row: int) -> list[str | None]:
    try:
        return texts_of(column.to_pylist())
    except UnicodeDecodeError as error:
        row = next(i for i in range(len(column)) if not _is_utf8(column.slice(i, 1)))
        raise file.fail(f" is not UTF-8 in row {first_row + row + 1}", "write it again from text in UTF-8") from error


def _is_utf8(column: pa.Array) -> bool:
    try:
        texts_of(column.to_pylist())
    except UnicodeDecodeError:
        return False
    return True


def is_empty(file: TextFile) -> bool:
    """Whether a file has no bytes at all."""
    return os.path.getsize(file.path) == 0
