"""A file of text: what its ending says of it, how it is opened, and one line for whatever is wrong with it."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from ...errors import UserError, first_line

# A line, paragraph or row beyond this is no text but an accident (a dump without line ends, base64), and would cost
# gigabytes to tokenise at once.
MAX_ROW_CHARACTERS = 8 << 20
# Whole files (--document_unit file, JSON arrays) are held in memory one at a time.
MAX_FILE_BYTES = 512 << 20

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}


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
                f", the delimiter is a {DELIMITERS.get(self.delimiter, self.delimiter)}, the first row is the header"
            )
        return text

    @property
    def is_empty(self) -> bool:
        """Whether the file has no bytes at all, or none when it is decompressed."""
        if not self.compression:
            return os.path.getsize(self.path) == 0
        with errors_of(self), self.open() as stream:
            return not stream.read(1)

    def open(self) -> BinaryIO:
        """The bytes of the text, decompressed as they are read."""
        stream: BinaryIO = _OPENERS[self.compression](self.path)
        return stream

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


def _open_zst(path: str) -> io.BufferedReader:
    """Arrow carries the zstd library, which Python has only from 3.14 on, but takes no name that is not UTF-8."""
    raw = open(path, "rb")  # noqa: SIM115 (closed with what is returned)
    return io.BufferedReader(pa.input_stream(raw, compression="zstd"), 1 << 20)


@contextlib.contextmanager
def errors_of(file: TextFile) -> Iterator[None]:
    """Turn what the libraries raise about a file into one line."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(file, error) from error
    except (pa.ArrowException, UnicodeError) as error:  # UnicodeError: of the names of columns
        raise _damaged(file, error) from error
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
