"""Rows of CSV and TSV; the first names the fields.

In: a `TextFile`. Out: `(text, place)`.
"""

import contextlib
import csv
import threading
from collections.abc import Generator, Iterator

from .lines import MAX_LINE_BYTES, lines_of_rows, not_utf8, nul_byte, remedy_of_rows
from .records import Record, checked, undecodable_bytes
from .text_files import Place, Row, TextFile


def csv_columns(file: TextFile) -> list[str]:
    """The fields of the header, which is checked to be text as a whole."""
    with contextlib.closing(_rows(file, Place())) as rows:
        header = next(rows, None)
    if header is None:
        return []
    if (first_line := header.source.strip("\ufeff\r\n")).startswith("sep=") and len(first_line) <= len("sep=;"):
        raise file.fail(f": its first line, {first_line!r}, is a note for a spreadsheet", "delete that line")
    if (undecodable := undecodable_bytes(header.source)) is not None:
        raise not_utf8(file, undecodable, header.begin)
    if "\0" in header.source:
        raise nul_byte(file, header.source.encode("utf-8"), header.begin)
    return list(header.fields)


def csv_texts(file: TextFile, start: Place) -> Iterator[Row]:
    """The text of each row."""
    with contextlib.closing(_rows(file, Place())) as rows:
        header = next(rows, None)
    if header is None:
        return
    width, index = len(header.fields), header.fields.index(str(file.column))
    for row in _rows(file, start):
        if row.place == header.place:
            continue
        if len(row.fields) != width:
            problem = f": the row in {row.where} has {len(row.fields)} fields, the header has {width}"
            raise file.fail(problem, "quote fields that hold the delimiter")
        yield checked(file, row.fields[index], row)


def _rows(file: TextFile, start: Place) -> Generator[Record, None, None]:
    """The rows of a CSV file; a row without any field, an empty line, is none."""
    lines: list[str] = []
    place = start

    def counted() -> Iterator[str]:
        nonlocal place
        for line, begin in lines_of_rows(file, start):
            if not lines:
                place = begin
            lines.append(line)
            yield line.removeprefix("\ufeff") if begin.offset == 0 else line

    reader = csv.reader(counted(), delimiter=file.delimiter, strict=True)
    try:
        while (fields := _next_row(reader)) is not None:
            if fields:
                yield Record(fields, place, f"line {place.line + 1}", "".join(lines), place)
            lines.clear()
    except csv.Error as error:
        problem = f" cannot be read as csv: {error}, in the row from line {place.line + 1} on"
        remedy = "quote fields that hold line ends, double each quote inside them, and close them"
        is_of_line_end = str(error).startswith("new-line character")
        raise file.fail(problem, remedy_of_rows("".join(lines), remedy) if is_of_line_end else remedy) from error


_limit_lock = threading.Lock()


def _next_row(reader: Iterator[list[str]]) -> list[str] | None:
    """One row of up to `MAX_LINE_BYTES`. The limit is one of the whole process: others find it as they set it."""
    with _limit_lock:
        before = csv.field_size_limit(MAX_LINE_BYTES)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(before)
