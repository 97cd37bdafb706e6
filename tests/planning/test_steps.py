"""Steps, evaluations and checkpoints are counted as a run has them."""

import pytest

from gpt2_hf.checkpoints.folders import list_checkpoints, read_names, step_of
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.planning.steps import list_events, make_schedule, schedule_warning

from ..conftest import read_json


@pytest.mark.parametrize(
    ("samples", "batch", "accumulation", "epochs", "expected"),
    [(200, 8, 1, 1, (25, 25)), (201, 8, 1, 2, (26, 52)), (23_767, 8, 1, 10, (2971, 29_710)), (100, 8, 4, 3, (4, 12))],
)
def test_steps_are_counted_as_the_trainer_counts_them(tmp_path, samples, batch, accumulation, epochs, expected):
    """The last, smaller batch of an epoch is a batch, and the last, smaller accumulation a step."""
    args = GPT2HFTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=epochs,
    )
    schedule = make_schedule(args, samples)
    assert (schedule.steps_per_epoch, schedule.total_steps) == expected


def test_the_schedule_is_that_of_a_real_run(finished_run):
    """The run that was planned with 25 steps took 25."""
    assert read_json(finished_run / "trainer_state.json")["max_steps"] == 25


def test_a_warmup_that_swallows_the_run_is_announced(tmp_path):
    """2,000 steps of warmup in a run of 100 get a line that names the flag."""
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, max_steps=100)
    warning = schedule_warning(make_schedule(args, 1000))
    assert warning is not None and "--warmup_steps 0.1" in warning
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, max_steps=100, warmup_steps=0.1)
    assert make_schedule(args, 1000).warmup_steps == 10
    assert schedule_warning(make_schedule(args, 1000)) is None


@pytest.mark.parametrize("kind", ["constant", "greedy", "reduce_lr_on_plateau"])
def test_a_schedule_without_warmup_has_none(tmp_path, kind):
    """The default of 2,000 steps is no matter, also where nobody knows how many samples there are."""
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, max_steps=100, lr_scheduler_type=kind)
    assert make_schedule(args, 1000).warmup_steps == make_schedule(args, None).warmup_steps == 0


def test_evaluations_and_checkpoints_are_those_of_a_real_run(finished_run, tmp_path):
    """The steps that are planned are the steps at which the finished run evaluated and saved."""
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, eval_steps=10, save_steps=10, num_train_epochs=1)
    events = list_events(args, make_schedule(args, 200))
    history = read_json(finished_run / "trainer_state.json")["log_history"]
    assert sorted(events.evaluations) == [entry["step"] for entry in history if "eval_loss" in entry]
    assert sorted(events.saves) == [step_of(folder) for folder in list_checkpoints(finished_run)]


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_evaluations_that_are_delayed_are_not_planned(tmp_path, strategy):
    """`--eval_delay` counts steps or epochs, and `--eval_on_start` adds one."""
    options = {"eval_strategy": strategy, "eval_steps": 10, "eval_on_start": True, "save_strategy": "no"}
    delay = {"steps": 30, "epoch": 2}[strategy]
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, **options, eval_delay=delay, num_train_epochs=2)
    evaluations = {"steps": {0, 30, 40, 50}, "epoch": {0, 50}}  # 25 steps an epoch
    assert list_events(args, make_schedule(args, 200)).evaluations == evaluations[strategy]


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_kept_checkpoints_are_those_of_a_real_run(train_tiny, tmp_path, strategy):
    """What is left at the end is what was planned, and the best one, whatever the strategy."""
    run = tmp_path / "run"
    options = ("--max_epochs", "2", "--max_train_samples", "80")
    if strategy == "steps":
        options += ("--save_every", "4", "--eval_every", "4")
    strategies = ("--eval_strategy", strategy, "--save_strategy", strategy, "--save_total_limit", "2")
    assert train_tiny(run, *options, *strategies) == 0
    args = GPT2HFTrainingArguments(
        str(tmp_path),
        use_cpu=True,
        **{"eval_strategy": strategy, "save_strategy": strategy, "eval_steps": 4, "save_steps": 4},
        save_total_limit=2,
        num_train_epochs=2,
    )
    kept = list_events(args, make_schedule(args, 80)).kept
    left = {step_of(folder) for folder in list_checkpoints(run)}
    assert left - {step_of(read_names(run)["best_model"])} <= kept <= left
