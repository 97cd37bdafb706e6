"""Which column of a table is the text, and what of a row is a document."""

from ...errors import UserError
from ...options.arguments import DataArguments
from ..readers import DocumentUnit

_DEFAULT_TEXT_COLUMNS = ("text", "content")


def unit_of_rows(args: DataArguments, name: str) -> DocumentUnit:
    """What `document_unit` says of the rows of a table."""
    if args.document_unit == DocumentUnit.FILE:
        raise UserError(
            f"--document_unit file: {name} has rows, which need not belong together; use row, line or paragraph, or "
            "--sequence_mode blocks to train on one stream"
        )
    return DocumentUnit(args.document_unit or DocumentUnit.ROW)


def wanted_columns(args: DataArguments) -> tuple[str, ...]:
    """The names that the column of the text may have."""
    return _DEFAULT_TEXT_COLUMNS if args.text_column is None else (args.text_column,)


def find_text_column(columns: list[str], args: DataArguments, where: str) -> str:
    """The column that `text_column` names, or the one that is called as texts are, or the only one.

    Raises:
        UserError: if there is no such column, or it is not clear which.
    """
    wanted = args.text_column
    there = ", ".join(columns) or "none"
    if wanted is None:
        candidates = [name for name in _DEFAULT_TEXT_COLUMNS if name in columns]
        wanted = candidates[0] if candidates else columns[0] if len(columns) == 1 else None
    if wanted is None:
        raise UserError(f"--text_column: which column of {where} holds the text? It has {there}")
    if wanted not in columns:
        raise UserError(f"--text_column: {where} has no column {wanted!r}; it has {there}")
    if columns.count(wanted) > 1:
        raise UserError(f"--text_column: {where} has {columns.count(wanted)} columns {wanted!r}; rename them")
    return wanted
