"""The main job from end to end: what it leaves, how it goes on, how it ends."""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt2_hf import train
from gpt2_hf.__main__ import main
from gpt2_hf.checkpoints import folders, manifest
from gpt2_hf.checkpoints.run_lock import RunLock
from gpt2_hf.commands.report import read_run
from gpt2_hf.job import main_job, preparation
from gpt2_hf.job.results import report_seconds
from gpt2_hf.options.arguments import DataArguments, ModelArguments
from gpt2_hf.options.parsing import parse
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.runtime.files import write_json
from gpt2_hf.runtime.stopwatch import Stopwatch
from gpt2_hf.trainer.callbacks import StopCallback
from gpt2_hf.trainer.gpt2_trainer import GPT2HFTrainer

from ..conftest import REPOSITORY, needs_posix_signals, read_json
from ..faults import harness
from ..foreign_names import contents
from ..runs import assert_same_state, final_state, history, train_until_signal, untimed
from ..tiny_models import make_stock
from .fake_hub import Hub

# ---- what a run leaves ----


def test_a_run_leaves_what_the_design_lists(finished_run):
    """Checkpoints with manifests, best model, curves, results, card, and names."""
    for name in (
        "best_model/model.safetensors",
        "runs",
        "resolved_config.json",
        "train_results.json",
        "eval_results.json",
        "test_results.json",
        "all_results.json",
        "trainer_state.json",
        "README.md",
        "curves.png",
    ):
        assert (finished_run / name).exists(), name
    for folder in folders.list_checkpoints(finished_run):
        assert manifest.damage(folder) is None
    names = folders.read_names(finished_run)
    assert {"best_model", "checkpoint_epoch_1"} <= names.keys()


def test_no_pickle_is_written(finished_run):
    """Nothing in the folder is a pickle or a torch archive."""
    endings = {path.suffix for path in finished_run.rglob("*") if path.is_file()}
    assert not endings & {".bin", ".pt", ".pth", ".pkl"}


def test_best_model_loads_with_the_auto_classes(finished_run):
    """best_model is from_pretrained-ready, tokenizer included, and as good as its results say."""
    model = AutoModelForCausalLM.from_pretrained(finished_run / "best_model")
    tokenizer = AutoTokenizer.from_pretrained(finished_run / "best_model")
    ids = tokenizer("The statement is", return_tensors="pt").input_ids
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))


