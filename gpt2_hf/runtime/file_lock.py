"""A lock that one process of a machine holds at a time, and that ends with the process.

It is the operating system's, as filelock's is where there are such locks. Where a file system has none, filelock takes
the existence of the file for the lock, which a process that was killed on another host holds for ever; here the
caller learns that there is no lock.
"""

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.platform == "win32":
    from filelock import FileLock, Timeout
else:
    import fcntl

# What a file system says that has no locks, such as Lustre without `-o flock`.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
_SILENT_SECONDS = 3.0
_POLL_SECONDS = 0.05


@contextlib.contextmanager
def locked(path: Path, say_waiting: Callable[[], None]) -> Iterator[bool]:
    """Wait until no other process has the lock, and hold it.

    Args:
        path: the file of the lock; it is made if need be, and stays.
        say_waiting: is called once, if another process has the lock for some seconds.

    Gives whether there is a lock; `False` where the file system has none.

    Raises:
        OSError: if the file cannot be made.
    """
    if sys.platform == "win32":
        lock = FileLock(path)
        try:
            lock.acquire(timeout=_SILENT_SECONDS)
        except Timeout:
            say_waiting()
            lock.acquire()
        try:
            yield True
        finally:
            lock.release()
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_locked = _wait_for(descriptor, say_waiting)
        try:
            yield is_locked
        finally:
            if is_locked:
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked process may have the descriptor, too
    finally:
        os.close(descriptor)


def _wait_for(descriptor: int, say_waiting: Callable[[], None]) -> bool:
    begun, has_said = time.monotonic(), False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if not has_said and time.monotonic() - begun > _SILENT_SECONDS:
            say_waiting()
            has_said = True
        time.sleep(_POLL_SECONDS)
