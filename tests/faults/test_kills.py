"""Killed at any instant, a run goes on from a valid checkpoint and ends as if nothing had happened."""

import os
import signal
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from gpt2_hf.checkpoints import folders

from ..conftest import needs_fork_server, read_json
from ..runs import assert_same_state, final_state, history
from . import harness

pytestmark = needs_fork_server


@pytest.fixture(scope="module")
def command(tiny_options):
    """A run of 50 steps that evaluates and saves often, so that kills hit both."""

    def make(output_dir, *options):
        cadence = ["--save_every", "2", "--eval_every", "4", "--max_epochs", "2", "--sample_tokens", "0"]
        return ["train", *tiny_options, *cadence, "--checkpoint_dir", str(output_dir), *options]

    return make


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, command):
    """The same run, left alone."""
    harness.warm_up()
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert harness.run(command(folder / "run"), folder / "log") == 0
    return folder / "run"


def kill_and_resume(command, tmp_path, uninterrupted, kills):
    """Kill the run so many times at random instants, then let it end; check every checkpoint in between."""
    random = harness.seeded("kills")
    seconds = read_json(uninterrupted / "train_results.json")["train_runtime"]
    run, log = tmp_path / "run", tmp_path / "log"
    argv = command(run, "--resume_from", "latest")
    killed = 0
    while killed < kills:
        if not harness.kill_after(argv, log, random.uniform(0.3, 0.3 + 0.6 * seconds)):
            break  # it ended before the kill
        killed += 1
        assert not folders.newest_valid(run)[1]  # complete or absent
        for name in folders.read_names(run).values():
            assert (run / name).is_dir()
    assert harness.run(argv, log) == 0, log.read_text()
    assert_same_state(final_state(run, 50), final_state(uninterrupted, 50))
    assert history(run) == history(uninterrupted)
    assert (
        read_json(run / "eval_results.json")["eval_loss"]
        == read_json(uninterrupted / "eval_results.json")["eval_loss"]
    )
    best = [load_file(folder / "best_model" / "model.safetensors") for folder in (run, uninterrupted)]
    assert all(torch.equal(best[0][name], best[1][name]) for name in best[1])
    return killed


def test_four_kills_change_nothing(command, tmp_path, uninterrupted):
    """Up to four SIGKILLs at random instants: the same bits, history and best model in the end."""
    assert kill_and_resume(command, tmp_path, uninterrupted, kills=4) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(8))
def test_eighty_kills_change_nothing(command, tmp_path, uninterrupted, repetition):
    """The same, many times over."""
    kill_and_resume(command, tmp_path, uninterrupted, kills=10)


def stopped_within_a_save(process, run):
    """The checkpoints that are being written, of a process that has been stopped; of one that is not, none."""
    if not folders.list_checkpoints(run) or not any(run.glob("tmp-checkpoint-*")):
        return []
    os.kill(process.pid, signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        assert process.is_alive()
        time.sleep(0.001)
    if not (staged := list(run.glob("tmp-checkpoint-*"))):
        os.kill(process.pid, signal.SIGCONT)
    return staged


def test_kill_inside_a_save_leaves_the_earlier_checkpoint(command, tmp_path):
    """Killed while a checkpoint is being written: it is absent, the one before is whole, and the run goes on."""
    run, log = tmp_path / "run", tmp_path / "log"
    process = harness.start(command(run, "--max_epochs", "1000"), log)
    while not (staged := stopped_within_a_save(process, run)):
        assert process.is_alive(), log.read_text()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert list(run.glob("tmp-checkpoint-*")) == staged
    assert not any((run / path.name.removeprefix("tmp-")).exists() for path in staged)
    newest, passed_over = folders.newest_valid(run)
    assert newest is not None and not passed_over
    assert harness.run(command(run, "--resume_from", "latest", "--max_steps", "60"), log) == 0, log.read_text()
    assert not list(run.glob("tmp-*"))


def test_tensorboard_has_one_curve_over_a_kill(command, tmp_path):
    """After a kill and a resume each step has one value, in order."""
    run, log = tmp_path / "run", tmp_path / "log"
    process = harness.start(command(run, "--logging_steps", "1"), log)
    harness.wait_for(log, "step 13/")
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert harness.run(command(run, "--logging_steps", "1", "--resume_from", "latest"), log) == 0
    events = EventAccumulator(str(run / "runs" / run.name)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 51))
    events = EventAccumulator(str(run / "runs" / run.name / "validation")).Reload()
    assert [event.step for event in events.Scalars("curves/loss")] == sorted({*range(4, 51, 4), 25, 50})


def test_a_second_process_is_refused_while_the_first_lives(command, tmp_path):
    """Two runs in one folder: the second is told who has it; after a kill the folder is free again."""
    run, log, other = tmp_path / "run", tmp_path / "log", tmp_path / "other"
    process = harness.start(command(run, "--max_epochs", "1000"), log)
    harness.wait_for(log, "step 5/")
    assert harness.run(command(run, "--resume_from", "latest"), other) == 2
    assert f"is in use by process {process.pid}" in other.read_text()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert harness.run(command(run, "--resume_from", "latest", "--max_steps", "6"), other) == 0
    assert "it is taken over" in other.read_text()
