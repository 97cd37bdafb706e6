"""Rows of a text file that are more than a line: paragraphs, or the file.

In: a `TextFile`. Out: `(text, place)`.
"""

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from .lines import decode, lines_of, too_long
from .text_files import MAX_FILE_BYTES, MAX_ROW_CHARACTERS, Place, Row, TextFile

_PIECE_BYTES = 1 << 20
# What may go on in the next piece: a line end, or the last character of UTF-8.
_UNFINISHED = re.compile(rb"(?:\r|[\xc0-\xff][\x80-\xbf]{0,2})\Z")


def paragraphs_of(file: TextFile, start: Place) -> Iterator[Row]:
    """Each run of lines that are not blank."""
    lines: list[str] = []
    length = 0
    begin = start
    for line, place in lines_of(file, start):
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
            raise too_long(file, f"the paragraph from line {begin.line + 1} on")
    if lines:
        yield "".join(lines), begin


def whole_text(file: TextFile, start: Place) -> Iterator[Row]:
    """The file as one row."""
    if start.offset:
        return
    text = io.StringIO()
    offset, number = 0, 0
    with file.open() as stream:
        for raw in _pieces(stream):
            text.write(decode(file, raw, Place(offset, number)))
            offset, number = offset + len(raw), number + raw.count(b"\n")
            if offset > MAX_FILE_BYTES:
                problem = f" is larger than {MAX_FILE_BYTES >> 20} MiB, too much for one document"
                remedy = (
                    f"split it, or use --document_unit line where no line has over {MAX_ROW_CHARACTERS:,} characters"
                )
                raise file.fail(problem, f"{remedy}; blocks join the lines to one stream")
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
