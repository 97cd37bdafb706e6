"""One living run per folder, also across hosts."""

import json
import os
import time

import pytest

from gpt2_hf.checkpoints import run_lock
from gpt2_hf.checkpoints.run_lock import LOCK_NAME, RunLock
from gpt2_hf.errors import UserError


def test_lock_is_taken_and_given_back(tmp_path):
    """While it is held the file is there, afterwards it is gone."""
    lock = RunLock(tmp_path / "run")
    assert lock.acquire() is None and lock.is_held
    assert json.loads((tmp_path / "run" / LOCK_NAME).read_text())["pid"] == os.getpid()
    lock.release()
    assert not (tmp_path / "run" / LOCK_NAME).exists() and not lock.is_held


def test_a_living_owner_is_respected(tmp_path):
    """A second lock on the folder names the owner."""
    first = RunLock(tmp_path)
    first.acquire()
    try:
        with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on"):
            RunLock(tmp_path).acquire()
    finally:
        first.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pid", [2**22 + 1, os.getpid()], ids=["gone", "another"])
def test_a_dead_owner_of_this_host_is_replaced_at_once(tmp_path, pid):
    """A process that is gone, or whose number now belongs to another, does not hold the folder."""
    held = RunLock(tmp_path)
    held.acquire()
    owner = json.loads((tmp_path / LOCK_NAME).read_text())
    held.release()
    (tmp_path / LOCK_NAME).write_text(json.dumps({**owner, "pid": pid, "started": 1.0}))
    lock = RunLock(tmp_path)
    begin = time.monotonic()
    assert "it is taken over" in (lock.acquire() or "")
    assert time.monotonic() - begin < 5
    lock.release()


@pytest.mark.parametrize("content", ["", '{"pid": 1', "[]"])
def test_a_half_written_lock_is_replaced(tmp_path, content):
    """What a killed process left of its lock does not block the folder for ever."""
    (tmp_path / LOCK_NAME).write_text(content)
    lock = RunLock(tmp_path)
    lock.acquire()
    assert lock.is_held
    lock.release()


def test_another_host_is_judged_by_its_heartbeat(tmp_path, monkeypatch):
    """A lock of another host that is touched is respected; one that is not is taken over."""
    monkeypatch.setattr(run_lock, "_HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(run_lock, "_STALE_SECONDS", 0.5)
    living = RunLock(tmp_path)
    living.acquire()
    owner = json.loads(living.path.read_text())
    living.path.write_text(json.dumps({**owner, "host": "elsewhere"}))
    with pytest.raises(UserError, match="on elsewhere"):
        RunLock(tmp_path).acquire()
    living._stop.set()
    living._heart.join()
    successor = RunLock(tmp_path)
    assert "elsewhere left a lock" in (successor.acquire() or "")
    successor.release()
