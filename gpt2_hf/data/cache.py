"""Folders that are complete or absent, made once however many processes ask.

An entry is a folder named by the key of what it holds. It is written under another name, with a record of the hash
of every file, and renamed at the end; opening it checks the record. So an entry that was half written, damaged or
tampered with is made again, and one key never means two contents.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash
from filelock import FileLock

from ..errors import UserError
from .fingerprints import cache_root, file_key

RECORD_NAME = "record.json"

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
        with FileLock(root / f"{key}.lock"):
            if (record := _read_record(folder)) is None:
                record = _make(folder, fill)
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"the cache in {root} cannot be written ({error.strerror or error}); free space there, set "
            "HF_DATASETS_CACHE to a folder on another disk, or use --streaming, which stores nothing"
        ) from error
    return folder, record


def _make(folder: Path, fill: Fill) -> dict[str, Any]:
    staging = folder.with_name(f"{folder.name}.tmp")
    _remove(staging)  # of a process that was killed; the lock says that it is gone
    _remove(folder)  # damaged
    try:
        staging.mkdir()
        content = fill(staging)
        hashes = {path.name: file_key(path) for path in sorted(staging.iterdir())}
        record = {**content, "hashes": hashes}
        (staging / RECORD_NAME).write_text(json.dumps(record), encoding="utf-8")
        os.replace(staging, folder)
    except BaseException:  # Ctrl-C too leaves nothing behind
        _remove(staging)
        raise
    return record


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
