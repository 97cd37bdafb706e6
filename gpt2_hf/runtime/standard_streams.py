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
            written = super().write(data)
        except OSError:
            written = None
        # the same for a reader that is slow, where somebody has asked that no write waits
        return memoryview(data).nbytes if written is None else written


@contextlib.contextmanager
def replacing_characters(result_in_utf8: bool = False) -> Iterator[None]:
    """Let no character that a stream's encoding lacks end the process; it is replaced.

    Args:
        result_in_utf8: standard output is a result: where it is no terminal, it is UTF-8, as files are, unless
            PYTHONIOENCODING names another encoding.
    """
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [(stream.encoding, stream.errors) for stream in streams]
    in_utf8 = result_in_utf8 and not os.environ.get("PYTHONIOENCODING")
    for stream in streams:
        is_result = in_utf8 and stream is sys.stdout and not stream.isatty()
        stream.reconfigure(encoding="utf-8" if is_result else None, errors="replace")
    try:
        yield
    finally:
        for stream, (encoding, errors) in zip(streams, before, strict=True):
            with contextlib.suppress(OSError, ValueError):  # what waits in it has no reader, or it was closed
                stream.reconfigure(encoding=encoding, errors=errors)


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Let a training outlive whoever reads what it prints.

    The terminal may be closed, `| head` may have enough, the disk of the log may be full: hours of work do not end
    for a line that nobody sees. A stream that was closed from the start (`>&-`) is an empty one. Streams that are no
    files, as in a notebook, are left as they are, and so are those that last already. Not for a command whose output
    is its result.
    """
    before = sys.stdout, sys.stderr
    with replacing_characters(), contextlib.ExitStack() as ours:
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
        return ours.enter_context(open(os.devnull, "w", encoding="utf-8", errors="replace"))
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    unbuffered = isinstance(stream.buffer, io.RawIOBase)  # `python -u`
    raw = stream.buffer if unbuffered else getattr(stream.buffer, "raw", None)
    if not isinstance(raw, io.FileIO) or isinstance(raw, _LastingFile):
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    # a number of its own: a log handler that keeps the stream must not write into what has the old one's later
    file = _LastingFile(os.dup(stream.fileno()), "w")
    return io.TextIOWrapper(
        file if unbuffered else io.BufferedWriter(file),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