def test_tensorboard_has_the_promised_tags(finished_run):
    """Loss, perplexity and learning rate at each log, validation loss and perplexity at each evaluation."""
    events = EventAccumulator(str(finished_run / "runs" / "run")).Reload()
    steps = {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in ("train/loss", "train/perplexity", "train/learning_rate"):
        assert steps[tag] == [5, 10, 15, 20, 25]
    for tag in ("eval/loss", "eval/perplexity", "speed/evaluation_seconds"):
        assert steps[tag] == [10, 20, 25]
    assert steps["speed/memory_gib"] == [5, 10, 15, 20, 25] and steps["speed/tokens_per_second"] == [10, 15, 20, 25]
    assert {tag.split("/")[0] for tag in steps} == {"train", "eval", "test", "speed", "curves"}
    assert not any("train_" in tag or "_per_second" in tag.replace("tokens_per_second", "") for tag in steps)


def test_tensorboard_has_samples_and_the_config(finished_run):
    """A text at each evaluation, the resolved config, and training and validation in one chart."""
    events = EventAccumulator(str(finished_run / "runs" / "run")).Reload()
    texts = {
        tag: [(event.step, event.tensor_proto.string_val[0].decode(errors="replace")) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    assert [step for step, _ in texts["sample/text_summary"]] == [10, 20, 25]
    ((_, config),) = texts["resolved_config/text_summary"]
    assert '"d_model": 32' in config and all(line.startswith("    ") for line in config.splitlines())
    assert "custom_scalars__config__" in texts


def test_a_run_keeps_one_curve_under_a_new_name(train_tiny, tmp_path, capsys):
    """Resumed with another --run_name, and in the layout of versions without names; an overwritten run leaves none."""
    run, runs = tmp_path / "run", tmp_path / "run" / "runs"
    assert train_tiny(run, "--max_steps", "10", "--warmup_steps", "1") == 0
    for path in (runs / "run").glob("*.gpt2_hf"):
        path.rename(runs / path.name)
    assert train_tiny(run, "--resume_from", "latest", "--run_name", "second: d 32") == 0
    out = capsys.readouterr().out
    assert "run_name None → second: d 32" in out and f"tensorboard --logdir {runs}" in out
    assert [path.name for path in runs.iterdir()] == ["second- d 32"]
    for part, tag, steps in (("", "train/loss", [5, 10, 15, 20, 25]), ("validation", "curves/loss", [10, 20, 25])):
        events = EventAccumulator(str(runs / "second- d 32" / part)).Reload()
        assert [event.step for event in events.Scalars(tag)] == steps
    assert train_tiny(run, "--overwrite_output_dir", "--max_steps", "2", "--report_to", "none") == 0
    assert not runs.exists() and "tensorboard" not in capsys.readouterr().out


def test_samples_can_be_left_out(train_tiny, tmp_path, capsys):
    """--sample_tokens 0 writes none; by default each evaluation shows one."""
    assert train_tiny(tmp_path / "run", "--sample_tokens", "0", "--max_steps", "4") == 0
    assert "\nsample: " not in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "run" / "runs" / "run")).Reload()
    assert "sample/text_summary" not in events.Tags()["tensors"]
    assert train_tiny(tmp_path / "other", "--max_steps", "4") == 0
    assert capsys.readouterr().out.count("\nsample: ") == 1


def test_a_share_that_only_a_config_states_acts_where_it_can(train_tiny, tiny_options, tmp_path, capsys):
    """Beside a validation file it is passed over; typed it is refused."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**read_json(Path(tiny_options[-1])), "validation_split_percentage": 1}))
    options = [*tiny_options[:-1], str(config), "--max_steps", "1", "--checkpoint_dir", str(tmp_path / "run")]
    assert main(["train", *options]) == 0
    assert read_json(tmp_path / "run" / "resolved_config.json")["validation_split_percentage"] == 5
    assert train_tiny(tmp_path / "other", "--validation_split_percentage", "1") == 2
    assert "--validation_split_percentage has no effect: there is a validation split" in capsys.readouterr().err


def test_the_test_split_can_be_left_alone(tiny_options, tmp_path, capsys):
    """--do_predict false neither reads nor scores it, for a search that chooses on the validation split."""
    options = ("--do_predict", "false", "--max_steps", "4")
    words = tiny_options.copy()
    del words[words.index("--test_file") : words.index("--test_file") + 2]
    assert main(["train", *words, *options, "--checkpoint_dir", str(tmp_path / "run")]) == 0
    assert "\ntest: " not in capsys.readouterr().out
    assert not (tmp_path / "run" / "test_results.json").exists()
    assert "eval_loss" in read_json(tmp_path / "run" / "all_results.json")


def test_nothing_is_evaluated_or_saved_twice(finished_run):
    """Every ten steps and at the end of the epoch, each once."""
    evaluated = [entry["step"] for entry in history(finished_run) if "eval_loss" in entry]
    assert evaluated == [10, 20, 25]
    assert [folders.step_of(path) for path in folders.list_checkpoints(finished_run)] == [10, 20, 25]


def test_loss_falls_and_results_agree(finished_run):
    """The run learns; the results are those of its best evaluation."""
    losses = [entry["loss"] for entry in history(finished_run) if "loss" in entry]
    assert losses[-1] < losses[0] - 0.5
    results = read_json(finished_run / "all_results.json")
    assert results["eval_loss"] == min(e["eval_loss"] for e in history(finished_run) if "eval_loss" in e)
    assert results["test_tokens"] > 0


def test_the_written_config_runs_the_same_thing(finished_run, tmp_path):
    """--config resolved_config.json repeats the run exactly."""
    again = tmp_path / "again"
    assert main(["train", "--config", str(finished_run / "resolved_config.json"), "--checkpoint_dir", str(again)]) == 0
    assert history(again) == history(finished_run)
    assert_same_state(final_state(again, 25), final_state(finished_run, 25))


def test_the_written_config_does_not_depend_on_the_machine(tiny_options, tmp_path):
    """That there was no accelerator is not written down as a wish; nothing to report to can be read again."""
    words = [word for word in tiny_options if word != "--use_cpu"]
    options = ["--max_steps", "2", "--report_to", "none", "--checkpoint_dir", str(tmp_path / "run")]
    assert main(["train", *words, *options]) == 0
    written = tmp_path / "run" / "resolved_config.json"
    assert "use_cpu" not in read_json(written)
    assert main(["train", "--config", str(written), "--checkpoint_dir", str(tmp_path / "again")]) == 0
    assert not (tmp_path / "again" / "runs").exists()


# ---- resuming ----


@pytest.fixture(scope="module")
def uninterrupted(request, tmp_path_factory, tiny_options):
    """Options of a run of two epochs, and the folder of one that was left alone; tests only read it."""
    options = ("--sequence_mode", *request.param.split(), "--max_epochs", "2", "--max_train_samples", "100")
    whole = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert main(["train", *tiny_options, *options, "--checkpoint_dir", str(whole)]) == 0
    return options, whole


@pytest.mark.parametrize(
    ("uninterrupted", "stop"),
    [
        *[("blocks --shift_blocks", stop) for stop in (3, 10, 13)],
        *[("padded", 3), ("padding_free", 13)],
    ],
    indirect=["uninterrupted"],
)
def test_interrupted_and_resumed_is_uninterrupted(train_tiny, tmp_path, uninterrupted, stop):
    """Stopped in the middle of an epoch, at an evaluation or at an epoch's end: the same bits in the end."""
    (options, whole), parts = uninterrupted, tmp_path / "parts"
    # The schedule depends on max_epochs, so the first part is stopped by a signal and not by its length.
    assert train_until_signal(parts, stop, train_tiny, *options) == 75
    assert folders.step_of(folders.list_checkpoints(parts)[-1]) == stop
    assert train_tiny(parts, *options, "--resume_from", "latest") == 0
    last = folders.step_of(folders.list_checkpoints(whole)[-1])
    assert_same_state(final_state(parts, last), final_state(whole, last))
    assert history(parts) == history(whole)
    assert untimed(read_json(parts / "eval_results.json")) == untimed(read_json(whole / "eval_results.json"))


def test_interrupted_evaluations_are_made_up_for(finished_run, train_tiny, tmp_path):
    """A signal in the middle of an evaluation breaks it off; the resumed run evaluates first, and nothing is lost.

    Interrupted at the next one, it has saved what was trained in between.
    """
    whole, parts = finished_run, tmp_path / "parts"
    assert train_until_signal(parts, 11, train_tiny, event="on_prediction_step") == 75
    assert not any("eval_loss" in entry for entry in history(parts / "checkpoint-10"))
    resumed = ("--resume_from", "latest")
    assert train_until_signal(parts, 21, train_tiny, *resumed, event="on_prediction_step") == 75
    assert folders.list_checkpoints(parts)[-1].name == "checkpoint-20"
    assert [entry["step"] for entry in history(parts / "checkpoint-20") if "eval_loss" in entry] == [10]
    assert train_tiny(parts, *resumed) == 0
    assert history(parts) == history(whole)
    assert_same_state(final_state(parts, 25), final_state(whole, 25))
    assert folders.read_names(parts) == folders.read_names(whole)


def test_resume_by_every_kind_of_name(train_tiny, finished_run, tmp_path, capsys):
    """A finished run goes on when it is given more epochs; latest, names and a path each mean a checkpoint."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    kept = ("--save_total_limit", "none")
    assert train_tiny(run, *kept, "--max_epochs", "2", "--resume_from", "latest") == 0
    assert "changed since the checkpoint: num_train_epochs 1.0 → 2.0" in capsys.readouterr().out
    references = {"latest": 50, "checkpoint_epoch_1": 25, str(run / "checkpoint-20"): 20, "checkpoint_step_10": 10}
    for reference, step in references.items():  # what is later than one is set aside
        assert train_tiny(run, *kept, "--max_steps", str(step + 1), "--resume_from", reference) == 0
        assert f"resuming from {run / folders.checkpoint_folder(step)}\n" in capsys.readouterr().out
        assert folders.step_of(folders.list_checkpoints(run)[-1]) == step + 1


def test_resuming_a_finished_run_trains_nothing(train_tiny, finished_run, tmp_path, capsys):
    """A finished run given to latest says so, repeats its results, and keeps its record, whatever the options."""
    shutil.copytree(finished_run, tmp_path / "run")
    record = read_json(finished_run / "resolved_config.json")
    options = ("--learning_rate", "1e-5", "--max_eval_samples", "3")
    assert train_tiny(tmp_path / "run", "--resume_from", "latest", *options) == 0
    out = capsys.readouterr().out
    assert "nothing is left to train" in out and "restarts" not in out
    best = [read_json(run / "trainer_state.json")["best_global_step"] for run in (tmp_path / "run", finished_run)]
    assert best[0] == best[1] is not None
    for name in ("eval_results.json", "train_results.json"):
        assert read_json(tmp_path / "run" / name) == read_json(finished_run / name)
    assert read_json(tmp_path / "run" / "resolved_config.json") == {**record, "output_dir": str(tmp_path / "run")}


def test_a_test_text_that_is_scored_later_is_in_the_record(train_tiny, finished_run, tmp_path, corpus_folder):
    """With its fingerprint; the rest is as the run was trained."""
    run, text = tmp_path / "run", tmp_path / "later.txt"
    shutil.copytree(finished_run, run)
    shutil.copy(corpus_folder / "validation.txt", text)
    assert train_tiny(run, "--resume_from", "latest", "--test_file", str(text), "--weight_decay", "0.5") == 0
    was, becomes = (read_json(folder / "resolved_config.json") for folder in (finished_run, run))
    assert becomes["test_file"] == str(text) and becomes["weight_decay"] == was["weight_decay"]
    texts = [record["provenance"].pop("data") for record in (was, becomes)]
    assert texts[0].pop("test") != texts[1].pop("test") and texts[0] == texts[1]
    assert was["provenance"] == becomes["provenance"]


def test_going_back_with_nothing_left_to_train_forgets_the_other_end(train_tiny, finished_run, tmp_path):
    """Results and card are those of the step that it went back to."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert train_tiny(run, "--resume_from", "checkpoint-10", "--max_steps", "10") == 0
    results = read_json(run / "train_results.json")
    assert results["train_steps"] == 10 and "train_loss" not in results
    assert read_json(run / "eval_results.json")["step"] == 10


def test_a_finished_checkpoint_has_its_own_scores_elsewhere(train_tiny, finished_run, tmp_path):
    """In a folder without a best model nothing is trained, and the weights of the checkpoint are those that count."""
    run = tmp_path / "run"
    assert train_tiny(run, "--resume_from", str(finished_run / "checkpoint-25"), "--weight_decay", "0.5") == 0
    assert read_json(run / "resolved_config.json")["weight_decay"] == 0.01
    expected = read_json(finished_run / "test_results.json")["test_loss"]
    assert read_json(run / "test_results.json")["test_loss"] == pytest.approx(expected, abs=1e-5)


def test_a_signal_where_nothing_is_left_to_train_is_heeded(train_tiny, finished_run, tmp_path, monkeypatch):
    """While the last publication is made up for: the next invocation scores and reports."""
    shutil.copytree(finished_run, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(GPT2HFTrainer, "complete_publication", lambda *args: signal.raise_signal(signal.SIGTERM))
        assert train_tiny(tmp_path / "run", "--resume_from", "latest") == 75


@pytest.mark.parametrize("begun", [False, True])
def test_a_signal_before_the_first_step_is_the_end(train_tiny, finished_run, tmp_path, monkeypatch, begun):
    """Until weights and optimizer are there nothing is gained by a step, which the notice may be too short for."""
    run = tmp_path / "run"
    if begun:
        shutil.copytree(finished_run, run)
    before = sorted(run.glob("checkpoint-*"))
    monkeypatch.setattr(GPT2HFTrainer, "_init_training_state", lambda *args: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit, match="75"):
        train_tiny(run, "--max_epochs", "2", *(["--resume_from", "latest"] if begun else []))
    assert sorted(run.glob("checkpoint-*")) == before and (begun or not list(run.iterdir()))


def test_a_signal_in_the_evaluation_on_start_leaves_no_run(train_tiny, tmp_path, capsys):
    """A step after it would be saved without that evaluation, which none can make up for: the weights have changed."""
    options = ("--eval_on_start", "--max_steps", "10", "--resume_from", "latest")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_tiny(whole, *options) == 0
    with pytest.raises(SystemExit, match="75"):
        train_until_signal(parts, 1, train_tiny, *options, event="on_prediction_step")
    assert "stopped before the first step; nothing was saved" in capsys.readouterr().out and not list(parts.iterdir())
    assert train_tiny(parts, *options) == 0
    assert history(parts) == history(whole)


def test_only_a_new_run_is_evaluated_on_start(train_tiny, tmp_path):
    """--eval_on_start: one more evaluation at each resume would use up --early_stopping_patience."""
    run = tmp_path / "run"
    assert train_tiny(run, "--eval_on_start", "--max_steps", "10") == 0
    assert [entry["step"] for entry in history(run) if "eval_loss" in entry] == [0, 10]
    options = ("--eval_on_start", "--early_stopping_patience", "1", "--resume_from", "latest")
    assert train_tiny(run, *options, "--max_steps", "20", "--lr_scheduler_type", "constant") == 0
    assert [entry["step"] for entry in history(run) if "eval_loss" in entry] == [0, 10, 20]


def test_a_run_that_goes_on_forgets_its_earlier_end(train_tiny, finished_run, tmp_path):
    """Stopped again before its next end, it has no results of the first one; its checkpoint tells how far it is."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert train_until_signal(run, 30, train_tiny, "--max_epochs", "2", "--resume_from", "latest") == 75
    assert not list(run.glob("*_results.json"))
    record = read_run(run)
    assert record.history[-1]["step"] == 30 and "test_loss" not in record.results and "eval_loss" in record.results


def test_another_validation_text_has_another_best_model(train_tiny, finished_run, tmp_path, capsys):
    """Losses of other samples are not compared with those before; the best one since is what is kept and shown."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    options = ("--max_steps", "31", "--resume_from", "latest", "--max_eval_samples", "3", "--learning_rate", "1e-9")
    assert train_tiny(run, *options, "--lr_scheduler_type", "constant") == 0
    assert "best-model tracking restarts" in capsys.readouterr().out
    best = min((entry for entry in history(run) if entry.get("eval_tokens", 0) and entry["step"] > 25), key=_loss)
    assert read_json(run / "eval_results.json")["eval_loss"] == best["eval_loss"]
    assert folders.read_names(run)["best_model"] == f"checkpoint-{best['step']}"


def _loss(entry):
    return entry["eval_loss"]


@pytest.mark.parametrize("found", ["another", "nothing", "damaged", "refused at first"])
def test_a_run_that_goes_back_has_the_best_model_of_its_branch(train_tiny, finished_run, tmp_path, monkeypatch, found):
    """Step 20, where step 10 was the best: it is published again, whatever the folder of the best model holds."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    if found == "nothing":
        shutil.rmtree(run / "best_model")
        folders.add_names(run, "checkpoint-10", ["best_model"])
    if found == "damaged":
        (run / "best_model" / "model.safetensors").unlink()
        folders.add_names(run, "checkpoint-10", ["best_model"])
    state = read_json(run / "checkpoint-20" / "trainer_state.json")
    state |= {"best_global_step": 10, "best_metric": 0.1}  # which nothing beats
    write_json(run / "checkpoint-20" / "trainer_state.json", state)
    manifest.write(run / "checkpoint-20")
    if found == "refused at first":

        def refuse(*given):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(folders, "publish_best_model", refuse)
            assert train_tiny(run, "--resume_from", "checkpoint-20") == 2
    assert train_tiny(run, "--resume_from", "checkpoint-20") == 0
    assert folders.read_names(run)["best_model"] == "checkpoint-10"
    published, best = (load_file(run / name / "model.safetensors") for name in ("best_model", "checkpoint-10"))
    assert all(torch.equal(published[name], weight) for name, weight in best.items())


def test_a_forgotten_best_model_is_not_the_model_of_the_run(train_tiny, finished_run, tmp_path, capsys):
    """No evaluation decides any more: results, card and curves are those of the last step, and not put beside it."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = contents(run / "best_model")
    assert train_tiny(run, "--max_steps", "26", "--resume_from", "latest", "--metric_for_best_model", "none") == 0
    printed = capsys.readouterr().out
    assert f"model: {run / 'checkpoint-26'}" in printed and "last evaluation: step 26" in printed
    assert 'from_pretrained("checkpoint-26")' in (run / "README.md").read_text(encoding="utf-8")
    assert read_json(run / "eval_results.json")["step"] == 26 and contents(run / "best_model") == before


@pytest.mark.parametrize("is_noted", [True, False], ids=["now", "by an earlier version"])
def test_a_best_model_outlives_its_checkpoint(train_tiny, finished_run, tmp_path, capsys, is_noted):
    """Deleted to save room: a worse model does not take its place, until it is gone as well, which is said."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    state = read_json(run / "checkpoint-25" / "trainer_state.json")
    state |= {"best_global_step": 10, "best_metric": 0.1}  # which nothing beats
    write_json(run / "checkpoint-25" / "trainer_state.json", state)
    manifest.write(run / "checkpoint-25")
    folders.add_names(run, "checkpoint-10", ["best_model"])
    folders.publish_best_model(run / "checkpoint-10", run)
    if not is_noted:
        manifest.write(run / "best_model")
    shutil.rmtree(run / "checkpoint-10")
    before = (run / "best_model" / "model.safetensors").read_bytes()
    for steps in ("26", "27"):
        assert train_tiny(run, "--max_steps", steps, "--resume_from", "latest") == 0
        assert (run / "best_model" / "model.safetensors").read_bytes() == before
        assert read_json(run / "trainer_state.json")["best_global_step"] == 10
    assert "best-model tracking restarts" not in capsys.readouterr().out
    shutil.rmtree(run / "best_model")
    assert train_tiny(run, "--max_steps", "28", "--resume_from", "latest") == 0
    assert "best-model tracking restarts" in capsys.readouterr().out
    assert read_json(run / "trainer_state.json")["best_global_step"] > 25


def test_latest_in_an_empty_folder_starts_fresh(train_tiny, tmp_path, capsys):
    """One command line serves the first job and all that follow."""
    assert train_tiny(tmp_path / "run", "--max_steps", "2", "--resume_from", "latest") == 0
    assert "starting fresh" in capsys.readouterr().out


def test_a_damaged_checkpoint_is_passed_over(train_tiny, finished_run, tmp_path, capsys):
    """The newest checkpoint has a flipped bit: the one before is taken, with a line."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    weights = run / "checkpoint-25" / "optimizer.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert train_tiny(run, "--resume_from", "latest") == 0
    out = capsys.readouterr().out
    assert "checkpoint-25 is damaged (optimizer.safetensors" in out and "resuming from" in out
    assert_same_state(final_state(run, 25), final_state(finished_run, 25))


def test_a_new_learning_rate_takes_effect_on_resume(train_tiny, finished_run, tmp_path):
    """The Trainer would restore the old one from the optimizer's state without a word."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    options = ("--max_steps", "30", "--resume_from", "latest", "--weight_decay", "0.5")
    assert train_tiny(run, *options, "--learning_rate", "1e-5", "--lr_scheduler_type", "constant") == 0
    rates = {entry["learning_rate"] for entry in history(run) if entry["step"] > 25 and "learning_rate" in entry}
    assert rates == {1e-5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch_size", "4"), "was trained with 8 samples per step"),
        (("--num_layers", "3"), "has n_layer=2, this run asks for 3"),
        (("--max_train_samples", "50"), "--max_train_samples was 200 and cannot become 50"),
        (("--seed", "7"), "--seed was 42 and cannot become 7"),
        (("--lr_scheduler_type", "reduce_lr_on_plateau"), "with a schedule that follows the evaluations"),
        (("--resume_from", "checkpoint_epoch_9"), "there is no checkpoint 'checkpoint_epoch_9'"),
    ],
)
def test_what_cannot_change_on_resume_is_refused(train_tiny, finished_run, tmp_path, capsys, options, message):
    """Changes that would silently train on other samples or lose the model are errors."""
    shutil.copytree(finished_run, tmp_path / "run")
    reference = () if "--resume_from" in options else ("--resume_from", "latest")
    assert train_tiny(tmp_path / "run", *reference, *options) == 2
    assert message in capsys.readouterr().err


def test_a_run_is_never_overwritten_unasked(train_tiny, finished_run, tmp_path, capsys):
    """A folder that holds a run is refused, its lock left alone, and replaced only when that is asked for."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    lock = RunLock(run)
    lock.acquire()
    dead = {**json.loads(lock.path.read_text()), "pid": 2**22 + 1, "started": 1.0}
    lock.release()
    lock.path.write_text(json.dumps(dead))
    before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
    assert train_tiny(run) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before
    assert train_tiny(run, "--max_steps", "2", "--overwrite_output_dir") == 0
    assert [path.name for path in folders.list_checkpoints(run)] == ["checkpoint-2"]


def test_the_timeout_is_for_training(train_tiny, tmp_path, monkeypatch):
    """Before and after it one process may read, write or publish for long, while the others wait."""
    calls = []
    monkeypatch.setattr(main_job.distributed, "set_timeout", calls.append)
    for name in ("build", "clear_folder", "run_training", "finish"):
        stage = getattr(main_job, name)
        monkeypatch.setattr(main_job, name, lambda *given, n=name, stage=stage: calls.append(n) or stage(*given))
    assert train_tiny(tmp_path / "run", "--max_steps", "1", "--ddp_timeout", "600") == 0
    day = 24 * 3600
    assert calls == [600, day, "build", "clear_folder", 600, "run_training", day, "finish"]


# ---- how a run ends ----


def test_a_run_that_came_and_went_in_the_meantime_is_not_overwritten(
    train_tiny, finished_run, tmp_path, capsys, monkeypatch
):
    """The folder was not there at first, and holds a finished run when this one is ready to train."""
    run = tmp_path / "run"

    def slowly(*args, **kwargs):
        built = build(*args, **kwargs)
        shutil.copytree(finished_run, run)
        return built

    build = main_job.build
    monkeypatch.setattr(main_job, "build", slowly)
    assert train_tiny(run) == 2
    assert "another run began" in capsys.readouterr().err
    assert folders.list_checkpoints(run)[-1].name == "checkpoint-25" and not (run / "run.lock").exists()
    assert read_json(run / "eval_results.json") == read_json(finished_run / "eval_results.json")


def test_a_run_by_epochs_that_ends_within_one_keeps_its_end(train_tiny, tmp_path):
    """Evaluated and saved at its last step, though no epoch ends there."""
    strategies = ("--save_strategy", "epoch", "--eval_strategy", "epoch")
    assert train_tiny(tmp_path / "run", *strategies, "--max_epochs", "1.2") == 0
    assert [path.name for path in folders.list_checkpoints(tmp_path / "run")] == ["checkpoint-25", "checkpoint-30"]
    assert [entry["step"] for entry in history(tmp_path / "run") if "eval_loss" in entry] == [25, 30]


@pytest.mark.parametrize("part", ["data", "sizing"])
def test_how_long_text_and_size_took_says_nothing_of_the_end(part):
    """A large corpus that was tokenised for an hour takes no hour from training for the report."""
    watch = Stopwatch(age_at_start=3610.0, total={part: 3600.0})
    assert 7.0 < report_seconds(SimpleNamespace(watch=watch)) < 60.0


def test_the_time_budget_ends_in_a_named_checkpoint(train_tiny, tmp_path, capsys):
    """A budget that is used up stops training after a step, with a named checkpoint, and says what was left out."""
    run = tmp_path / "run"
    # The test process is older than any budget of seconds, and its age counts.
    assert train_tiny(run, "--max_training_hours", "0.0001") == 0
    out = capsys.readouterr().out
    assert "time budget of 0.0001 h reached at step 1" in out and "no time was left for an evaluation" in out
    latest = run / "latest"
    command = f"evaluate --model_path {latest} --split validation"
    assert f"for an evaluation: --resume_from latest goes on, or gpt2-hf {command}\n" in out
    names = folders.read_names(run)
    assert names["checkpoint_time_limit"] == "checkpoint-1"
    assert not (run / "eval_results.json").exists()
    assert main(command.split()) == 0
    assert "validation" in capsys.readouterr().out
    assert train_tiny(run, "--resume_from", "checkpoint_time_limit", "--max_steps", "3") == 0


def test_a_schedule_by_time_that_has_ended_is_not_resumed(train_tiny, tmp_path, capsys):
    """With more epochs, in any folder: one that its steps ended, and one that the clock did, by an earlier version."""
    run, options = tmp_path / "run", ("--schedule_by_time", "--max_training_hours", "1")
    assert train_tiny(run, *options) == 0
    state = read_json(run / "checkpoint-25" / "trainer_state.json")
    kept = state["stateful_callbacks"]["TimeBudgetCallback"]["attributes"]
    assert kept["schedule_progress"] == 1.0
    for elsewhere in (tmp_path / "a", tmp_path / "b"):
        for folder, reference in ((run, "latest"), (elsewhere, str(run / "latest"))):
            assert train_tiny(folder, *options, "--max_epochs", "2", "--resume_from", reference) == 0
            assert "has reached the end of its wall-clock-based schedule" in capsys.readouterr().out
        kept["schedule_progress"] = 0.95
        kept.pop("expired", None)
        write_json(run / "checkpoint-25" / "trainer_state.json", state)
        manifest.write(run / "checkpoint-25")
        folders.add_names(run, "checkpoint-25", ["checkpoint_time_limit"])


def test_a_linear_schedule_by_time(train_tiny, tmp_path):
    """With time left over it is that of the steps: each takes as much off the learning rate, down to 0."""
    options = ("--schedule_by_time", "--max_training_hours", "1", "--lr_scheduler_type", "linear")
    assert train_tiny(tmp_path / "run", *options, "--warmup_steps", "5", "--logging_steps", "1") == 0
    history = read_json(tmp_path / "run" / "trainer_state.json")["log_history"]
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    expected = [rates[5] * (25 - step) / 20 for step in range(5, 25)]
    assert rates[5:25] == pytest.approx(expected)


def test_the_commands_for_an_evaluation_that_was_left_out(tmp_path):
    """Only where there is one to make up for, and something saved to go on from, or to evaluate."""
    run = SimpleNamespace(args=SimpleNamespace(save_strategy="steps"), output_dir=tmp_path)
    budget = SimpleNamespace(skipped_evaluation=True, expired=False, schedule=None)
    in_quotes = SimpleNamespace(args=run.args, output_dir=tmp_path / "my book")
    assert shlex.split(main_job.way_to_evaluate(in_quotes, budget))[-3] == str(tmp_path / "my book" / "latest")
    command = f"gpt2-hf evaluate --model_path {tmp_path / 'latest'} --split validation"
    assert main_job.way_to_evaluate(run, budget) == f"for an evaluation: {command}"
    budget.expired = True
    assert main_job.way_to_evaluate(run, budget) == f"for an evaluation: --resume_from latest goes on, or {command}"
    run.args.save_strategy = "no"
    assert main_job.way_to_evaluate(run, budget) is None
    run.args.save_strategy, budget.skipped_evaluation = "steps", False
    assert main_job.way_to_evaluate(run, budget) is None


def test_a_run_that_was_cut_short_says_so_first_and_how_to_finish(train_tiny, tmp_path, capsys, monkeypatch):
    """Before its results, and in the card; the command that it prints runs to the last step."""
    # as in a process of its own, which is not as old as that of the tests
    monkeypatch.setattr(Stopwatch, "elapsed", property(lambda watch: time.monotonic() - watch._started))
    run = tmp_path / "run"
    assert train_tiny(run, "--max_training_hours", "0.0001") == 0
    lines = capsys.readouterr().out.splitlines()
    (number,) = (i for i, line in enumerate(lines) if line.startswith("CUT SHORT by the time budget at step 1 of 25"))
    assert not any(line.startswith(("best model", "test loss", "results")) for line in lines[:number])
    assert any(line.startswith("results: ") for line in lines[number:])
    assert "**Not finished: it was trained for 1 of 25 steps.**" in (run / "README.md").read_text()
    words = shlex.split(lines[number].split("Finish it: gpt2-hf ")[1])
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "CUT SHORT" not in out and "Not finished" not in (run / "README.md").read_text()
    assert read_json(run / "trainer_state.json")["global_step"] == 25


@pytest.mark.slow  # from a fork server, in the default suite: test_budgets.py
def test_a_budgeted_run_ends_in_time(tiny_options, tmp_path):
    """A whole process, given a minute for hours of work, ends within it, with everything written.

    A slow machine may need half of it to start: then a little less would have no room for the test split.
    """
    run = tmp_path / "run"
    options = ["--max_epochs", "100000", "--eval_every", "500", "--save_every", "1000"]
    command = [sys.executable, str(REPOSITORY / "run_clm.py"), *tiny_options, "--checkpoint_dir", str(run), *options]
    begin = time.monotonic()
    process = subprocess.run(
        [*command, "--max_training_hours", str(60 / 3600)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    assert time.monotonic() - begin < 60
    assert "checkpoint_time_limit" in folders.read_names(run)
    assert (run / "test_results.json").is_file()


@pytest.mark.parametrize(
    "options",
    [
        ("--learning_rate", "1e10"),
        ("--learning_rate", "1e38"),
        ("--learning_rate", "1e10", "--sequence_mode", "blocks", "--shift_blocks"),
    ],
)
def test_divergence_is_exit_code_3_and_keeps_the_last_checkpoint(train_tiny, tmp_path, capsys, options):
    """A learning rate beyond reason stops the run; no non-finite number is ever saved."""
    run = tmp_path / "run"
    options = (*options, "--gradient_clip", "0", "--lr_scheduler_type", "linear")
    assert train_tiny(run, *options, "--warmup_steps", "1", "--save_every", "1") == 3
    err = capsys.readouterr().err
    assert "training diverged at step" in err and "loss of the last batch" in err
    listed = re.search(r"samples of that step: ([\d, ]+)", err).group(1)
    assert all(int(number) < 1000 for number in listed.split(", "))
    newest, passed_over = folders.newest_valid(run)
    assert newest is not None and not passed_over
    weights = load_file(newest / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


ENDLESS = ("--max_epochs", "100000", "--eval_strategy", "no", "--save_every", "100000")


def write_errors_to(path):
    """What is written to the process's standard error, past Python's `sys.stderr`, goes to a file."""
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), 2)


@needs_posix_signals
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGUSR2", 75), ("SIGINT", 130)])
def test_a_signal_ends_in_a_checkpoint(tiny_options, tmp_path, name, code):
    """The step is finished, a checkpoint saved; the exit code says to run again, or is that of a Ctrl-C."""
    log, errors = tmp_path / "log", tmp_path / "errors"
    argv = ["train", *tiny_options, *ENDLESS, "--checkpoint_dir", str(tmp_path / "run")]
    process = harness.start(argv, log, prepare=functools.partial(write_errors_to, str(errors)))
    harness.wait_for(log, "\nstep 20/")
    os.kill(process.pid, getattr(signal, name))
    assert harness.join([process], timeout=60) == [code], log.read_text()
    assert f"{name} received" in errors.read_text() and "with --resume_from latest" in log.read_text()
    newest, _ = folders.newest_valid(tmp_path / "run")
    assert newest is not None


def interrupt_twice(files, tokenizer, folder, log):
    """Train from Python, as in a notebook, and press Ctrl-C twice in the first step; the log says what came of it."""

    def press_twice(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    StopCallback.on_step_begin = press_twice
    model_args = ModelArguments(d_model=16, num_layers=1, num_heads=1, max_length=16)
    args = GPT2HFTrainingArguments(output_dir=folder, use_cpu=True, precision="fp32", max_steps=4)
    before = signal.getsignal(signal.SIGINT)
    try:
        train(model_args, DataArguments(**files, tokenizer_name=tokenizer), args)
    except KeyboardInterrupt:
        log.write_text(f"interrupted, {signal.getsignal(signal.SIGINT) == before}")


@needs_posix_signals
def test_a_second_ctrl_c_leaves_a_notebook_alive(corpus_folder, tokenizer_folder, tmp_path):
    """In place of the command's end of the process, its caller gets the exception, and the handlers back."""
    files = {f"{split}_file": str(corpus_folder / f"{split}.txt") for split in ("train", "validation")}
    arguments = (files, str(tokenizer_folder), str(tmp_path / "run"), tmp_path / "log")
    assert harness.join([harness.start_function(interrupt_twice, *arguments)]) == [0]
    assert (tmp_path / "log").read_text() == "interrupted, True"


def test_the_checkpoint_of_a_signal_is_not_read_again(train_tiny, tmp_path, monkeypatch, capsys):
    """That of a large model takes longer to hash than the notice that a cluster gives."""
    monkeypatch.setattr(manifest, "damage", lambda folder: pytest.fail(f"{folder} was read"))
    assert train_until_signal(tmp_path, 7, train_tiny) == 75
    assert f"stopped at step 7; go on from {tmp_path / 'checkpoint-7'} with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--train_file", "nowhere.txt"), "--train_file: no file matches"),
        (("--text_column", "body"), "--text_column"),
        (("--tokenizer_name", "./nowhere"), "--tokenizer_name: there is no folder ./nowhere"),
        (("--model_name_or_path", "./nowhere"), "--model_name_or_path"),
        (("--config", "nowhere.json"), "--config: nowhere.json cannot be read"),
    ],
)
def test_bad_input_is_exit_code_2_and_writes_nothing(tiny_options, tmp_path, capsys, options, message):
    """One line on stderr, and no output folder."""
    base = list(tiny_options)
    if options[0] == "--model_name_or_path":  # sizes beside weights would be the earlier error
        base = base[8:]
    if options[0] == "--config":
        base = base[:-2]  # which is one
    assert main(["train", *base, "--checkpoint_dir", str(tmp_path / "run"), *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and err.startswith("error: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--validation_file", "v.txt"), "no training text beside --validation_file: give --train_file too"),
        (("--train_file", "a.txt", "--test_file", "t.txt", "--do_predict", "false"), "--test_file has no effect"),
        (("--train_file", "a.txt", "--streaming"), "--streaming needs --max_steps"),
        (
            ("--sequence_mode", "blocks", "--shift_blocks", "--train_sampling_strategy", "sequential"),
            "--shift_blocks has no effect with --train_sampling_strategy sequential",
        ),
    ],
)
def test_options_are_refused_before_the_text_is_read(tmp_path, capsys, monkeypatch, options, message):
    """A file beside a config that names a dataset takes the dataset's place, so that it is no remedy to name one."""
    monkeypatch.setattr(preparation, "load_same_data", None)
    base = ["train", "--config", str(REPOSITORY / "training_args" / "base.json")]
    assert main([*base, "--checkpoint_dir", str(tmp_path / "run"), *options]) == 2
    assert message in capsys.readouterr().err


