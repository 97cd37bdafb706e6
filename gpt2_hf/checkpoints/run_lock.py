"""One living run per output folder.

The lock is a small file that its owner touches every few seconds. A second process is refused while the owner
lives; a lock whose owner was killed, here or on another host of a shared file system, is taken over. An owner that
stood still for so long that another host took its lock learns of it at its next touch (`RunLock.lost`).

The locks of the operating system, which guard the token cache, do not do this: other hosts do not see them on many
network file systems. filelock's `SoftFileLock` of a process that was killed on another host stays for ever.
Its `SoftFileLease` goes by age alone where the owner lives, so that it gives away the folder of a run that was
suspended on this very machine (Ctrl-Z, a scheduler's SIGSTOP), and it waits for a living owner where a user wants to
be told at once.
"""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from ..errors import UserError
from ..runtime.files import TEMPORARY_PREFIX
from ..runtime.own_process import own_process

LOCK_NAME = "run.lock"
_HEARTBEAT_SECONDS = 5.0
# A lock of another host that was not touched for so long belongs to nobody any more.
_STALE_SECONDS = 4 * _HEARTBEAT_SECONDS
# A lock that cannot be read may be one that is just being written.
_WRITING_SECONDS = 0.5


class RunLock:
    """Holds an output folder for this process, from `acquire` to `release`.

    Args:
        output_dir: the folder; it is created if need be.
    """

    def __init__(self, output_dir: str | Path):
        self.path = Path(output_dir) / LOCK_NAME
        self._stop = threading.Event()
        self._lost = threading.Event()
        self._heart: threading.Thread | None = None
        self._record: dict[str, Any] | None = None
        self._still: int | None = None  # when the file was last touched that was watched in vain

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    @property
    def is_held(self) -> bool:
        """Whether this object has the folder."""
        return self._heart is not None and not self.lost

    @property
    def lost(self) -> bool:
        """Whether the folder was moved, or another process may have it; the run must stop and write nothing more."""
        return self._lost.is_set()

    def check_free(self) -> None:
        """Look whether a living run has the folder; nothing is written.

        Raises:
            UserError: if one has it.
        """
        if not self.is_held and (owner := self._read(self.path)) is not None:
            self._refuse_living(owner)

    def _refuse_living(self, owner: dict[str, Any]) -> None:
        if self._is_alive(owner):
            raise UserError(
                f"{self.path.parent} is in use by process {owner['pid']} on {owner['host']}; "
                "wait for it, or choose another --checkpoint_dir"
            )

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
            owner = self._read_settled()
            if owner is not None:
                self._refuse_living(owner)
                note = f"process {owner['pid']} on {owner['host']} left a lock in {self.path.parent}; it is taken over"
            self._remove(owner)
        self._stop.clear()
        self._lost.clear()
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
        # On a disk that has failed it stays, and is recognised as that of a process that is gone.
        with contextlib.suppress(OSError):
            if self._read(self.path) == self._record:
                self.path.unlink(missing_ok=True)

    def _remove(self, owner: dict[str, Any] | None) -> None:
        """Remove the lock of an owner that is gone, but not one that another process has made in the meantime."""
        aside = self.path.with_name(f"{TEMPORARY_PREFIX}{LOCK_NAME}-stale-{socket.gethostname()}-{os.getpid()}")
        try:
            os.replace(self.path, aside)
        except FileNotFoundError:
            return
        taken = self._read(aside)
        if taken is not None and taken != owner:
            self._place(taken)
        aside.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Create the file with this process as owner, unless there is one."""
        process = own_process()
        self._record = {
            "pid": process.pid,
            "host": socket.gethostname(),
            "processes": _process_table(),
            "started": process.create_time(),
            "ticks": _ticks(process.pid),
            "folder": self._folder_number(),
        }
        return self._place(self._record)

    def _place(self, owner: dict[str, Any]) -> bool:
        """Create the file with this content, unless there is one."""
        temporary = self.path.with_name(f"{TEMPORARY_PREFIX}{LOCK_NAME}-{socket.gethostname()}-{os.getpid()}")
        temporary.write_text(json.dumps(owner), encoding="utf-8")
        try:
            # A hard link appears whole or not at all, and not if the name is taken, also over a network.
            os.link(temporary, self.path)
        except FileExistsError:
            return False
        except OSError:  # no hard links here; exclusive creation is the next best
            return self._place_exclusively(owner)
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def _place_exclusively(self, owner: dict[str, Any]) -> bool:
        try:
            with open(self.path, "x", encoding="utf-8") as file:
                json.dump(owner, file)
        except FileExistsError:
            return False
        return True

    def _read_settled(self) -> dict[str, Any] | None:
        owner = self._read(self.path)
        if owner is None and self.path.exists():
            time.sleep(_WRITING_SECONDS)
            owner = self._read(self.path)
        return owner

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            return _parse(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return None  # gone in the meantime

    def _folder_number(self) -> int:
        """Tells the folder from a copy of it, under whatever path; only to be compared on one host."""
        return self.path.parent.stat().st_ino

    def _is_alive(self, owner: dict[str, Any]) -> bool:
        folder = self._folder_number()
        is_copy = owner.get("folder", folder) != folder  # with the lock of a run that may go on elsewhere
        if not is_copy and owner["host"] == socket.gethostname() and owner.get("processes") == _process_table():
            return _is_same_process(owner["pid"], owner["started"], owner.get("ticks"))
        # Another host; or another container that may have this one's name, with process numbers of its own.
        return self._beats(f"process {owner['pid']} on {owner['host']}")

    def _beats(self, owner: str) -> bool:
        """Watch the file until it is touched or stale; the clocks of two hosts need not agree."""
        first = self._modified()
        if first is not None and first == self._still:
            return False
        seconds = f"{_STALE_SECONDS:.0f} s"
        print(f"{self.path.parent} has a lock of {owner}: watched for {seconds} to see whether it lives", flush=True)
        deadline = time.monotonic() + _STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_HEARTBEAT_SECONDS / 5)
            if (modified := self._modified()) != first:
                return modified is not None
        self._still = first
        return False

    def _modified(self) -> int | None:
        # Opened, since NFS may answer a mere `stat` from its cache for a minute, but asks the server at each opening.
        try:
            with open(self.path, "rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None
        except OSError:  # on Windows just while it is replaced
            return self.path.stat().st_mtime_ns if self.path.exists() else None

    def _beat(self) -> None:
        touched = time.time()
        while not self._stop.wait(_HEARTBEAT_SECONDS):
            try:
                if not self._renew(time.time() - touched):
                    self._lost.set()
                    return
            except OSError:  # a full or vanished disk is reported by whoever writes to it
                continue
            touched = time.time()

    def _renew(self, seconds: float) -> bool:
        """Touch the file, if it is still this process's.

        Args:
            seconds: since it was last touched, on the clock that goes on while a machine sleeps.
        """
        assert self._record is not None
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            # Another process may have it in its hands, to see whose it is, or a user has deleted it. But in a long
            # time another run may have come and gone. Nor is a folder this run's that a checkpoint has made anew,
            # after the run's own was moved away.
            if seconds > _STALE_SECONDS or self._folder_number() != self._record["folder"]:
                return False
            self._place(self._record)
            text = self.path.read_text(encoding="utf-8", errors="replace")
        owner = _parse(text)
        if owner == self._record:
            os.utime(self.path)
        return owner in (self._record, None)  # one that is just being written may be this one, given back


def _parse(text: str) -> dict[str, Any] | None:
    """The record of an owner; `None` if it is only half written, perhaps by a process that was killed."""
    try:
        owner = json.loads(text)
    except ValueError:
        return None
    known = isinstance(owner, dict) and {"pid", "host", "started"} <= owner.keys()
    return owner if known else None


def _process_table() -> str:
    """What process numbers are counted in: the same string for two processes that would see each other."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # another system, or a sandbox that hides them
        return f"booted {psutil.boot_time():.0f}"


def _ticks(pid: int) -> int | None:
    """When a process began, in the kernel's ticks since the machine's start (`man 5 proc_pid_stat`); Linux alone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def _is_same_process(pid: int, started: float, ticks: int | None) -> bool:
    """Whether a process lives and is the one that began then, and not a later one with the same number."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        if ticks is not None:
            return _ticks(pid) == ticks
        return abs(process.create_time() - started) < 1  # counted by a clock that may be set
    except (psutil.Error, FileNotFoundError, ProcessLookupError):
        return False
