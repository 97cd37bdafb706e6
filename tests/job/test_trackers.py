"""Trackers beside TensorBoard: what one is sent, under which name, and one that cannot begin."""

import inspect
import json
import shutil
import sqlite3

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from ..conftest import read_json
from ..foreign_names import contents
from ..runs import history


def test_trackio_gets_the_run(train_tiny, tmp_path, monkeypatch):
    """Without a network: each loss and perplexity of the history and the test split's, under the run's name."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="trackio is no part of gpt2_hf")
    from trackio import sqlite_storage, utils

    for module in (utils, sqlite_storage):  # which may have been imported before
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    options = ("--report_to", "trackio", "--project", "tiny", "--max_steps", "10", "--eval_every", "5")
    assert train_tiny(tmp_path / "first", *options) == 0
    trackio.finish()  # what the score of the test split has opened again
    with sqlite3.connect(tmp_path / "trackio" / "tiny.db") as database:
        rows = database.execute("SELECT run_name, metrics FROM metrics ORDER BY id").fetchall()
    assert {name for name, _ in rows} == {"first"}
    sent = [json.loads(metrics) for _, metrics in rows]
    history = read_json(tmp_path / "first" / "trainer_state.json")["log_history"]
    for tag, name in (("train/loss", "loss"), ("train/perplexity", "perplexity"), ("eval/loss", "eval_loss")):
        received = [(metrics["train/global_step"], metrics[tag]) for metrics in sent if tag in metrics]
        assert received == [(entry["step"], entry[name]) for entry in history if name in entry] != []
    results = read_json(tmp_path / "first" / "all_results.json")
    assert [metrics["test/loss"] for metrics in sent if "test/loss" in metrics] == [results["test_loss"]]
    assert read_json(tmp_path / "first" / "resolved_config.json")["run_name"] is None


@pytest.mark.parametrize("name", ["comet_ml", "mlflow", "trackio", "wandb"])
def test_transformers_trackers_begin_as_those_below(name):
    """In `setup`, once: by these two names a run knows that one has not begun, and lets it begin early."""
    source = inspect.getsource(integration_utils.INTEGRATION_TO_CALLBACK[name])
    assert "self._initialized = False" in source and "def setup(self" in source


class Unreachable(TrainerCallback):
    """A tracker that begins as transformers' own do, and has no login."""

    _initialized = False

    def setup(self, args, state, model):
        raise OSError(f"No API key for {args.run_name}.\nUse `wandb login` to log in.")

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if not self._initialized:
            self.setup(args, state, model)


class Failing(Unreachable):
    """A tracker whose server answers no more after some steps."""

    def setup(self, args, state, model):
        self._initialized = True

    def on_log(self, args, state, control, **kwargs):
        if state.global_step >= 15:
            raise OSError("503 Service Unavailable\nfor url: /log")

    on_train_end = on_save = on_log


def test_a_tracker_that_fails_later_ends_no_run(train_tiny, finished_run, tmp_path, monkeypatch, capsys):
    """Not at a log, a save, the end or the test score: a warning once, and the same results."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Failing)
    run = tmp_path / "run"
    assert train_tiny(run, "--report_to", "wandb") == 0
    out = capsys.readouterr().out
    assert (
        out.count("warning: --report_to wandb: 503 Service Unavailable; the run goes on")
        == out.count("503 Service")
        == 1
    )
    assert history(run) == history(finished_run)
    scores = [read_json(folder / "test_results.json")["test_loss"] for folder in (run, finished_run)]
    assert scores[0] == scores[1]


def test_a_tracker_that_cannot_begin_is_one_line(train_tiny, finished_run, tmp_path, monkeypatch, capsys):
    """Before anything is written: a new folder is not made, and in one that is resumed no byte changes."""
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Unreachable)
    shutil.copytree(finished_run, tmp_path / "old")
    before = contents(tmp_path / "old")
    for folder, options in (("new", ()), ("old", ("--resume_from", "latest", "--max_epochs", "2"))):
        assert train_tiny(tmp_path / folder, "--report_to", "wandb", *options) == 2
        err = capsys.readouterr().err
        message = (
            f"error: --report_to wandb: No API key for {folder}. Use `wandb login` to log in; log in or set it up"
        )
        assert err.startswith(message) and err.count("\n") == 1 and "--report_to tensorboard" in err
    assert not (tmp_path / "new").exists() and contents(tmp_path / "old") == before