def test_an_empty_data_set_is_exit_code_2(train_tiny, tmp_path, capsys):
    """A file of blank lines has nothing to train on."""
    blank = tmp_path / "blank.txt"
    blank.write_text("\n\n\n")
    assert train_tiny(tmp_path / "run", "--train_file", str(blank)) == 2
    assert "the train split has no text to use (3 rows, 3 blank)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_without_training_text(tmp_path, capsys):
    """A name such as `test` makes the datasets library pass over all other files; they are named."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a.txt", "b.txt", "test.txt"):
        (folder / name).write_text("some text of some words\n")
    assert main(["train", "--dataset_name", str(folder), "--checkpoint_dir", str(tmp_path / "run"), "--use_cpu"]) == 2
    err = capsys.readouterr().err
    assert "there is no training text: give --train_file" in err and err.count("\n") == 1
    assert "(test: " in err and "NOT READ: 2 of the 3 text files in the folder (a.txt, b.txt)" in err


def test_from_the_weights_of_another_model(finished_run, corpus_folder, tmp_path):
    """--model_name_or_path starts from a saved model's weights and tokenizer."""
    options = ["--train_file", str(corpus_folder / "train.txt"), "--precision", "fp32", "--use_cpu"]
    options += ["--validation_file", str(corpus_folder / "validation.txt"), "--max_length", "32", "--max_steps", "2"]
    model = str(finished_run / "best_model")
    assert main(["train", "--model_name_or_path", model, *options, "--checkpoint_dir", str(tmp_path / "run")]) == 0
    before = read_json(finished_run / "eval_results.json")["eval_loss"]
    assert read_json(tmp_path / "run" / "eval_results.json")["eval_loss"] == pytest.approx(before, abs=0.2)


