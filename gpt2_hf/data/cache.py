"""Folders that are complete or absent, made once however many processes ask.

An entry is a folder named by the key of what it holds. It is written under another name, with a record of the hash
of every file, and renamed at the end; opening it checks the record. So an entry that was half written or changed is
made again, and one key never means two contents.

A lock lets one process of a machine make an entry. On network file systems other machines may not see it, or there are
no locks, so that each makes the entry in a folder of its own, and the first one's is kept.
"""

import contextlib
import errno
import json
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import xxhash

from ..errors import UserError
from ..runtime import distributed
from ..runtime.file_lock import locked
from .fingerprints import cache_root, file_key

RECORD_NAME = "record.json"
# What another machine is making is touched every few seconds.
_STALE_SECONDS = 24 * 3600.0

# Writes the files of an entry into an empty folder, and returns what the record shall say besides their hashes.
Fill = Callable[[Path], dict[str, Any]]


def entry_key(*parts: str) -> str:
    """One name for several parts, none of which runs into the next."""
    digest = xxhash.xxh3_128()
    for part in parts:
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.hexdigest()


def open_entry(key: str, fill: Fill) -> tuple[Path, dict[str, Any]]:
    """The folder of a key and its record; made by `fill` if it is not there, or not complete.

    Other processes that ask for the same key wait and then read what the first one made. A process that is killed
    leaves nothing that another would take for an entry.

    Raises:
        UserError: if the cache cannot be written.
    """
    root = cache_root()
    folder = root / key
    if (record := _read_record(folder)) is not None:
        return folder, record
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(root / f"{key}.lock", lambda: _say_waiting(folder)) as is_locked:
            if (record := _read_record(folder)) is None:
                record = _make(folder, fill, is_locked)
    except UserError:
        raise
    except OSError as error:
        remedy = "set HF_DATASETS_CACHE to a folder that can be"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = (
                "free space there, set HF_DATASETS_CACHE to a folder on another disk, or use --streaming, which "
                "stores no training text"
            )
        raise UserError(f"the cache in {root} cannot be written ({error.strerror or error}); {remedy}") from error
    return folder, record


def _say_waiting(folder: Path) -> None:
    if distributed.process_index() == 0:
        print(f"waiting for another process, which is making {folder}", file=sys.stderr, flush=True)


def _make(folder: Path, fill: Fill, is_locked: bool) -> dict[str, Any]:
    _remove_left(folder, is_locked)
    _remove_damaged(folder)
    staging = _staging(folder)
    try:
        staging.mkdir()
        content = fill(staging)
        hashes = {path.name: file_key(path) for path in sorted(staging.iterdir())}
        record = {**content, "hashes": hashes}
        (staging / RECORD_NAME).write_text(json.dumps(record), encoding="utf-8")
        return _publish(staging, folder, record)
    except BaseException:  # Ctrl-C too leaves nothing behind
        _remove(staging)
        raise


def _staging(folder: Path) -> Path:
    """A name for an entry that is none, or none any more."""
    return folder.with_name(f"{folder.name}.{_machine()}.{uuid.uuid4().hex}.tmp")


def _publish(staging: Path, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Give an entry its name, unless another machine was first; the record of the one that is there then."""
    try:
        os.replace(staging, folder)
    except OSError:
        if (there := _read_record(folder)) is None:
            raise
        _remove(staging)
        return there
    return record


def _remove_damaged(folder: Path) -> None:
    if not folder.exists():
        return
    aside = _staging(folder)
    with contextlib.suppress(FileNotFoundError):  # another machine has found it, too
        os.replace(folder, aside)
        shutil.rmtree(aside)


def _remove_left(folder: Path, is_locked: bool) -> None:
    """Remove what killed processes left of an entry: the lock, if there is one, says that those of this machine are
    gone.
    """
    for staging in folder.parent.glob(f"{folder.name}*.tmp"):
        is_ours = is_locked and staging.name.startswith(f"{folder.name}.{_machine()}.")
        if is_ours or time.time() - _last_touched(staging) > _STALE_SECONDS:
            shutil.rmtree(staging, ignore_errors=True)  # another machine may be at it too


def _last_touched(staging: Path) -> float:
    try:
        return max(path.stat().st_mtime for path in (staging, *staging.iterdir()))
    except FileNotFoundError:  # just now it got its name, or was removed
        return time.time()


def _machine() -> str:
    """The same for all processes that see each other's locks."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8")
    except OSError:
        boot = f"{socket.gethostname()} {psutil.boot_time():.0f}"
    return xxhash.xxh3_64_hexdigest(boot.encode())


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _read_record(folder: Path) -> dict[str, Any] | None:
    """The record of an entry, if every file is what it says."""
    try:
        record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        whole = all(file_key(folder / name) == content for name, content in record["hashes"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if whole else None
