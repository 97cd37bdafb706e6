"""One living run per output folder.

The lock is a small file that its owner touches every few seconds. A second process is refused while the owner
lives; a lock whose owner was killed, here or on another host of a shared file system, is taken over.
"""

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from .errors import UserError

LOCK_NAME = "run.lock"
_HEARTBEAT_SECONDS = 5.0
# A lock of another host that was not touched for so long belongs to nobody any more.
_STALE_SECONDS = 4 * _HEARTBEAT_SECONDS


class RunLock:
    """Holds an output folder for this process, from `acquire` to `release`.

    Args:
        output_dir: the folder; it is created if need be.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / LOCK_NAME
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    @property
    def is_held(self) -> bool:
        """Whether this object has the folder."""
        return self._heart is not None

    def acquire(self) -> str | None:
        """Take the folder.

        Returns:
            A line to tell the user if a dead process's lock was taken over.

        Raises:
            UserError: if a living run has it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        note = None
        while not self._create():
            owner = self._read()
            if owner is not None and self._is_alive(owner):
                raise UserError(
                    f"{self.path.parent} is in use by process {owner['pid']} on {owner['host']}; "
                    "wait for it, or choose another --checkpoint_dir"
                )
            if owner is not None:
                note = f"process {owner['pid']} on {owner['host']} left a lock in {self.path.parent}; it is taken over"
            self.path.unlink(missing_ok=True)
        self._heart = threading.Thread(target=self._beat, name="run-lock", daemon=True)
        self._heart.start()
        return note

    def release(self) -> None:
        """Give the folder back."""
        if self._heart is None:
            return
        self._stop.set()
        self._heart.join()
        self._heart = None
        self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Create the file with this process as owner, unless there is one."""
        process = psutil.Process()
        owner = {"pid": process.pid, "host": socket.gethostname(), "started": process.create_time()}
        temporary = self.path.with_name(f"tmp-{LOCK_NAME}-{owner['host']}-{process.pid}")
        temporary.write_text(json.dumps(owner), encoding="utf-8")
        try:
            # A hard link appears whole or not at all, and not if the name is taken, also over a network.
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        except OSError:  # no hard links here; exclusive creation is the next best
            return self._create_exclusively(owner)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _create_exclusively(self, owner: dict[str, Any]) -> bool:
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                json.dump(owner, file)
        except FileExistsError:
            return False
        return True

    def _read(self) -> dict[str, Any] | None:
        try:
            owner = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            return None  # gone in the meantime, or half written by a process that was killed
        known = isinstance(owner, dict) and {"pid", "host", "started"} <= owner.keys()
        return owner if known else None

    def _is_alive(self, owner: dict[str, Any]) -> bool:
        if owner["host"] == socket.gethostname():
            # The start time tells a process from a later one that was given the same number.
            return psutil.pid_exists(owner["pid"]) and _start_time(owner["pid"]) == owner["started"]
        return self._beats()

    def _beats(self) -> bool:
        """Watch the file until it is touched or stale; the clocks of two hosts need not agree."""
        first = self._modified()
        deadline = time.monotonic() + _STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_HEARTBEAT_SECONDS / 5)
            if self._modified() != first:
                return self.path.exists()
        return False

    def _modified(self) -> int | None:
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _beat(self) -> None:
        while not self._stop.wait(_HEARTBEAT_SECONDS):
            try:
                os.utime(self.path)
            except OSError:  # a full or vanished disk is reported by whoever writes to it
                continue


def _start_time(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None