def test_finetuning_starts_from_a_stock_gpt2_folder(tokenizer_folder, corpus_folder, tmp_path):
    """finetune_gpt2.json with a local folder in place of OpenAI's weights: stock GPT-2 in, a better model out."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    stock = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ends))
    stock.save_pretrained(tmp_path / "stock")
    tokenizer.save_pretrained(tmp_path / "stock")
    options = ["--config", str(REPOSITORY / "training_args" / "finetune_gpt2.json"), "--use_cpu"]
    options += ["--model_name_or_path", str(tmp_path / "stock"), "--max_length", "64", "--learning_rate", "1e-2"]
    options += ["--train_file", str(corpus_folder / "train.txt"), "--max_steps", "12", "--warmup_steps", "2"]
    options += ["--validation_file", str(corpus_folder / "validation.txt"), "--eval_every", "4"]
    assert main(["train", *options, "--checkpoint_dir", str(tmp_path / "run")]) == 0
    losses = [entry["eval_loss"] for entry in history(tmp_path / "run") if "eval_loss" in entry]
    assert losses[-1] < losses[0] < 6.0


@pytest.mark.parametrize(
    ("values", "exit_code", "message"),
    [
        ({"temperature": 0.9, "top_p": 0.95}, 0, "generation config: do_sample is set"),
        ({"length_penalty": 0.5}, 2, "the model's generation config cannot be saved: "),
    ],
)
def test_a_generation_config_does_not_end_a_run(
    tokenizer_folder, corpus_folder, tmp_path, capsys, values, exit_code, message
):
    """Published ones have values for sampling without do_sample; what cannot be saved is said before the first step.

    They are changed because the tokenizer has no padding token, and gets one.
    """
    model, run = tmp_path / "model", tmp_path / "run"
    make_stock(vocab_size=384, bos_token_id=0, eos_token_id=0).save_pretrained(model)
    shutil.copytree(tokenizer_folder, model, dirs_exist_ok=True)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, **values}))
    options = ["--train_file", str(corpus_folder / "train.txt"), "--precision", "fp32", "--use_cpu"]
    options += ["--validation_file", str(corpus_folder / "validation.txt"), "--max_length", "32", "--max_steps", "2"]
    command = ["train", "--model_name_or_path", str(model), *options, "--checkpoint_dir", str(run)]
    assert main(command) == exit_code
    out, err = capsys.readouterr()
    assert message in (err if exit_code else out)
    saved = [read_json(folder / "generation_config.json") for folder in folders.list_checkpoints(run)]
    assert bool(saved) == (exit_code == 0)
    assert all(each["do_sample"] and each.items() >= values.items() for each in saved)


def test_a_run_without_evaluation_shows_its_last_checkpoint(train_tiny, tmp_path, capsys):
    """With --eval_strategy no there is no best model; results and sample are those of the last checkpoint."""
    run = tmp_path / "run"
    assert train_tiny(run, "--eval_strategy", "no", "--max_steps", "4") == 0
    assert f"model: {run / 'checkpoint-4'}" in capsys.readouterr().out
    assert not (run / "best_model").exists() and not (run / "eval_results.json").exists()
    assert (run / "test_results.json").is_file()


def test_a_run_may_save_nothing(train_tiny, tmp_path, capsys):
    """--save_strategy no leaves results and curves but no model, and says so."""
    assert train_tiny(tmp_path / "run", "--save_strategy", "no", "--max_steps", "4") == 0
    assert "model: not saved" in capsys.readouterr().out
    assert not folders.list_checkpoints(tmp_path / "run")


def test_a_preempted_run_that_saves_nothing_is_scored_as_it_ended(train_tiny, finished_run, tmp_path, capsys):
    """Its only checkpoint is that of the signal, and is not the model."""
    run, options = tmp_path / "run", ("--save_strategy", "no")
    assert train_until_signal(run, 10, train_tiny, *options) == 75
    assert train_tiny(run, *options, "--resume_from", "latest") == 0
    assert "model: not saved" in capsys.readouterr().out
    scores = [read_json(folder / "test_results.json")["test_loss"] for folder in (run, finished_run)]
    assert scores[0] == scores[1]  # whose last step is its best
    assert "from_pretrained" not in (run / "README.md").read_text(encoding="utf-8")


def before_training(text):
    """The printed lines before the first log."""
    return text.partition("\nstep ")[0].splitlines()


def test_paths_of_a_program_are_written_down(finished_run, corpus_folder, tokenizer_folder, tmp_path):
    """As texts, so that the record says what was trained on."""
    files = {f"{split}_file": corpus_folder / f"{split}.txt" for split in ("train", "validation")}
    stated = {**files, "tokenizer_name": tokenizer_folder, "model_name_or_path": finished_run / "best_model"}
    model_args = ModelArguments(stated["model_name_or_path"], max_length=32)
    options = {"use_cpu": True, "precision": "fp32", "max_steps": 1, "sample_tokens": 0, "do_predict": False}
    args = GPT2HFTrainingArguments(tmp_path / "run", **options)
    assert main_job.train(model_args, DataArguments(**files, tokenizer_name=tokenizer_folder), args) == 0
    record = read_json(tmp_path / "run" / "resolved_config.json")
    assert {name: record[name] for name in stated} == {name: str(path) for name, path in stated.items()}


def test_three_lines_before_the_first_step(train_tiny, tmp_path, capsys):
    """Text, model and run; the whole account stands in the record, and --verbose prints it."""
    options = ("--max_steps", "10", "--warmup_steps", "1")
    assert train_tiny(tmp_path / "short", *options) == 0
    lines = before_training(capsys.readouterr().out)
    assert [line.split()[0] for line in lines] == ["text:", "model:", "run:"]
    assert lines[2] == "run: 10 steps (25 per epoch) of 8 samples, cpu, precision: fp32 (asked for), budget 12:00:00"
    assert train_tiny(tmp_path / "full", *options, "--verbose") == 0
    printed = before_training(capsys.readouterr().out)
    for run in ("short", "full"):
        config = read_json(tmp_path / run / "resolved_config.json")
        assert config["provenance"]["account"] == printed and "verbose" not in config
    (train,) = (line for line in printed if line.startswith("train: 2"))
    for count in (
        " rows, ",
        " blank, ",
        " too short ",
        " longer than max_length",
        " text tokens, ",
        " kept, ",
        " dropped",
    ):
        assert count in train
    assert lines[0].startswith("text: train ") and lines[1] in printed
    assert "steps: 25 per epoch, 10 in all" in printed and "device: cpu; precision: fp32 (asked for)" in printed
    assert "batch: 8 samples per step = 1 process × 8 samples × 1 accumulated" in printed


def test_warnings_are_always_printed(train_tiny, tmp_path, capsys):
    """Of three lines or of all, what goes wrong is one of them."""
    for options in ((), ("--verbose",)):
        assert train_tiny(tmp_path / "run", "--max_steps", "2", "--overwrite_output_dir", *options) == 0
        assert "\nwarning: warmup takes 5 of 2 steps" in capsys.readouterr().out


def test_dry_run_writes_nothing(tiny_options, tmp_path, capsys):
    """--dry_run prints the plan of the very run, and no folder appears."""
    assert main(["train", *tiny_options, "--dry_run", "--verbose", "--checkpoint_dir", str(tmp_path / "run")]) == 0
    assert "25 in all" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_plan_is_not_of_what_is_left(train_tiny, finished_run, capsys):
    """--resume_from would be accepted and ignored."""
    assert train_tiny(finished_run, "--dry_run", "--resume_from", "latest") == 2
    assert "--resume_from has no effect: a plan is that of a whole run" in capsys.readouterr().err


@pytest.mark.wikitext
def test_base_json_trains_on_wikitext(wikitext, tmp_path):
    """base.json on the real WikiText-2 with a small model: the loss falls and TensorBoard has it."""
    base = REPOSITORY / "training_args" / "base.json"
    options = ["--dataset_name", str(wikitext), "--checkpoint_dir", str(tmp_path / "run"), "--use_cpu"]
    options += ["--d_model", "64", "--num_layers", "2", "--max_steps", "20", "--warmup_steps", "5"]
    options += ["--learning_rate", "3e-3", "--logging_steps", "5", "--max_eval_samples", "40"]
    assert main(["train", "--config", str(base), *options]) == 0
    events = EventAccumulator(str(tmp_path / "run" / "runs" / "run")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.3
    assert {"eval/loss", "eval/perplexity", "train/learning_rate"} <= set(events.Tags()["scalars"])


def test_defaults_without_config_are_the_design():
    """`train` without a config asks for GPT-2 124M on WikiText-2."""
    model_args, data_args, args = parse([ModelArguments, DataArguments, GPT2HFTrainingArguments], []).values
    assert (model_args.d_model, model_args.num_layers, model_args.heads) == (768, 12, 12)
    assert (data_args.dataset_name, args.output_dir) == ("Salesforce/wikitext", "checkpoints")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stream_goes_on_exactly_where_it_was(train_tiny, tmp_path, workers):
    """Streamed text, interrupted and resumed: the same bits and history as a run left alone."""
    options = ("--streaming", "--shuffle_buffer_size", "40", "--max_steps", "30", "--num_workers", workers)
    options += ("--dropout", "0.1", "--max_train_samples", "none")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_tiny(whole, *options) == 0
    assert train_until_signal(parts, 13, train_tiny, *options) == 75
    assert train_tiny(parts, *options, "--resume_from", "latest") == 0
    assert_same_state(final_state(parts, 30), final_state(whole, 30))
    assert history(parts) == history(whole)


def test_a_finished_stream_has_no_epochs(train_tiny, tmp_path):
    """Nor when it is started again: the last step is not the end of a pass over the text, whose length is unknown."""
    options = ("--streaming", "--max_train_samples", "none", "--max_steps", "5")
    for again in ((), ("--resume_from", "latest")):
        assert train_tiny(tmp_path, *options, *again) == 0
        assert not [name for name in folders.read_names(tmp_path) if "epoch" in name]


# ---- strategies and folders that are easily got wrong ----


def test_one_checkpoint_kept_is_the_newest(train_tiny, tmp_path):
    """With --save_total_limit 1 a stopped run keeps its last checkpoint, and all that names stand for."""
    run = tmp_path / "run"
    assert train_until_signal(run, 15, train_tiny, "--save_total_limit", "1") == 75
    assert folders.list_checkpoints(run)[-1].name == "checkpoint-15"
    assert train_tiny(run, "--save_total_limit", "1", "--resume_from", "latest") == 0
    names = folders.read_names(run)
    assert {"best_model", "checkpoint_epoch_1"} <= names.keys()


def test_going_back_to_an_older_checkpoint_sets_the_later_ones_aside(train_tiny, finished_run, tmp_path, capsys):
    """Resumed from step 10, the run's steps 20 and 25 are out of the way of `latest` and of rotation."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    options = ("--resume_from", "checkpoint_step_10", "--max_epochs", "2")
    assert train_until_signal(run, 13, train_tiny, *options) == 75
    assert "set aside as abandoned-checkpoint-25" in capsys.readouterr().out
    assert folders.list_checkpoints(run)[-1].name == "checkpoint-13"
    assert (run / "abandoned-checkpoint-25").is_dir()


