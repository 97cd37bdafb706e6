"""--early_stopping_patience as an option of the job."""

from ..conftest import read_json
from ..runs import history, train_until_signal


def test_the_job_stops_early_and_keeps_the_best_model(train_tiny, tmp_path, capsys):
    """At a rate that makes it worse the run ends with its best model, says why, and has nothing left when resumed."""
    run = tmp_path / "run"
    options = ("--learning_rate", "0.3", "--early_stopping_patience", "2", "--lr_scheduler_type", "constant")
    options += ("--eval_every", "2", "--max_epochs", "4", "--gradient_clip", "0", "--sample_tokens", "0")
    assert train_tiny(run, *options) == 0
    printed = capsys.readouterr().out
    assert "2 evaluations in a row were no better (--early_stopping_patience)" in printed
    state = read_json(run / "trainer_state.json")
    last, best = state["global_step"], state["best_global_step"]
    assert best < last < state["max_steps"] and (run / f"checkpoint-{last}").is_dir()
    assert read_json(run / "checkpoint_names.json")["best_model"] == f"checkpoint-{best}"
    assert "Not finished" not in (run / "best_model" / "README.md").read_text(encoding="utf-8")
    assert train_tiny(run, *options, "--resume_from", "latest") == 0
    printed = capsys.readouterr().out
    assert f"checkpoint-{last} was stopped early (--early_stopping_patience 2); nothing is left to train" in printed
    # interrupted at the evaluation that ends it, it makes no step more
    parts = tmp_path / "parts"
    assert train_until_signal(parts, last + 1, train_tiny, *options, event="on_prediction_step") == 75
    assert train_tiny(parts, *options, "--resume_from", "latest") == 0
    assert "2 evaluations in a row were no better (--early_stopping_patience)" in capsys.readouterr().out
    assert history(parts) == history(run) == history(parts / f"checkpoint-{last}")
    results = read_json(parts / "train_results.json")
    assert results["stopped_early"] and "train_loss" not in results  # no step was made that had one
    assert train_tiny(run, *options, "--resume_from", "latest", "--early_stopping_patience", "3") == 0
    assert read_json(run / "trainer_state.json")["global_step"] > last


def test_it_goes_with_a_time_budget(train_tiny, tmp_path, capsys):
    """Whichever comes first: the budget ends the run with its named checkpoint, and the resumed run stops early."""
    run = tmp_path / "run"
    options = ("--learning_rate", "0.3", "--early_stopping_patience", "2", "--lr_scheduler_type", "constant")
    options += ("--eval_every", "2", "--max_epochs", "4", "--gradient_clip", "0", "--sample_tokens", "0")
    assert train_tiny(run, *options, "--max_training_hours", "0.0001") == 0
    assert "time budget of 0.0001 h reached at step 1" in capsys.readouterr().out
    assert read_json(run / "checkpoint_names.json")["checkpoint_time_limit"] == "checkpoint-1"
    assert train_tiny(run, *options, "--max_training_hours", "1", "--resume_from", "latest") == 0
    printed = capsys.readouterr().out
    assert (
        "2 evaluations in a row were no better (--early_stopping_patience)" in printed and "budget of" not in printed
    )
    assert (
        1 < read_json(run / "trainer_state.json")["global_step"] < read_json(run / "trainer_state.json")["max_steps"]
    )
