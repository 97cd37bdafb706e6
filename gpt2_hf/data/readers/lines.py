"""Bytes to lines, and what a line may not hold. Formats with columns are made of lines too.

In: a `TextFile`. Out: `(line, place)`.
"""

import codecs
import io
from collections.abc import Iterator
from typing import BinaryIO

from ...errors import UserError, has_utf16_mark, to_utf8
from .text_files import MAX_FILE_BYTES, MAX_ROW_CHARACTERS, Place, TextFile

# A line of a file with columns may hold more than its text: an image, say.
MAX_LINE_BYTES = 64 << 20


def lines_of(file: TextFile, start: Place) -> Iterator[tuple[str, Place]]:
    """Each line of a text file with its end, checked to be text."""
    limit = 4 * MAX_ROW_CHARACTERS  # no character of UTF-8 has more than four bytes
    for raw, place in _raw_lines(file, start, limit + 1):
        # one of more bytes was cut somewhere, perhaps within a character, and is not decoded
        if len(raw) > limit or len(text := decode(file, raw, place)) > MAX_ROW_CHARACTERS:
            raise too_long(file, f"line {place.line + 1}")
        yield text, place


def lines_of_rows(file: TextFile, start: Place) -> Iterator[tuple[str, Place]]:
    """Each line of a file with columns, with its end as it is; bytes that are not UTF-8 are lone surrogates."""
    for raw, place in _raw_lines(file, start, MAX_LINE_BYTES + 1):
        if len(raw) > MAX_LINE_BYTES:
            problem = f": line {place.line + 1} is longer than {MAX_LINE_BYTES >> 20} MiB"
            raise file.fail(problem, remedy_of_rows(raw.decode("latin-1"), "split it"))
        yield raw.decode("utf-8", "surrogateescape"), place


def _raw_lines(file: TextFile, start: Place, limit: int) -> Iterator[tuple[bytes, Place]]:
    offset, number = start
    with file.open() as stream:
        _skip(stream, offset)
        while raw := stream.readline(limit):
            yield raw, Place(offset, number)
            offset, number = offset + len(raw), number + 1


def _skip(stream: BinaryIO, offset: int) -> None:
    """Go to a byte of the (decompressed) text."""
    if isinstance(stream, io.BufferedReader) and not stream.raw.seekable():
        while offset > 0 and (skipped := len(stream.read(min(offset, 1 << 20)))):
            offset -= skipped
    else:
        stream.seek(offset)


def decode(file: TextFile, raw: bytes, place: Place) -> str:
    """The text of some bytes, with `\\n` for every line end, checked to be text."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(file, error, place) from error
    if "\0" in text:
        raise nul_byte(file, raw, place)
    if place.offset == 0:
        text = text.removeprefix("\ufeff")
    return with_line_feeds(text)


def with_line_feeds(text: str) -> str:
    """The text with `\\n` for every `\\r\\n`, and for every `\\r` alone."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def remedy_of_rows(source: str, remedy: str) -> str:
    """The remedy for rows that cannot be read; another one if it is `\\r` alone that ends them."""
    is_of_returns = "\r" in source and "\n" not in source
    return r"end the rows with \n: tr '\r' '\n' < FILE > NEW" if is_of_returns else remedy


def not_utf8(file: TextFile, error: UnicodeDecodeError, place: Place) -> UserError:
    """The error for bytes, from a place on, that are no UTF-8."""
    raw, at = error.object, error.start
    line = place.line + raw.count(b"\n", 0, at) + 1
    problem = f" is not UTF-8: byte 0x{raw[at]:02x} at byte {place.offset + at}, line {line}"
    return file.fail(problem, to_utf8(b"" if place.offset else raw))


def nul_byte(file: TextFile, raw: bytes, place: Place) -> UserError:
    """The error for bytes, from a place on, one of which is 0."""
    at = raw.index(b"\0")
    line = place.line + raw.count(b"\n", 0, at) + 1
    problem = f" holds a NUL byte at byte {place.offset + at}, line {line}: it is no text, or UTF-16"
    is_wide = has_utf16_mark(raw) or raw.count(b"\0") > len(raw) // 4  # UTF-16 of Latin letters has one in two
    return file.fail(problem, to_utf8(codecs.BOM_UTF16) if is_wide else "remove the byte")


def too_long(file: TextFile, where: str) -> UserError:
    """The error for a line, paragraph or row beyond `MAX_ROW_CHARACTERS`."""
    whole = f"--document_unit file, up to {MAX_FILE_BYTES >> 20} MiB with a tokenizer of GPT-2's kind"
    remedy = "split it" if file.has_columns else f"break the line, or use {whole}"
    return file.fail(f": {where} is longer than {MAX_ROW_CHARACTERS:,} characters", remedy)
