"""Names for contents, so that the cache is never stale.

Small files are hashed each time that they are asked for, which is as fast as to remember them. The hash of a larger
one, which is asked for several times a start, is remembered beside its size, times and inode, and trusted as git
trusts its index: only if the file was left alone for a while before it was hashed, since a change within the clock's
grain would not show.
"""

import hashlib
import json
import os
import time
from pathlib import Path

import datasets
import xxhash

from ..runtime.files import read_object

ALWAYS_HASHED_BYTES = 1 << 20
_CLOCK_GRAIN_SECONDS = 2.0
# So much is hashed of the beginning, the middle and the end of a file that is streamed.
_SAMPLE_BYTES = 1 << 16


def cache_root() -> Path:
    """Where this package keeps what it can make again: beside the caches of the datasets library."""
    return Path(datasets.config.HF_DATASETS_CACHE) / "gpt2_hf"


def file_key(path: str | Path) -> str:
    """A hash of a file's content.

    Raises:
        OSError: if the file cannot be read.
    """
    path = os.path.abspath(path)
    identity = _identity(path)
    if identity[0] < ALWAYS_HASHED_BYTES:
        return _hash(path)
    memo = cache_root() / "file-hashes" / xxhash.xxh3_128_hexdigest(os.fsencode(path))
    remembered = read_object(memo)  # empty where it was never written, or is damaged: the file is hashed again
    if remembered.get("identity") == identity:
        return str(remembered["hash"])
    started = time.time()
    content_hash = _hash(path)
    settled = started - max(identity[1:3]) / 1e9 > _CLOCK_GRAIN_SECONDS
    if settled and _identity(path) == identity:
        _write_memo(memo, {"identity": identity, "hash": content_hash})
    return content_hash


def sample_key(path: str | Path, dated: bool = False) -> str:
    """A hash of a file's size and of pieces of it, which takes no longer for a larger file.

    Args:
        path: the file.
        dated: with the times of the file, so that on one machine any change shows.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as stream:
        status = os.fstat(stream.fileno())
        last = max(status.st_size - _SAMPLE_BYTES, 0)
        digest = xxhash.xxh3_128(repr((status.st_size, dated and (status.st_mtime_ns, status.st_ctime_ns))).encode())
        for place in (0, last // 2, last):
            stream.seek(place)
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _identity(path: str) -> list[int]:
    """Size, time of change, time of change of the entry, inode; not the device: on NFS its number is the host's."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _hash(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, xxhash.xxh3_128).hexdigest()


def _write_memo(memo: Path, content: dict) -> None:
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        staging = memo.with_name(f"{memo.name}.{os.getpid()}")
        staging.write_text(json.dumps(content), encoding="utf-8")
        os.replace(staging, memo)
    except OSError:
        return  # only a memory aid
