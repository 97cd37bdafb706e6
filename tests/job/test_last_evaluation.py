"""A signal at the end of a run: obeyed at once, and nothing that was trained is lost."""

import signal

import pytest
from transformers import TrainerCallback

from gpt2_hf.checkpoints import folders, manifest
from gpt2_hf.runtime.files import write_json
from gpt2_hf.trainer import gpt2_trainer as trainer_module

from ..conftest import read_json
from ..runs import assert_same_state, final_state, history, train_until_signal

LAST = 25


def evaluated(run):
    """Steps with an evaluation."""
    return [entry["step"] for entry in history(run) if "eval_loss" in entry]


def note_an_hour(checkpoint):
    """An evaluation took as long, says the log."""
    state = read_json(checkpoint / "trainer_state.json")
    state["log_history"].append({"step": 5, "eval_runtime": 3600.0})
    write_json(checkpoint / "trainer_state.json", state)
    manifest.write(checkpoint)


@pytest.mark.parametrize("options", [(), ("--max_steps", "13"), ("--save_strategy", "best"), ("--weight_decay", "0")])
def test_the_last_evaluation_is_broken_off_and_made_up_for(finished_run, train_tiny, tmp_path, capsys, options):
    """At an epoch's end and within one: exit 75 with the last step's checkpoint, and an end as if left alone.

    Also where it is broken off a second time, while it is made up for.
    """
    whole, parts = finished_run, tmp_path / "parts"
    last = 13 if "--max_steps" in options else LAST
    if options:
        whole = tmp_path / "whole"
        assert train_tiny(whole, *options) == 0
    assert train_until_signal(parts, last + 1, train_tiny, *options, event="on_prediction_step") == 75
    assert folders.list_checkpoints(parts)[-1].name == f"checkpoint-{last}"
    assert history(parts / f"checkpoint-{last}")[-1]["step"] == last
    assert not any("eval_loss" in entry for entry in history(parts / f"checkpoint-{last}") if entry["step"] == last)
    assert not (parts / "test_results.json").exists()
    if not options:
        resumed = ("--resume_from", "latest")
        assert train_until_signal(parts, last + 1, train_tiny, *resumed, event="on_prediction_step") == 75
    capsys.readouterr()
    assert train_tiny(parts, *options, "--resume_from", "latest") == 0
    assert "the evaluation that a signal broke off is due now" in capsys.readouterr().out
    assert history(parts) == history(whole)
    assert history(parts / f"checkpoint-{last}") == history(whole / f"checkpoint-{last}")
    assert_same_state(final_state(parts, last), final_state(whole, last))
    states = [read_json(run / "trainer_state.json") for run in (parts, whole)]
    assert states[0]["best_global_step"] == states[1]["best_global_step"]
    assert states[0]["best_metric"] == states[1]["best_metric"]
    assert folders.read_names(parts) == folders.read_names(whole)
    assert read_json(parts / "train_results.json")["train_steps"] == last
    # once more there is nothing owed
    assert train_tiny(parts, *options, "--resume_from", "latest") == 0
    assert "nothing is left to train" in capsys.readouterr().out


def test_what_is_made_up_for_is_within_the_budget(train_tiny, tmp_path, capsys):
    """What took an hour is left out of half an hour, and so is the score of as large a split; there is time later."""
    run = tmp_path / "run"
    assert train_until_signal(run, LAST + 1, train_tiny, event="on_prediction_step") == 75
    note_an_hour(run / f"checkpoint-{LAST}")
    assert train_tiny(run, "--resume_from", "latest", "--max_training_hours", "0.5") == 0
    printed = capsys.readouterr().out
    assert "no time was left for an evaluation" in printed and "no time is left for the test split" in printed
    assert evaluated(run) == [10, 20] and not (run / "test_results.json").exists()
    assert train_tiny(run, "--resume_from", "latest") == 0
    assert evaluated(run) == [10, 20, LAST] and (run / "test_results.json").is_file()
    capsys.readouterr()
    assert train_tiny(run, "--resume_from", "latest", "--max_training_hours", "0.5") == 0
    printed = capsys.readouterr().out
    assert "nothing is left to train" in printed and "no time is left for the test split" in printed


def test_what_is_owed_at_the_end_of_a_schedule_by_time_is_all_that_is_done(train_tiny, tmp_path, capsys):
    """No step at a learning rate of 0 follows, and there is nothing left afterwards."""
    run, options = tmp_path / "run", ("--schedule_by_time", "--max_training_hours", "1")
    assert train_until_signal(run, 11, train_tiny, *options, event="on_prediction_step") == 75
    state = read_json(run / "checkpoint-10" / "trainer_state.json")
    kept = state["stateful_callbacks"]["TimeBudgetCallback"]["attributes"]
    kept |= {"schedule_progress": 0.97, "expired": True}  # as if an hour had gone by
    write_json(run / "checkpoint-10" / "trainer_state.json", state)
    manifest.write(run / "checkpoint-10")
    for _ in range(2):
        assert train_tiny(run, *options, "--resume_from", "latest") == 0
        assert evaluated(run) == [10] and history(run)[-1]["step"] == 10
    assert "has reached the end of its wall-clock-based schedule" in capsys.readouterr().out


def test_a_budget_is_for_training_where_what_is_owed_takes_longer(train_tiny, tmp_path, capsys):
    """Within a run: it goes on, and is evaluated when that is due again."""
    run = tmp_path / "run"
    assert train_until_signal(run, 11, train_tiny, event="on_prediction_step") == 75
    note_an_hour(run / "checkpoint-10")
    assert train_tiny(run, "--resume_from", "latest", "--max_training_hours", "0.5") == 0
    assert "no time is left for the evaluation that a signal broke off" in capsys.readouterr().out
    assert evaluated(run) == [20, LAST]


@pytest.mark.parametrize("event", ["on_save", "on_step_end"])
def test_a_signal_at_the_last_step_is_obeyed_before_the_scores(train_tiny, tmp_path, capsys, event):
    """In the last step, or when its checkpoint is written: 75, and the next start has only the scores to make."""
    run = tmp_path / "run"
    assert train_until_signal(run, LAST + 1, train_tiny, event=event) == 75
    assert "go on from" in capsys.readouterr().out and not (run / "test_results.json").exists()
    assert train_tiny(run, "--resume_from", "latest") == 0
    assert (run / "test_results.json").is_file()
    assert evaluated(run) == [10, 20, 25]
    results = read_json(run / "train_results.json")
    assert results["train_steps"] == LAST and results["train_hours"] > 0


def test_the_score_of_the_test_split_is_broken_off(train_tiny, tmp_path, monkeypatch):
    """After training: 75 at once; the next start makes the scores."""

    class SignalInTest(TrainerCallback):
        def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
            if trainers[0].job.test_dataset is eval_dataloader.dataset:
                signal.raise_signal(signal.SIGTERM)

    trainers = []
    original = trainer_module.GPT2HFTrainer.__init__

    def with_callback(self, *args, **kwargs):
        trainers.insert(0, self)
        original(self, *args, callbacks=[SignalInTest()], **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.GPT2HFTrainer, "__init__", with_callback)
        with pytest.raises(SystemExit) as exit_:
            train_tiny(tmp_path / "run")
    assert exit_.value.code == 75
    assert train_tiny(tmp_path / "run", "--resume_from", "latest") == 0
    assert (tmp_path / "run" / "test_results.json").is_file()
