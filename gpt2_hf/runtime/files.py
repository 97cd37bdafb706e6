"""Files in general: their content, and that it reaches the disk."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ..errors import UserError, first_line

# Keeps what is being written out of every `checkpoint-*` pattern, ours and transformers'.
TEMPORARY_PREFIX = "tmp-"
# What a file system says that syncs no files.
_CANNOT_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that a run has written, or that somebody has edited since.

    Raises:
        UserError: if it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise UserError(f"{path} is not JSON ({first_line(error)}); repair it, or delete it") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; repair it, or delete it")
    return content


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file in one step; one in the folder of a run is written by `written.write_json`."""
    temporary = path.with_name(f"{TEMPORARY_PREFIX}{path.name}-{os.getpid()}")
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(json.dumps(content, indent=2) + "\n")
        sync(temporary)
        os.replace(temporary, path)
    except FileExistsError:
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to the disk, where the platform can.

    Raises:
        OSError: if the content of a file did not reach the disk.
    """
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder for syncing; its renames are journalled
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync no folders, and some no files. Any other error of a file means that its
        # content did not reach the disk: NFS and FUSE report a full disk or a quota only here.
        if not path.is_dir() and error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)
