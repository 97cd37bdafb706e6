"""What stops one process of a run stops all of them, at the same step, with everything saved (gloo, on CPU)."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from gpt2_hf.checkpoints import folders
from gpt2_hf.trainer.callbacks import StopCallback

from ..conftest import REPOSITORY, needs_fork_server, read_json
from ..runs import assert_same_state, final_state, history
from . import harness

pytestmark = needs_fork_server


@pytest.fixture(scope="module")
def command(tiny_options):
    """A run of two processes that evaluates and saves often."""

    def make(output_dir, *options):
        cadence = ["--save_every", "5", "--eval_every", "5", "--batch_size", "4", "--ddp_backend", "gloo"]
        return ["train", *tiny_options, *cadence, "--checkpoint_dir", str(output_dir), *options]

    return make


@pytest.fixture(scope="module")
def whole(tmp_path_factory, command):
    """The folder of such a run that was left alone; tests only read it."""
    folder = tmp_path_factory.mktemp("whole")
    logs = [folder / "log0", folder / "log1"]
    assert harness.join(harness.start_ranks(command(folder / "run"), logs)) == [0, 0], logs[0].read_text()
    return folder / "run"


@pytest.fixture
def logs(tmp_path):
    return [tmp_path / "log0", tmp_path / "log1"]


def test_a_signal_to_one_process_stops_both_and_nothing_is_lost(command, whole, tmp_path, logs):
    """Only the second process gets it: both leave with 75 after the same checkpoint, and end as if left alone.

    SIGUSR1 here, and SIGTERM below.
    """
    parts = tmp_path / "parts"
    processes = harness.start_ranks(command(parts, "--resume_from", "latest"), logs)
    harness.wait_for(logs[0], "step 5/25")
    os.kill(processes[1].pid, signal.SIGUSR1)
    assert harness.join(processes) == [75, 75], logs[0].read_text()
    newest, passed_over = folders.newest_valid(parts)
    assert newest is not None and not passed_over and folders.step_of(newest) < 25
    assert harness.join(harness.start_ranks(command(parts, "--resume_from", "latest"), logs)) == [0, 0]
    assert_same_state(final_state(parts, 25), final_state(whole, 25))
    assert history(parts) == history(whole)


def slow_evaluations():
    """Half a second for each batch."""
    heed = StopCallback.on_prediction_step

    def slowly(self, *args, **kwargs):
        time.sleep(0.5)
        heed(self, *args, **kwargs)

    StopCallback.on_prediction_step = slowly


def test_a_signal_to_one_process_breaks_off_an_evaluation_of_both(command, whole, tmp_path, logs):
    """At the same batch: a checkpoint that owes the evaluation, and an end as if left alone."""
    parts = tmp_path / "parts"
    processes = harness.start_ranks(command(parts, "--eval_batch_size", "1"), logs, slow_evaluations)
    harness.wait_for(logs[0], "step 5/25")
    os.kill(processes[1].pid, signal.SIGTERM)
    assert harness.join(processes) == [75, 75], logs[0].read_text()
    newest, _ = folders.newest_valid(parts)
    assert newest.name == "checkpoint-5" and not any("eval_loss" in entry for entry in history(newest))
    assert harness.join(harness.start_ranks(command(parts, "--resume_from", "latest"), logs)) == [0, 0]
    assert_same_state(final_state(parts, 25), final_state(whole, 25))
    assert history(parts) == history(whole)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a tmpfs")
def test_the_first_process_alone_adds_to_the_curves_of_a_finished_run(command, whole, tmp_path, logs):
    """Started again, the test split is scored again; the checkpoint was written by the first process."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = set((run / "runs").rglob("events*"))
    assert harness.join(harness.start_ranks(command(run, "--resume_from", "latest"), logs)) == [0, 0]
    assert "nothing is left to train" in logs[0].read_text()
    assert len(set((run / "runs").rglob("events*")) - before) == 1


def test_a_full_disk_stops_both(command, small_disk, logs):
    """The process that writes says what has happened; neither waits for the other, and what was saved is intact."""
    options = ("--save_every", "1", "--save_total_limit", "none")
    processes = harness.start_ranks(command(small_disk / "run", *options), logs)
    assert harness.join(processes) == [2, 2], logs[0].read_text()
    assert "could not be saved" in logs[0].read_text() and "is intact" in logs[0].read_text()
    newest, passed_over = folders.newest_valid(small_disk / "run")
    assert newest is not None and not passed_over


def test_torchrun_hands_a_signal_on(command, tmp_path, popen):
    """SIGTERM to torchrun itself: the processes save before they leave, and the same command goes on."""
    run, log = tmp_path / "run", tmp_path / "log"
    _, *options = command(run, "--resume_from", "latest", "--max_epochs", "100000")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    with log.open("w") as file:
        process = popen([*launch, str(REPOSITORY / "run_clm.py"), *options], stdout=file, stderr=subprocess.STDOUT)
        harness.wait_for(log, "step 10/", 240, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
    assert "stopped at step" in log.read_text()
    newest, passed_over = folders.newest_valid(run)
    assert newest is not None and not passed_over
    assert read_json(newest / "trainer_state.json")["global_step"] >= 10
