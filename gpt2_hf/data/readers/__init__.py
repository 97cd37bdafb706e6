"""One file to rows of text, as a stream: nothing but the row at hand is in memory.

In: a `TextFile`. Out: `(text, place)` for every row; reading can begin again at any place. Next stage: `sources`.

    text_files ─► lines ─► plain_text, json_rows, csv_rows
             └─► parquet_rows

Every error names the file and the byte or line, because a corpus of thousands of files is not searched by hand.

Lines, paragraphs and rows are those of the format. In a text only `\\n`, `\\r\\n` and a lone `\\r` end a line;
what else Unicode takes for a line end (form feeds, U+0085, U+2028) is text. Of a row with columns only the text is
checked: what stands in its other fields is ignored, whatever it is.
"""

import dataclasses
from collections.abc import Iterator

from ...errors import UserError
from .csv_rows import csv_columns, csv_texts
from .json_rows import json_columns, json_texts
from .lines import lines_of, with_line_feeds
from .parquet_rows import parquet_columns, parquet_texts, texts_of
from .plain_text import paragraphs_of, whole_text
from .records import not_text
from .text_files import (
    DELIMITERS,
    MAX_ROW_CHARACTERS,
    DocumentUnit,
    Format,
    Place,
    Row,
    TextFile,
    errors_of,
    text_file,
)

__all__ = [
    "MAX_ROW_CHARACTERS",
    "DocumentUnit",
    "Format",
    "Place",
    "TextFile",
    "columns_of",
    "errors_of",
    "headers_of",
    "not_text",
    "read_rows",
    "text_file",
    "texts_of",
    "with_line_feeds",
]


def columns_of(file: TextFile) -> list[str]:
    """The names of a file's fields; of a JSON file those of its first rows.

    Raises:
        UserError: if the file cannot be read.
    """
    with errors_of(file):
        if file.format is Format.PARQUET:
            return parquet_columns(file)
        if file.format in (Format.CSV, Format.TSV):
            return csv_columns(file)
        return json_columns(file)


def headers_of(file: TextFile) -> dict[str, list[str]]:
    """What the header of a CSV file says for each delimiter that can read it, the usual one of the format first.

    Raises:
        UserError: if no delimiter can.
    """
    headers: dict[str, list[str]] = {}
    errors: list[UserError] = []
    # a delimiter that none but the data set's card can name is taken from there
    candidates = DELIMITERS if file.delimiter in DELIMITERS else (file.delimiter,)
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

    Line ends are `\\n` whatever the system the file comes from, in the fields of rows too, and stay: they are part of
    what the model learns to write. White space between paragraphs belongs to none of them.

    Raises:
        UserError: if the file cannot be read, is not what its ending says, or holds what cannot be text.
    """
    with errors_of(file):
        if file.format is Format.PARQUET:
            rows = parquet_texts(file, start)
        elif file.format in (Format.CSV, Format.TSV):
            rows = csv_texts(file, start)
        elif file.format is Format.JSON:
            rows = json_texts(file, start)
        elif file.unit is DocumentUnit.FILE:
            rows = whole_text(file, start)
        elif file.unit is DocumentUnit.PARAGRAPH:
            rows = paragraphs_of(file, start)
        else:
            rows = lines_of(file, start)
        yield from rows