@pytest.mark.parametrize("name", ["abandoned-checkpoint-20", "abandoned-checkpoint-25", "mine"])
def test_a_checkpoint_that_was_set_aside_is_resumed_and_kept(train_tiny, finished_run, tmp_path, name):
    """Whatever its folder is called, the run goes on from it; what has its step, or comes later, makes way."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.copytree(run / "checkpoint-20", run / name)
    state = read_json(run / name / "trainer_state.json")
    state["log_history"].append({"step": 20, "mark": 1.0})
    write_json(run / name / "trainer_state.json", state)
    manifest.write(run / name)
    before = contents(run / name)
    assert train_tiny(run, "--resume_from", name) == 0
    assert {"step": 20, "mark": 1.0} in history(run) and contents(run / name) == before
    assert [path.name for path in folders.list_checkpoints(run)] == ["checkpoint-10", "checkpoint-25"]
    for step in (20, 25):
        aside = f"abandoned-checkpoint-{step}"
        assert manifest.damage(run / (f"{aside}-2" if aside == name else aside)) is None


def test_checkpoints_on_another_disk_are_resumed_and_set_aside(train_tiny, finished_run, tmp_path):
    """By links: one is resumed by its name, a later one makes way, and no folder is touched."""
    run, disk = tmp_path / "run", tmp_path / "disk"
    shutil.copytree(finished_run, run)
    disk.mkdir()
    for name in ("checkpoint-10", "checkpoint-25"):
        (run / name).rename(disk / name)
        (run / name).symlink_to(disk / name)
    before = contents(disk)
    assert train_until_signal(run, 13, train_tiny, "--resume_from", "checkpoint-10", "--max_epochs", "2") == 75
    assert folders.list_checkpoints(run)[-1].name == "checkpoint-13"
    assert (run / "abandoned-checkpoint-25").is_symlink() and contents(disk) == before
    assert train_until_signal(run, 26, train_tiny, "--resume_from", "latest", "--max_epochs", "2") == 75
    assert train_until_signal(run, 12, train_tiny, "--resume_from", "checkpoint-10", "--max_epochs", "2") == 75
    assert not (run / "abandoned-checkpoint-25").is_symlink() and contents(disk) == before


@pytest.mark.parametrize("strategy", ["best", "epoch"])
@pytest.mark.parametrize("step", [10, 13])  # with an evaluation, and without one
def test_a_signal_saves_whatever_the_save_strategy(train_tiny, tmp_path, strategy, step):
    """The checkpoint of that very step is there; as with `steps` above."""
    run = tmp_path / "run"
    assert train_until_signal(run, step, train_tiny, "--save_strategy", strategy) == 75
    assert folders.list_checkpoints(run)[-1].name == f"checkpoint-{step}"


def test_epoch_strategies_evaluate_and_save_once_per_epoch_and_at_each_best(train_tiny, tmp_path):
    """eval_strategy and save_strategy epoch: an evaluation, then a checkpoint, each epoch; and a best model."""
    run = tmp_path / "run"
    assert train_tiny(run, "--eval_strategy", "epoch", "--save_strategy", "epoch", "--max_epochs", "2") == 0
    assert [entry["step"] for entry in history(run) if "eval_loss" in entry] == [25, 50]
    assert [path.name for path in folders.list_checkpoints(run)] == ["checkpoint-25", "checkpoint-50"]
    assert (run / "best_model" / "model.safetensors").is_file()
    assert any("eval_loss" in entry for entry in history(run / "checkpoint-25"))


# transformers' reporter of a library that is missing fails a second time when it is thrown away
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_overwriting_waits_until_nothing_can_be_wrong(train_tiny, finished_run, tmp_path, capsys):
    """A reporter that is not installed is one line, and the old run is still there."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert train_tiny(run, "--overwrite_output_dir", "--report_to", "mlflow") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert folders.list_checkpoints(run)[-1].name == "checkpoint-25"


