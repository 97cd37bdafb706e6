"""The plan counts what the run then does."""

import pytest

from gpt2_hf.__main__ import main
from gpt2_hf.arguments import GPT2HFTrainingArguments
from gpt2_hf.plan import make_schedule, schedule_warning

from .conftest import REPOSITORY, read_json


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


def test_the_command_prints_the_plan(tmp_path, capsys):
    """`plan` on a shipped config: parameters, steps, memory, disk; and nothing is written."""
    config = str(REPOSITORY / "training_args" / "quickstart.json")
    assert main(["plan", "--config", config, "--checkpoint_dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    for word in ("parameters: 7,259,008", "120 in all", "GFLOP a token", "a checkpoint"):
        assert word in out, word
    assert not (tmp_path / "run").exists()
