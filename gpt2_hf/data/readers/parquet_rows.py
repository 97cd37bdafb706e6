"""Rows of Parquet: a column of text, batch by batch.

In: a `TextFile`. Out: `(text, place)`.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .records import Record, checked, not_text
from .text_files import Place, Row, TextFile


def parquet_columns(file: TextFile) -> list[str]:
    """The names of the columns."""
    with file.open() as stream:
        return list(pq.read_schema(stream).names)


def parquet_texts(file: TextFile, start: Place) -> Iterator[Row]:
    """The text of each row."""
    with file.open() as stream, pq.ParquetFile(stream) as parquet:
        column_type = parquet.schema_arrow.field(file.column).type
        if not _is_text(column_type):
            raise not_text(file.column, str(column_type), f"in {file.path}")
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
                        yield checked(file, text, Record((), place, f"row {row + 1}", "", place))
                    row += 1


def _is_text(column_type: pa.DataType) -> bool:
    """Whether a column can be read as text: strings and bytes of any layout, also coded by a dictionary.

    Older writers store text as bytes without a mark. Whether they are UTF-8 is seen when they are read.
    """
    if isinstance(column_type, pa.JsonType):  # whose strings have quotes and escapes
        return False
    if isinstance(column_type, pa.BaseExtensionType):
        return _is_text(column_type.storage_type)
    if pa.types.is_dictionary(column_type) or pa.types.is_run_end_encoded(column_type):
        return _is_text(column_type.value_type)
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
