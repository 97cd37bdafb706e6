"""Rows of JSON lines, or of a file that is one array of objects.

In: a `TextFile`. Out: `(text, place)`.
"""

import contextlib
import itertools
import json
import re
from collections.abc import Generator, Iterator
from typing import Any

from ...errors import UserError
from .lines import lines_of_rows, not_utf8, nul_byte, remedy_of_rows
from .records import Record, checked
from .text_files import MAX_FILE_BYTES, Place, Row, TextFile

_ROWS_SEARCHED_FOR_COLUMNS = 100
_FIELDS_NAMED = 8
_BLANKS = " \t\r\n"
_ROW = '{"text": "..."}'
_ROWS_FROM_PANDAS = 'df.to_json(path, orient="records", lines=True)'
_DECODER = json.JSONDecoder(strict=False)
# Python refuses to convert integers of thousands of digits. Only the type of a number is looked at.
_DECODER_OF_ANY_NUMBER = json.JSONDecoder(strict=False, parse_int=lambda digits: int(digits[:18]))
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def json_columns(file: TextFile) -> list[str]:
    """The names of the fields of the first rows."""
    with contextlib.closing(_rows(file, Place())) as rows:
        first = itertools.islice(rows, _ROWS_SEARCHED_FOR_COLUMNS)
        return list(dict.fromkeys(name for row in first for name in row.fields))


def json_texts(file: TextFile, start: Place) -> Iterator[Row]:
    """The text of each row."""
    for record in _rows(file, start):
        if file.column not in record.fields:  # not the same as null: the text may have another name here
            names = ", ".join(list(record.fields)[:_FIELDS_NAMED]) or "none"
            problem = f": {record.where} has no field {file.column!r}; it has {names}"
            raise file.fail(problem, "rename the field, or write null where a row has no text")
        value = record.fields[file.column]
        if isinstance(value, dict | list):  # a file of columns, or a row with several texts
            problem = f": column {file.column!r} holds {type(value).__name__}, not text, in {record.where}"
            remedy = f"choose another column, or write one text per row, in pandas with {_ROWS_FROM_PANDAS}"
            raise file.fail(problem, remedy)
        yield checked(file, value, record)


def _rows(file: TextFile, start: Place) -> Generator[Record, None, None]:
    """Rows of JSON lines, or of a file that is one array of objects."""
    if _is_array(file):
        yield from _array(file, start)
        return
    for line, place in lines_of_rows(file, start):
        text = line.removeprefix("\ufeff") if place.offset == 0 else line
        if not text.strip(_BLANKS):
            continue
        try:
            row = _value(text, 1)
        except json.JSONDecodeError as error:
            raise _broken_line(file, line, error, place) from error
        if not isinstance(row, dict):
            problem = f": line {place.line + 1} holds {type(row).__name__}, not an object"
            raise file.fail(problem, f"each line must be one JSON object, such as {_ROW}")
        if text.count(f'"{file.column}"') > 1:
            _check_single(file, [_pairs(text, 1)], f"line {place.line + 1}")
        yield Record(row, place, f"line {place.line + 1}", line, place)


def _broken_line(file: TextFile, line: str, error: json.JSONDecodeError, place: Place) -> UserError:
    raw = line.encode("utf-8", "surrogateescape")
    if b"\0" in raw:
        return nul_byte(file, raw, place)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as undecodable:
        return not_utf8(file, undecodable, place)
    problem = f" is broken in line {place.line + 1} ({error.msg}, column {error.colno})"
    remedy = f"each line must be one JSON object, in pandas {_ROWS_FROM_PANDAS}"
    return file.fail(problem, remedy_of_rows(line, remedy) if error.msg == "Extra data" else remedy)


def _is_array(file: TextFile) -> bool:
    """Whether the first character of a JSON file begins an array."""
    with file.open() as stream:
        begin = stream.read(4096).removeprefix(b"\xef\xbb\xbf")
        while begin and not begin.strip(_BLANKS.encode()):
            begin = stream.read(4096)
    return begin.lstrip(_BLANKS.encode())[:1] == b"["


def _array(file: TextFile, start: Place) -> Iterator[Record]:
    with file.open() as stream:
        raw = stream.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise file.fail(f" is one JSON array of more than {MAX_FILE_BYTES >> 20} MiB", "write one object per line")
    source = raw.decode("utf-8", "surrogateescape")
    text = source.removeprefix("\ufeff")
    try:
        rows = _value(text, 2)
    except json.JSONDecodeError as error:
        if b"\0" in raw:
            raise nul_byte(file, raw, Place()) from error
        problem = f" is broken in line {error.lineno} ({error.msg}, column {error.colno})"
        raise file.fail(problem, "it must be one JSON array of objects, or one object per line") from error
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise file.fail(f": element {i} is {type(row).__name__}, not an object", f"write objects, such as {_ROW}")
    if text.count(f'"{file.column}"') > len(rows):
        _check_single(file, _pairs(text, 2), "an element")
    for i in range(start.offset, len(rows)):
        yield Record(rows[i], Place(i, i), f"element {i}", source, Place())


def _value(text: str, depth: int) -> Any:
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


def _pairs(text: str, depth: int) -> Any:
    """The same with each object as the list of its fields, because `dict` keeps the last of one name only."""
    return json.JSONDecoder(strict=False, parse_int=str, object_pairs_hook=list).decode(_shallow(text, depth))


def _check_single(file: TextFile, rows: list[list[tuple[str, Any]]], where: str) -> None:
    for fields in rows:
        if sum(name == file.column for name, _ in fields) > 1:
            raise file.fail(f": {where} has the field {file.column!r} twice", "keep one of them")