@pytest.mark.parametrize("option", ["--model_name_or_path", "--tokenizer_name", "--distill_from"])
def test_what_a_run_begins_with_is_not_overwritten(finished_run, tmp_path, capsys, option):
    """Nothing would be left of it if the new run failed."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert (
        main(["train", "--overwrite_output_dir", option, str(run / "best_model"), "--checkpoint_dir", str(run)]) == 2
    )
    assert f"would delete {run / 'best_model'}, which {option} names" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_that_may_not_be_read_is_one_line(train_tiny, tmp_path, capsys, monkeypatch):
    """Also where the message would name a checkpoint in it."""
    (tmp_path / "run").mkdir()
    entries = Path.iterdir

    def refuse(path):
        if path == tmp_path / "run":
            raise PermissionError(13, "Permission denied", str(path))
        return entries(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert train_tiny(tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert "Permission denied" in error and error.count("\n") == 1


def test_a_checkpoint_of_another_run_is_not_mixed_in(train_tiny, finished_run, tmp_path, capsys):
    """--resume_from a path beside an output folder that holds a run of its own is refused."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert train_tiny(run, "--resume_from", str(finished_run / "checkpoint-10")) == 2
    assert "is of another run" in capsys.readouterr().err


def test_an_interrupted_publication_is_made_up_for(train_tiny, finished_run, tmp_path):
    """Killed between a checkpoint's commit and its names and best model: the resumed run completes both."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "best_model")
    (run / "checkpoint_names.json").unlink()
    assert train_tiny(run, "--resume_from", "latest", "--max_steps", "27", "--learning_rate", "1e-9") == 0
    assert {"best_model", "checkpoint_epoch_1"} <= folders.read_names(run).keys()
    best = read_json(run / "trainer_state.json")["best_global_step"]
    weights = load_file(run / folders.checkpoint_folder(best) / "model.safetensors")
    published = load_file(run / "best_model" / "model.safetensors")
    assert all(torch.equal(weights[name], published[name]) for name in weights)


def test_the_last_publication_is_made_up_for(train_tiny, finished_run, tmp_path, capsys):
    """Killed after the last checkpoint, which is the best, and before it was published: there is nothing to train."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    last = folders.checkpoint_folder(25)
    assert read_json(run / "trainer_state.json")["best_global_step"] == 25
    shutil.rmtree(run / "best_model")
    shutil.copytree(run / folders.checkpoint_folder(20), run / "best_model")
    (run / "checkpoint_names.json").unlink()
    assert train_tiny(run, "--resume_from", "latest") == 0
    assert "nothing is left to train" in capsys.readouterr().out
    assert folders.read_names(run)["best_model"] == last
    weights, published = (load_file(run / name / "model.safetensors") for name in (last, "best_model"))
    assert all(torch.equal(weights[name], published[name]) for name in weights)


