"""A disk that is full or read-only during a save: said in a line, earlier checkpoints intact."""

import errno
import os
import stat
import subprocess
import sys
import time

import pytest

from gpt2_hf.__main__ import main
from gpt2_hf.checkpoints import folders
from gpt2_hf.runtime.files import sync

from . import harness

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a tmpfs")


def options(tiny_options, disk, *further):
    return ["train", *tiny_options, "--checkpoint_dir", str(disk / "run"), "--save_total_limit", "none", *further]


def test_full_disk_stops_with_one_line_and_keeps_what_was_saved(small_disk, tiny_options, tmp_path):
    """Exit code 2, the reason and the newest intact checkpoint named; nothing half-written is left."""
    log = tmp_path / "log"
    assert harness.run(options(tiny_options, small_disk, "--save_every", "1"), log) == 2, log.read_text()
    last = log.read_text().strip().splitlines()[-1]
    assert "could not be saved" in last and "is intact" in last and "--resume_from latest" in last
    run = small_disk / "run"
    newest, passed_over = folders.newest_valid(run)
    assert newest is not None and not passed_over
    assert not list(run.glob("tmp-checkpoint-*"))


def test_training_goes_on_if_that_is_asked_for(small_disk, tiny_options, tmp_path):
    """--on_save_error continue: a warning for each checkpoint that does not fit, and training reaches its end."""
    log = tmp_path / "log"
    # The report at the end needs room of its own, so only the training is looked at.
    harness.run(options(tiny_options, small_disk, "--save_every", "1", "--on_save_error", "continue"), log)
    text = log.read_text()
    assert "training goes on (--on_save_error continue)" in text
    assert "step 25/25: loss" in text
    _, passed_over = folders.newest_valid(small_disk / "run")
    assert not passed_over


def test_a_disk_that_becomes_read_only_is_said(small_disk, tiny_options, tmp_path):
    """As a kernel does after an error of the disk: one line, exit code 2, what was saved is intact."""
    log = tmp_path / "log"
    further = ("--save_every", "2", "--save_total_limit", "1", "--max_epochs", "100000")
    process = harness.start(options(tiny_options, small_disk, *further), log)
    harness.wait_for(log, "step 10/")
    # busy while a file is open for writing, which is most of the time
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    while process.is_alive() and subprocess.run(remount, capture_output=True).returncode:
        time.sleep(0.01)
    assert harness.join([process]) == [2], log.read_text()
    last = log.read_text().strip().splitlines()[-1]
    assert "Read-only file system" in last and "is intact" in last
    assert not folders.newest_valid(small_disk / "run")[1]


def test_whatever_the_file_system_refuses_is_said(train_tiny, tmp_path, capsys, monkeypatch):
    """As a lost permission: the reason in one line, exit code 2, the earlier checkpoint whole."""
    commit = folders.commit

    def refuse_the_second(staging, target, *made_from):
        if folders.step_of(target) > 10:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(target))
        commit(staging, target, *made_from)

    monkeypatch.setattr(folders, "commit", refuse_the_second)
    assert train_tiny(tmp_path / "run") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert os.strerror(errno.EACCES) in last and "checkpoint-10 is intact" in last
    assert not list((tmp_path / "run").glob("tmp-*"))


def test_a_file_that_does_not_reach_the_disk_is_no_checkpoint(train_tiny, tmp_path, capsys, monkeypatch):
    """NFS and FUSE tell only a sync of a full disk or a quota: the file reads well from the cache, and is lost."""
    run, fsync = tmp_path / "run", os.fsync

    def refuse_large_files(descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_size > 10_000 and (run / "checkpoint-10").is_dir():
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_large_files)
    assert train_tiny(run) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert os.strerror(errno.EDQUOT) in last and "checkpoint-10 is intact" in last
    assert [path.name for path in folders.list_checkpoints(run)] == ["checkpoint-10"]


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.ENOSPC, errno.EIO])
def test_a_sync_of_a_file_that_fails_is_an_error(tmp_path, monkeypatch, code):
    """Whatever the reason, where the file system can sync files."""

    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    (tmp_path / "file").write_text("content")
    with pytest.raises(OSError, match=os.strerror(code)):
        sync(tmp_path / "file")


def test_a_file_system_that_cannot_sync_is_no_error(tmp_path, monkeypatch):
    """Neither for files, nor for folders, of which some servers say so in their own way."""

    def refuse(descriptor):
        raise OSError(errno.EIO if stat.S_ISDIR(os.fstat(descriptor).st_mode) else errno.EINVAL, "no sync")

    monkeypatch.setattr(os, "fsync", refuse)
    (tmp_path / "file").write_text("content")
    for path in (tmp_path / "file", tmp_path):
        sync(path)


def test_lost_permission_is_said(locked_options, capsys):
    """An output folder that cannot be written to is an error before training."""
    assert main(["train", *locked_options]) == 2
    output = capsys.readouterr()
    assert "locked/run cannot be made (Permission denied)" in output.err.strip().splitlines()[-1]
    assert "step 1/" not in output.out


def test_without_an_earlier_checkpoint_nothing_can_be_resumed(train_tiny, tmp_path, capsys, monkeypatch):
    """The advice is to start again, not to resume what is not there."""

    def refuse(staging, target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(folders, "commit", refuse)
    assert train_tiny(tmp_path / "run") == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "there is no earlier one" in last and last.endswith("then start again")
