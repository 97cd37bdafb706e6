"""Standard output and error that outlive their reader."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _LastingFile(io.FileIO):
    """A file descriptor whose writes never fail: what cannot be written is dropped."""

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write the bytes, or drop them if the system refuses them."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Let the process outlive whoever reads what it prints.

    The terminal may be closed, `| head` may have enough, the disk of the log may be full: hours of work do not end
    for a line that nobody sees. A stream that was closed from the start (`>&-`) is an empty one. A character that the
    stream's encoding lacks is replaced. Streams that are no files, as in a notebook, are left as they are.
    """
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as ours:
        sys.stdout, sys.stderr = (_lasting(stream, ours) for stream in before)
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None, ours: contextlib.ExitStack) -> TextIO:
    """The same stream with writes that do not fail."""
    if stream is None:
        return ours.enter_context(open(os.devnull, "w"))
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.reconfigure(errors="replace")
    unbuffered = isinstance(stream.buffer, io.RawIOBase)  # `python -u`
    if not isinstance(stream.buffer if unbuffered else getattr(stream.buffer, "raw", None), io.FileIO):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    file = _LastingFile(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        file if unbuffered else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
