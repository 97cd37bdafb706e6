"""A row of text to documents: the row as it is, its lines, or its paragraphs."""

from collections.abc import Iterable

from ..readers import DocumentUnit


def split_document(text: str | None, unit: DocumentUnit) -> Iterable[str | None]:
    """Cut a row into lines or paragraphs if that is what is asked for."""
    if text is None or unit in (DocumentUnit.ROW, DocumentUnit.FILE):
        return (text,)
    if unit is DocumentUnit.LINE:
        return _lines(text) or (text,)
    return _paragraphs(text)


def _paragraphs(text: str) -> list[str]:
    """Runs of lines that are not blank. Lines end at line feeds only: `str.splitlines` knows eight other ends."""
    paragraphs: list[list[str]] = []
    inside = False
    for line in _lines(text):
        blank = not line or line.isspace()
        if not blank and not inside:
            paragraphs.append([])
        if not blank:
            paragraphs[-1].append(line)
        inside = not blank
    return ["".join(lines) for lines in paragraphs] or [text]


def _lines(text: str) -> list[str]:
    """The lines of a text with their ends."""
    *lines, last = text.split("\n")
    return [*(line + "\n" for line in lines), *([last] if last else [])]
