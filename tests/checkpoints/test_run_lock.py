"""One living run per folder, also across hosts."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from gpt2_hf.checkpoints import run_lock
from gpt2_hf.checkpoints.run_lock import LOCK_NAME, RunLock
from gpt2_hf.errors import FolderLostError, UserError


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
    (tmp_path / LOCK_NAME).write_text(json.dumps({**owner, "pid": pid, "started": 1.0, "ticks": 1}))
    lock = RunLock(tmp_path)
    begin = time.monotonic()
    assert "it is taken over" in (lock.acquire() or "")
    assert time.monotonic() - begin < 5
    lock.release()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a start is known by the wall clock alone")
def test_a_clock_that_is_set_does_not_give_a_living_run_away(tmp_path):
    """When the owner began is known without a clock that somebody may set."""
    first = RunLock(tmp_path)
    first.acquire()
    owner = json.loads((tmp_path / LOCK_NAME).read_text())
    owner["started"] -= 3600
    (tmp_path / LOCK_NAME).write_text(json.dumps(owner))
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on"):
        RunLock(tmp_path).acquire()
    first.release()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_the_lock_works_where_proc_links_cannot_be_read(tmp_path, monkeypatch):
    """The folder can be taken all the same, and its owner is respected."""

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run_lock.os, "readlink", refuse)
    test_a_living_owner_is_respected(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    """Heartbeats that a test can wait for, and that a busy machine does not make stale."""
    monkeypatch.setattr(run_lock, "_HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(run_lock, "_STALE_SECONDS", 1.0)
    monkeypatch.setattr(run_lock, "_WRITING_SECONDS", 0.1)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", ["", '{"pid": 1', "[]"])
def test_a_half_written_lock_is_replaced(tmp_path, content):
    """What a killed process left of its lock does not block the folder for ever."""
    (tmp_path / LOCK_NAME).write_text(content)
    lock = RunLock(tmp_path)
    lock.acquire()
    assert lock.is_held
    lock.release()


@pytest.mark.usefixtures("quick")
def test_another_host_is_judged_by_its_heartbeat(tmp_path, monkeypatch, capsys):
    """A lock of another host that is touched is respected; one that is not is taken over.

    Also where a network file system tells of a change only when a file is opened.
    """
    living = RunLock(tmp_path)
    with monkeypatch.context() as there:
        there.setattr(run_lock.socket, "gethostname", lambda: "elsewhere")
        living.acquire()
    cache, stat = {}, Path.stat
    with monkeypatch.context() as there:
        there.setattr(Path, "stat", lambda self, **options: cache.setdefault(self, stat(self, **options)))
        with pytest.raises(UserError, match="on elsewhere"):
            RunLock(tmp_path).acquire()
    living._stop.set()
    living._heart.join()
    capsys.readouterr()
    successor = RunLock(tmp_path)
    successor.check_free()
    assert "elsewhere left a lock" in (successor.acquire() or "")
    assert capsys.readouterr().out.count("to see whether it lives") == 1  # watched once, and said before
    successor.release()


def wait_for(condition):
    """Wait until a heartbeat has seen what it is about to see."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(params=["links", "no links"])
def links(request, monkeypatch):
    """With hard links, and on a file system without them."""
    if request.param == "no links":

        def refuse(*_, **__):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(run_lock.os, "link", refuse)


def dead_owner(folder):
    """The record of a process that is gone, left in the folder."""
    lock = RunLock(folder)
    lock.acquire()
    record = json.loads(lock.path.read_text()) | {"pid": 2**22 + 1, "started": 1.0}
    lock.release()
    lock.path.write_text(json.dumps(record))
    return record


@pytest.mark.usefixtures("links", "quick")
def test_of_two_that_find_a_dead_owner_one_gets_the_folder(tmp_path):
    """The slower one, which has read the dead owner's record, gives the faster one's lock back."""
    dead = dead_owner(tmp_path)
    faster, slower = RunLock(tmp_path), RunLock(tmp_path)
    faster.acquire()
    slower._remove(dead)
    with pytest.raises(UserError, match="is in use by"):
        slower.acquire()
    time.sleep(0.3)
    assert faster.is_held and not faster.lost
    faster.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("links", "quick")
