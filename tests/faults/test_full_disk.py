"""A disk that is full or read-only during a save: said in a line, earlier checkpoints intact."""

import os
import subprocess
import sys

import pytest

from gpt2_hf import checkpoints

from . import harness

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs a tmpfs")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of two megabytes, room for two or three tiny checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def options(tiny_options, disk, *further):
    return ["train", *tiny_options, "--checkpoint_dir", str(disk / "run"), "--save_total_limit", "none", *further]


def test_full_disk_stops_with_one_line_and_keeps_what_was_saved(small_disk, tiny_options, tmp_path):
    """Exit code 2, the reason and the newest whole checkpoint named; nothing half-written is left."""
    log = tmp_path / "log"
    assert harness.run(options(tiny_options, small_disk, "--save_every", "1"), log) == 2, log.read_text()
    last = log.read_text().strip().splitlines()[-1]
    assert "could not be saved" in last and "is whole" in last and "--resume_from latest" in last
    run = small_disk / "run"
    newest, passed_over = checkpoints.newest_valid(run)
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
    _, passed_over = checkpoints.newest_valid(small_disk / "run")
    assert not passed_over


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write to read-only folders")
def test_lost_permission_is_said(tiny_options, tmp_path):
    """An output folder that cannot be written to is an error before training."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    log = tmp_path / "log"
    assert harness.run(["train", *tiny_options, "--checkpoint_dir", str(locked / "run")], log) == 2
    assert "locked" in log.read_text().strip().splitlines()[-1]
