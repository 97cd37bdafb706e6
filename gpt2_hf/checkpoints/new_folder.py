"""A folder that a command writes: new, and complete or absent.

In: `--output_dir`, or another option that names a folder. Out: a staging folder beside it, which gets the folder's
name when all is written and checked. An empty folder that is there already is kept: it may be the current one, a link
or a mount point. Its staging folder is inside, and what was written there is moved up at the end.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from . import folders, manifest

# Stands for what an empty folder is filled with.
_FILES = "files"


def require_new_folder(output_dir: str, option: str = "--output_dir") -> Path:
    """The path of `--output_dir`, or of another option, before anything is written there.

    Raises:
        UserError: if it is a file, or a folder that is not empty.
    """
    target = Path(os.path.expanduser(output_dir))
    with refusals_in_words(target, option):
        left = _staging_in(target)  # of a process that was killed; it is deleted when the folder is filled
        if target.is_file() or (target.exists() and any(path != left for path in target.iterdir())):
            raise UserError(f"{option}: {target} exists and is not empty; give a new folder")
    return target


@contextlib.contextmanager
def refusals_in_words(target: Path, option: str) -> Iterator[None]:
    """What the system refuses, as one line.

    Raises:
        UserError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # of a library that found something else
            raise
        raise UserError(f"{option}: {target} cannot be written ({error.strerror}); choose another folder") from error


@contextlib.contextmanager
def staged_folder(target: Path, option: str = "--output_dir") -> Iterator[Path]:
    """Yield an empty folder that becomes `target` at the end; after an error nothing of it is left.

    Raises:
        UserError: if somebody else's folder has the name under which this one is filled, if `target` is not empty, or
            if the system refuses a file.
    """
    with refusals_in_words(target, option):
        is_there = target.is_dir()
        try:
            staging = folders.make_staging(folders.staging_of(target / _FILES if is_there else target))
        except FileExistsError as error:
            raise UserError(
                f"{option}: {error.filename} already exists and was not written by this run; move it away"
            ) from error
        try:
            yield staging
            manifest.follow_umask(staging)
            folders.close_staging(staging)
            if is_there:
                _move_up(staging)
            else:
                staging.rename(target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _staging_in(target: Path) -> Path | None:
    """The staging folder in a folder that was empty, if a process has left one."""
    staging = folders.staging_of(target / _FILES)
    return staging if folders.is_marked(staging) else None


def _move_up(staging: Path) -> None:
    """Move what a staging folder holds into the folder around it, which is empty but for it, or this fails."""
    target = staging.parent
    if any(path != staging for path in target.iterdir()):
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(target))
    for path in list(staging.iterdir()):
        path.rename(target / path.name)