def test_a_best_model_without_checkpoints_is_not_replaced(train_tiny, finished_run, tmp_path, capsys):
    """Its checkpoints were deleted to save room: there is nothing to resume, and a new run would lose it."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    before = (run / "best_model" / "model.safetensors").read_bytes()
    assert train_tiny(run, "--resume_from", "latest") == 2
    assert "has a best_model and no checkpoint; start from it elsewhere" in capsys.readouterr().err
    assert (run / "best_model" / "model.safetensors").read_bytes() == before


def test_options_stated_only_once_are_noticed_on_resume(train_tiny, finished_run, tmp_path, capsys):
    """An optimizer that only the resumed command names cannot take over the other one's state."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    assert train_tiny(run, "--resume_from", "latest", "--max_epochs", "2", "--optim", "sgd") == 2
    assert "--optim was" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metric_for_best_model", "bleu"), "--metric_for_best_model must be one of loss, perplexity"),
        (("--greater_is_better",), "--greater_is_better has no effect"),
        (("--hub_strategy", "checkpoint"), "--hub_strategy has no effect"),
        (("--save_only_model",), "--save_only_model has no effect"),
    ],
)
def test_options_that_would_break_a_promise_are_refused(train_tiny, tmp_path, capsys, options, message):
    """One line each, before anything is written."""
    assert train_tiny(tmp_path / "run", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_best_model_is_uploaded_once_with_its_card(train_tiny, tmp_path, capsys, monkeypatch):
    """--push_to_hub: nothing while it trains; weights, tokenizer and card when the run is over, and its curves.

    The event files of the run, and no other program's, become runs/, where the hub draws them.
    """
    hub, runs = Hub(monkeypatch), tmp_path / "run" / "runs"
    (runs / "other").mkdir(parents=True)
    for name in ("notes.txt", "other/events.out.tfevents.1"):
        (runs / name).write_text("mine")
    assert train_tiny(tmp_path / "run", "--push_to_hub", "--hub_model_id", "tiny") == 0
    ((repo_id, names),) = hub.uploads
    assert repo_id == "someone/tiny" and {"README.md", "model.safetensors", "tokenizer.json"} <= set(names)
    assert "uploaded: https://hub/commit" in capsys.readouterr().out
    written = {path.relative_to(tmp_path / "run").as_posix(): path.read_bytes() for path in runs.rglob("*.gpt2_hf")}
    assert hub.further_files == written
    assert {name.rpartition("/")[0] for name in written} == {"runs/run", "runs/run/validation"}


def test_a_branch_of_the_hub_is_made_for_a_model(train_tiny, tmp_path, monkeypatch):
    """--hub_revision with a name that is new."""
    hub = Hub(monkeypatch)
    options = ("--push_to_hub", "--hub_model_id", "tiny", "--hub_revision", "draft", "--max_steps", "2")
    assert train_tiny(tmp_path / "run", *options) == 0
    assert len(hub.uploads) == 1 and hub.branches == ["main", "draft"]


def test_what_has_no_best_model_is_uploaded_without_its_training(train_tiny, tmp_path, capsys, monkeypatch):
    """Without evaluations the last checkpoint is the model: its optimizer stays here, and the card comes along."""
    hub = Hub(monkeypatch)
    options = ("--push_to_hub", "--hub_model_id", "tiny", "--max_steps", "5", "--eval_strategy", "no")
    assert train_tiny(tmp_path / "run", *options) == 0
    ((_, names),) = hub.uploads
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(names)
    assert not {name for name in names if "optimizer" in name or "state" in name or "manifest" in name}
    assert {"README.md", "curves.png"} <= hub.further_files.keys()
    assert train_tiny(tmp_path / "another", *options, "--save_strategy", "no") == 0
    assert "nothing was saved" in capsys.readouterr().out and len(hub.uploads) == 1


def test_a_refused_upload_loses_nothing(train_tiny, tmp_path, capsys, monkeypatch):
    """The run is whole, and one line says how to try again."""
    Hub(monkeypatch, refusal=OSError("403 Forbidden"))
    assert train_tiny(tmp_path / "run", "--push_to_hub", "--hub_model_id", "tiny", "--max_steps", "5") == 2
    assert "not uploaded (403 Forbidden); try again with: hf upload someone/tiny" in capsys.readouterr().err
    assert (tmp_path / "run" / "best_model" / "README.md").is_file()


def test_refused_curves_lose_nothing(train_tiny, tmp_path, capsys, monkeypatch):
    """They are a second upload: the model is there, and the line says how to upload what is missing."""
    hub = Hub(monkeypatch)
    monkeypatch.setattr(
        "gpt2_hf.runtime.hub.create_commit", lambda **options: hub.upload_folder(**options, folder_path=0)
    )
    assert train_tiny(tmp_path / "run", "--push_to_hub", "--hub_model_id", "tiny", "--max_steps", "5") == 2
    err = capsys.readouterr().err
    assert "saved, but the files beside the model are not uploaded" in err
    assert err.count("\n") == 1 and len(hub.uploads) == 1
    assert f"; try again with: hf upload someone/tiny {tmp_path / 'run' / 'runs' / 'run'} runs/run --include=" in err


def test_no_hub_is_said_before_training(train_tiny, tmp_path, capsys, monkeypatch):
    """--push_to_hub without a network is one line, with the command for later."""
    monkeypatch.setattr("gpt2_hf.job.main_job.ensure_hub_or_offline", lambda: False)
    assert train_tiny(tmp_path / "my run", "--push_to_hub") == 2
    message, _, command = capsys.readouterr().err.partition(" publish afterwards: ")
    assert "--push_to_hub: the hub cannot be reached" in message
    assert shlex.split(command) == ["hf", "upload", "USER/NAME", str(tmp_path / "my run" / "best_model")]


def test_a_file_as_output_folder_is_one_line(train_tiny, tmp_path, capsys):
    """--checkpoint_dir with the name of a file is an error before any work."""
    (tmp_path / "run").write_text("")
    assert train_tiny(tmp_path / "run") == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    assert train_tiny(tmp_path / "run" / "within") == 2
    err = capsys.readouterr().err
    assert f"--checkpoint_dir: {tmp_path / 'run' / 'within'} cannot be made (" in err and err.count("\n") == 1


def test_length_buckets_go_on_exactly_where_they_were(train_tiny, tmp_path):
    """Batches of one length, interrupted in the second epoch: the same bits and history as a run left alone."""
    options = ("--train_sampling_strategy", "group_by_length", "--sequence_mode", "padded", "--max_epochs", "2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_tiny(whole, *options) == 0
    assert train_until_signal(parts, 33, train_tiny, *options) == 75
    assert train_tiny(parts, *options, "--resume_from", "latest") == 0
    assert history(parts) == history(whole)
    assert_same_state(final_state(parts, 50), final_state(whole, 50))
