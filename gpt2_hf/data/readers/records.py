"""A row of a file with columns, and the check that its text is text."""

from typing import Any, NamedTuple

from ...errors import UserError, first_line
from .lines import not_utf8, nul_byte, too_long, with_line_feeds
from .text_files import MAX_ROW_CHARACTERS, Place, Row, TextFile


class Record(NamedTuple):
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


def checked(file: TextFile, value: Any, record: Record) -> Row:
    """The text of a row, checked to be text, with `\\n` for every line end."""
    if value is None:
        return None, record.place
    if not isinstance(value, str):
        raise not_text(file.column, type(value).__name__, f"in {record.where} of {file.path}")
    if len(value) > MAX_ROW_CHARACTERS:
        raise too_long(file, record.where)
    if "\0" in value and "\0" in record.source:  # JSON may also write one as \u0000, and means it
        raise nul_byte(file, record.source.encode("utf-8", "surrogateescape"), record.begin)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        if (undecodable := undecodable_bytes(record.source)) is not None:
            raise not_utf8(file, undecodable, record.begin) from error
        problem = f": {record.where} holds half of a surrogate pair ({first_line(error)})"
        raise file.fail(problem, "repair it") from error
    return with_line_feeds(value), record.place


def not_text(column: str | None, kind: str, where: str = "") -> UserError:
    """The error for a column of numbers, lists or objects."""
    place = f", {where}" if where else ""
    return UserError(
        f"--text_column: column {column!r} holds {kind}, not text{place}; choose another column, or write the text of "
        "a row as one string"
    )


def undecodable_bytes(source: str) -> UnicodeDecodeError | None:
    """The error of what was decoded to lone surrogates."""
    try:
        source.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        return error
    return None