def test_an_owner_learns_that_its_lock_was_taken(tmp_path):
    """It leaves the other's lock alone from then on, and does not call itself the owner."""
    lock = RunLock(tmp_path)
    lock.acquire()
    other = {**json.loads(lock.path.read_text()), "started": 1.0, "host": "elsewhere"}
    lock.path.write_text(json.dumps(other))
    wait_for(lambda: lock.lost)
    assert not lock.is_held
    touched = lock.path.stat().st_mtime_ns
    time.sleep(0.3)
    assert lock.path.stat().st_mtime_ns == touched
    lock.release()
    assert json.loads(lock.path.read_text()) == other


@pytest.mark.usefixtures("links", "quick")
def test_a_lock_that_vanished_is_made_again(tmp_path):
    """A user who deletes it, or a process that looks whose it is, does not end a run."""
    lock = RunLock(tmp_path)
    lock.acquire()
    record = lock.path.read_text()
    lock.path.unlink()
    wait_for(lambda: lock.path.exists() and lock.path.read_text() == record)
    assert lock.is_held
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick")
def test_a_lock_that_vanished_while_the_owner_stood_still_is_lost(tmp_path):
    """In that time another run may have come, written and gone."""
    lock = RunLock(tmp_path)
    lock.acquire()
    assert lock._renew(0.9)
    lock.path.unlink()
    assert not lock._renew(1.1)
    lock.release()


@pytest.mark.usefixtures("links", "quick")
@pytest.mark.parametrize("made_anew", [True, False])
def test_a_folder_that_was_moved_is_lost(tmp_path, made_anew):
    """Its lock is not put into one that a checkpoint has made in its place; the reason is said."""
    run = tmp_path / "run"
    lock = RunLock(run)
    lock.acquire()
    run.rename(tmp_path / "moved")
    if made_anew:
        run.mkdir()
    wait_for(lambda: lock.lost)
    reason = "another folder is in its place" if made_anew else "is gone (moved or deleted)"
    assert reason in str(FolderLostError(run)) and not (run / LOCK_NAME).exists()
    lock.release()
    assert (tmp_path / "moved" / LOCK_NAME).exists()


@pytest.mark.usefixtures("links", "quick")
def test_a_lock_that_is_just_being_written_is_respected(tmp_path):
    """Without hard links a reader may see an empty file of a living process."""
    living = RunLock(tmp_path)
    living.acquire()
    record = living.path.read_text()
    late = RunLock(tmp_path)
    answers = iter([None])
    read = late._read
    late._read = lambda path: next(answers, read(path))
    with pytest.raises(UserError, match="is in use by"):
        late.acquire()
    assert living.path.read_text() == record
    living.release()


def test_a_lock_can_be_taken_again(tmp_path):
    """After it was given back, with a heart that beats."""
    lock = RunLock(tmp_path)
    for _ in range(2):
        lock.acquire()
        assert lock._heart.is_alive() and lock.is_held
        lock.release()


@pytest.mark.usefixtures("quick")
def test_a_copy_of_the_folder_of_a_living_run_can_be_taken(tmp_path):
    """Its lock was copied too, and does not beat; under another path it is the folder itself that is respected."""
    living = RunLock(tmp_path / "run")
    living.acquire()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / LOCK_NAME).write_text(living.path.read_text())
    copy = RunLock(tmp_path / "copy")
    assert "it is taken over" in (copy.acquire() or "") and copy.is_held and living.is_held
    copy.release()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    living._stop.set()  # as if it stood still
    living._heart.join()
    with pytest.raises(UserError, match="is in use by"):
        RunLock(tmp_path / "link").acquire()
    living.release()
