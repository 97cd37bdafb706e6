"""What `--output_file` names: a file that is replaced, a pipe or device that is written, or standard output.

In: a path. Out: an error before the work begins, or a stream.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from ..errors import UserError, printable
from ..runtime.files import sync

_PARTIAL_SUFFIX = ".partial"


def is_stdout(path: Path) -> bool:
    """Whether a path leads to where standard output goes, as /dev/stdout does; replaced, it would lose its lines."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError, AttributeError):  # not there; closed, no file, or none at all
        return False


def is_pipe_or_device(path: Path) -> bool:
    """Whether there is something that is written but cannot be replaced."""
    return os.path.exists(path) and not os.path.isfile(path)


def is_same_file(first: str | Path | int, second: Path) -> bool:
    """Whether both, of which one may be a descriptor, are the same regular file."""
    return os.path.isfile(first) and os.path.isfile(second) and os.path.samefile(first, second)


def require_writable(path: Path) -> None:
    """Refuse an output file that cannot be written, before there is anything to write.

    Raises:
        UserError: if it is a folder, or may not be written or created.
    """
    problem = None if is_stdout(path) else _obstacle(path)
    if problem is not None:
        raise UserError(f"--output_file: {path} cannot be written ({os.strerror(problem)})")


def _obstacle(path: Path) -> int | None:
    """The number of the error that the system would give."""
    if os.path.isdir(path):
        return errno.EISDIR
    if is_pipe_or_device(path):
        return None if os.access(path, os.W_OK) else errno.EACCES
    # what is replaced, or created with its folders, needs the nearest folder that is there
    parents = Path(os.path.realpath(path)).parents
    folder = next(filter(os.path.exists, parents), parents[-1])
    if not os.path.isdir(folder):
        return errno.ENOTDIR
    return None if os.access(folder, os.W_OK) else errno.EACCES


def partial_of(path: Path) -> Path:
    """Where the lines of a file stand until all are there; beside what a link leads to."""
    return Path(os.path.realpath(path) + _PARTIAL_SUFFIX)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """Replace a file in one step by the lines that are written to the stream that this gives.

    Until then they stand beside it in NAME.partial, which replaces that of an earlier run. If the run breaks off, by
    Ctrl-C or an error, the file is left as it was, the partial one stays if there is a line in it, and a line on
    standard error says so. Standard output, a pipe or a device is no file to replace: it is written at once.
    """
    if is_stdout(path):
        sys.stdout.flush()
        with open(sys.stdout.fileno(), "w", encoding="utf-8", closefd=False) as stream:  # after what is there
            yield stream
        return
    if is_pipe_or_device(path):
        with open(path, "w", encoding="utf-8") as stream:
            yield stream
        return
    partial = partial_of(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.unlink(missing_ok=True)
    try:
        with open(partial, "x", encoding="utf-8") as stream:
            yield stream
        sync(partial)
        os.replace(partial, os.path.realpath(path))
    except BaseException:
        if partial.is_file() and partial.stat().st_size > 0:
            print(f"the texts that are finished are in {printable(str(partial))}", file=sys.stderr, flush=True)
        else:
            partial.unlink(missing_ok=True)
        raise
