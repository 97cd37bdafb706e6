"""The plan counts what the run then does, and its estimates are those of a real run."""

import os
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import IntervalStrategy

from gpt2_hf import GPT2HFTrainer
from gpt2_hf.__main__ import main
from gpt2_hf.checkpoints.folders import list_checkpoints
from gpt2_hf.data import DocumentSamples, FlatteningCollator, Samples
from gpt2_hf.errors import UserError
from gpt2_hf.job import dry_run
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.planning.plan import Plan, existing_parent
from gpt2_hf.planning.probe import Measurement, checkpoint_bytes, completed_by_fillers, first_epoch
from gpt2_hf.planning.steps import list_events, make_schedule
from gpt2_hf.runtime import distributed

from .. import ranks
from ..conftest import REPOSITORY, needs_fork_server, read_json
from ..data_fixtures import documents_of
from ..tiny_models import make_model

GIB = 2**30


def test_a_checkpoint_is_as_large_as_planned(finished_run):
    """Weights, two moments, tokenizer and source, to within the allowance for small files."""
    size = sum(path.stat().st_size for path in list_checkpoints(finished_run)[-1].rglob("*"))
    parameters = read_json(finished_run / "resolved_config.json")["provenance"]["parameters"]
    assert 12 * parameters < size < checkpoint_bytes(parameters, 8 * parameters)


# ---- advice ----


@pytest.fixture
def plan(tmp_path):
    """A plan with nothing to complain about: 10 hours of 12."""
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, warmup_steps=100)
    schedule = make_schedule(args, 8000)
    measured = Measurement(
        step_seconds=3.0,
        num_steps=9,
        tokens_per_second=1000.0,
        share_of_peak=None,
        evaluation_seconds=60.0,
        test_seconds=60.0,
        sample_seconds=5.0,
        peak_bytes=3 * GIB,
    )
    return Plan(
        args=args,
        schedule=schedule,
        events=list_events(args, schedule),
        num_parameters=10**8,
        optimizer_bytes=8 * 10**8,
        num_samples=8000,
        num_tokens=10**6,
        flops_per_token=6e8,
        activation_bytes=GIB,
        peak_bytes=3 * GIB,
        memory_bytes=8 * GIB,
        measured=measured,
        start_seconds=10.0,
        save_seconds=5.0,
        report_seconds=5.0,
        free_disk_bytes=100 * GIB,
    )


def test_a_good_plan_has_no_advice(plan):
    """Everything fits; the parts of the time add up; an unknown device has no share of its peak."""
    assert plan.advice() == []
    assert plan.total_seconds == pytest.approx(10 + 10_000 * 3 + 20 * 65 + 20 * 5 + 65)
    text = "\n".join(plan.lines())
    assert "budget: 12:00:00; the run fits" in text and "peak (" not in text and "8:44:35 in all" in text


def test_a_plan_on_a_card_says_what_the_card_has_room_for(plan):
    """A line with README's flags for it; on a CPU there is none."""
    assert not [line for line in plan.lines() if line.startswith("GPU")]
    (line,) = (line for line in replace(plan, card_bytes=24 * GIB).lines() if line.startswith("GPU"))
    assert "--sequence_mode blocks --global_batch_size 64 --batch_size 32: 32,768 tokens per micro-batch" in line


def test_a_run_longer_than_its_budget_is_told_so(plan):
    """Half the time: the step at which the budget ends, and three ways out."""
    plan.args.max_training_hours = 4.4
    (line,) = plan.advice()
    assert "at about step 5,0" in line
    for flag in ("--max_training_hours 9.62", "--max_steps 5", "--schedule_by_time"):
        assert flag in line, flag
    assert plan.num_kept == 10 + 1 + 1 + 1 + 1  # epochs, step 9,500, the best, the one being written, the time limit


def test_a_schedule_that_follows_the_budget_may_end_early(plan):
    """Its learning rate has come down by then, so there is nothing to change."""
    plan.args.max_training_hours, plan.args.schedule_by_time = 4.4, True
    assert plan.advice() == [] and not plan.fits_budget
    (line,) = (line for line in plan.lines() if line.startswith("budget: "))
    assert line.endswith(f"it ends the run, and the learning rate with it, after about {plan.steps_in_budget:,} steps")


def alternatives(line):
    """What an advice says to use: the flags of each way, as a dictionary."""
    ways = re.split(r", or |, ", line.split("; use ")[1])
    return [dict(re.findall(r"--(\w+)(?: ([\d.]+))?", way)) for way in ways]


@pytest.mark.parametrize("hours", [0.2, 0.5, 1.0, 4.0, 8.0])
@pytest.mark.parametrize("warmup", [0, 100, 2000, 9000, 0.05, 0.9])
@pytest.mark.parametrize("eval_steps", [50, 500])
def test_advice_gives_a_good_run_when_it_is_followed(plan, hours, warmup, eval_steps):
    """Every way out of a budget that is too small: it fits, and warmup is a fifth of its steps or less."""
    plan.args.max_training_hours, plan.args.warmup_steps, plan.args.eval_steps = hours, warmup, eval_steps
    schedule = make_schedule(plan.args, 8000)
    tight = replace(plan, schedule=schedule, events=list_events(plan.args, schedule))
    ways = [way for line in tight.advice() if "budget" in line for way in alternatives(line)]
    assert len(ways) == (0 if tight.fits_budget else 3)
    for way in ways:
        plan.args.max_training_hours = float(way.get("max_training_hours", hours))
        plan.args.max_steps = int(way.get("max_steps", -1))
        plan.args.warmup_steps = float(way.get("warmup_steps", warmup))
        followed = make_schedule(plan.args, 8000)
        good = replace(plan, schedule=followed, events=list_events(plan.args, followed))
        steps = tight.steps_in_budget if "schedule_by_time" in way else followed.total_steps
        assert followed.warmup_steps / steps <= 0.2, way
        if "schedule_by_time" in way:
            plan.args.schedule_by_time = True
        else:
            assert good.fits_budget, way
        assert not [line for line in good.advice() if "budget" in line or "warmup" in line], way
        plan.args.schedule_by_time = False


def test_a_budget_for_no_step_is_told_so(plan):
    """There is nothing to shorten then."""
    plan.args.max_training_hours = 0.01
    (line,) = plan.advice()
    assert "before the first step" in line and "--max_training_hours 9.62" in line and "--max_steps" not in line


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, "--batch_size 4 --gradient_accumulation_steps 2,"),
        ({"per_device_train_batch_size": 7}, "--batch_size 1 --gradient_accumulation_steps 7,"),
        ({"global_batch_size": 8}, "--batch_size 4, the same step"),
        ({"per_device_train_batch_size": 1}, "--activation_checkpointing"),
        ({"per_device_train_batch_size": 1, "gradient_checkpointing": True}, "--max_length"),
    ],
)
def test_too_little_memory_names_the_next_flag(plan, options, flags):
    """A smaller batch first, then recomputed activations, then a smaller model; no time is guessed."""
    for name, value in options.items():
        setattr(plan.args, name, value)
    small = replace(plan, memory_bytes=2 * GIB, measured=None)
    (line,) = small.advice()
    assert flags in line
    assert small.seconds == {} and not any(line.startswith(("time", "speed")) for line in small.lines())
    (line,) = replace(small, memory_bytes=GIB).advice()
    assert "alone do not fit" in line and "--d_model" in line


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_a_device_that_is_smaller_than_expected_is_told(tiny_options, tmp_path, monkeypatch, capsys, error):
    """Another process may have its memory; the plan says so, and does not end in the middle."""

    def run_out(*args):
        raise error

    monkeypatch.setattr("gpt2_hf.planning.probe.measure", run_out)
    monkeypatch.setattr("gpt2_hf.planning.probe.activation_bytes", run_out)
    assert main(["plan", *tiny_options, "--checkpoint_dir", str(tmp_path / "run")]) == 0
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.usefixtures("quick_probe")
def test_the_timeout_is_for_the_steps(tiny_options, tmp_path, monkeypatch):
    """As in a run: before them one process may tokenise for long, while the others wait."""
    calls = []
    monkeypatch.setattr(distributed, "set_timeout", calls.append)
    for name in ("build", "make_plan"):
        stage = getattr(dry_run, name)
        monkeypatch.setattr(dry_run, name, lambda *given, n=name, stage=stage: calls.append(n) or stage(*given))
    options = ["--ddp_timeout", "600", "--checkpoint_dir", str(tmp_path / "run")]
    assert main(["plan", *tiny_options, *options]) == 0
    assert calls[:5] == [600, 24 * 3600, "build", 600, "make_plan"]


def test_a_full_disk_and_long_evaluations_are_told(plan):
    """Advice for both, with the flags."""
    slow = replace(plan.measured, evaluation_seconds=1000.0)
    lines = "\n".join(replace(plan, measured=slow, free_disk_bytes=GIB).advice())
    for flag in ("--eval_every", "--max_eval_samples", "--save_total_limit 1", "--max_epochs"):
        assert flag in lines, flag
    plan.args.eval_strategy = IntervalStrategy.EPOCH  # beside which --eval_every would be refused
    by_epoch = replace(plan, measured=slow, events=list_events(plan.args, plan.schedule))
    (line,) = (line for line in by_epoch.advice() if line.startswith("evaluations take"))
    assert "--max_eval_samples" in line and "--eval_every" not in line


@pytest.mark.parametrize(
    ("epochs", "eval_steps", "ways"),
    [
        (2, 500, "a larger --eval_every, or a smaller --max_eval_samples"),
        (2, 1000, "a smaller --max_eval_samples, or an --eval_delay"),
        (1, 5000, "a smaller --max_eval_samples"),
    ],
)
def test_rarer_evaluations_are_advised_where_there_can_be_any(plan, epochs, eval_steps, ways):
    """One after each epoch of 1,000 steps stays, whatever `--eval_every`, and one at the end."""
    plan.args.num_train_epochs, plan.args.eval_steps = epochs, eval_steps
    schedule = make_schedule(plan.args, 8000)
    slow = replace(plan.measured, evaluation_seconds=10_000.0)
    short = replace(plan, schedule=schedule, events=list_events(plan.args, schedule), measured=slow)
    assert f"of the time; use {ways}" in [line.split("% ")[-1] for line in short.advice()]


# ---- against a real run ----


@pytest.mark.parametrize("strategy", ["random", "sequential", "group_by_length"])
def test_the_batches_of_the_plan_are_those_of_the_run(tmp_path, strategy):
    """With accumulation too: the trainer draws the very rows that the plan reckons with."""
    lengths = np.random.default_rng(0).integers(2, 33, 50)
    samples = DocumentSamples(documents_of([[1] * int(n) for n in lengths]), 32)
    options = {"train_sampling_strategy": strategy, "gradient_accumulation_steps": 3, "eval_strategy": "no"}
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, per_device_train_batch_size=4, **options)
    model = make_model()
    trainer = GPT2HFTrainer(model, args, FlatteningCollator(), samples)
    drawn = list(trainer.get_train_dataloader().batch_sampler)
    assert drawn == [completed_by_fillers(rows, 4) for rows in first_epoch(args, samples, None, model).rows]


@pytest.fixture
def plan_of(tiny_options, tmp_path, monkeypatch):
    """`plan_of(*options)` runs the command `plan` in this process and returns the plan it printed."""
    from gpt2_hf.job import dry_run
    from gpt2_hf.planning import plan as plan_module

    plans = []
    original = plan_module.make_plan
    monkeypatch.setattr(dry_run, "make_plan", lambda *args: plans.append(original(*args)) or plans[-1])

    def run(*options):
        assert main(["plan", *tiny_options, "--checkpoint_dir", str(tmp_path / "planned"), *options]) == 0
        assert not (tmp_path / "planned").exists()
        return plans.pop()

    return run


@pytest.mark.usefixtures("quick_probe")
@pytest.mark.parametrize("mode", ["padded", "padding_free", "blocks"])
def test_every_mode_is_planned_and_nothing_is_written(plan_of, capsys, mode):
    """`plan` prints parameters, steps, memory, speed, time, budget and disk."""
    made = plan_of("--sequence_mode", mode, "--gradient_accumulation_steps", "3")
    out = capsys.readouterr().out
    words = ("parameters: ", "memory: ", "activations ", "speed: ", "time: ", "budget: ", "per checkpoint", "free")
    for word in words:
        assert word in out, word
    assert made.measured.step_seconds > 0 and made.measured.evaluation_seconds > 0 and made.activation_bytes > 0


@pytest.mark.usefixtures("quick_probe")
def test_lines_with_one_target_each_are_planned(plan_of, tmp_path):
    """They have no half to measure."""
    text = tmp_path / "text.txt"
    text.write_text("a\n" * 200)
    assert plan_of("--train_file", str(text)).activation_bytes > 0


@pytest.mark.usefixtures("quick_probe")
def test_options_of_the_run_that_a_probe_does_without(plan_of, monkeypatch):
    """Early stopping, an upload and what else is no matter of a plan; nothing is uploaded."""
    monkeypatch.setattr("transformers.trainer.Trainer.init_hf_repo", lambda self, *args: pytest.fail("uploads"))
    upload = ("--push_to_hub", "--hub_model_id", "someone/model")
    of_the_job = ("--overwrite_output_dir", "--sample_tokens", "9", "--verbose")
    made = plan_of("--early_stopping_patience", "2", "--eval_on_start", *upload, *of_the_job)
    assert made.measured.step_seconds > 0


@pytest.mark.usefixtures("quick_probe")
def test_the_share_of_the_peak_is_that_of_the_whole_text(plan_of, monkeypatch):
    """The probe trains on a part of it, whose lengths the Trainer does not know."""

    def peak(args, model, samples, teachers):
        return 1e6 if isinstance(samples, Samples) else 2e6

    monkeypatch.setattr("gpt2_hf.trainer.gpt2_trainer.peak_tokens_per_second", peak)
    measured = plan_of().measured
    assert measured.share_of_peak == pytest.approx(measured.tokens_per_second / 1e6)


def test_a_machine_that_is_too_small_is_not_probed(plan_of, capsys, monkeypatch):
    """Where the least possible memory is not there, no step is tried, and the advice says what to type."""
    from gpt2_hf.planning import plan as plan_module

    monkeypatch.setattr(plan_module, "device_memory", lambda device: 1000)
    assert plan_of().measured is None
    assert "advice: weights, gradients and optimizer alone do not fit" in capsys.readouterr().out


def test_a_machine_that_is_too_small_for_one_process_is_not_probed(plan_of, capsys, monkeypatch):
    """The others do not try either: they would wait for it."""
    from gpt2_hf.planning import plan as plan_module

    of_another = iter([-1000.0])  # its memory, and no need of its own
    monkeypatch.setattr(plan_module, "largest_of_each", lambda value: (max(value, next(of_another, 0.0)),))
    assert plan_of().measured is None
    assert "the device has 0 MiB free" in capsys.readouterr().out


def time_as_this_process_alone():
    """The first process has seen enough after a few steps and a few samples, the second not."""
    from gpt2_hf.planning import probe

    seconds = {"0": 0.0, "1": 1000.0}[os.environ["RANK"]]
    probe._SECONDS = probe._EVALUATION_SECONDS = seconds
    evaluate = GPT2HFTrainer.evaluate

    def say(self, samples):
        print(f"scores {len(samples)} samples")
        return evaluate(self, samples)

    GPT2HFTrainer.evaluate = say
    training_step = GPT2HFTrainer.training_step

    def say_tokens(self, model, inputs, *args):
        print(f"rank {os.environ['RANK']} trains on {inputs['input_ids'].numel()}\n", end="")
        return training_step(self, model, inputs, *args)

    GPT2HFTrainer.training_step = say_tokens


@pytest.mark.distributed
@needs_fork_server
def test_processes_agree_on_when_they_have_measured_enough(tiny_options, tmp_path):
    """Of two under torchrun, each with a clock of its own: as many steps, and as many samples of the evaluation.

    Both train on the same batches, the largest among them.
    """
    options = ["--eval_batch_size", "1", "--ddp_timeout", "20", "--checkpoint_dir", str(tmp_path / "run")]
    text = ranks.run(2, ["plan", *tiny_options, *options], tmp_path / "log", prepare=time_as_this_process_alone)
    assert "(measured on 4 steps)" in text
    scored = sorted(re.findall(r"scores (\d+) samples", text))
    assert scored and scored[::2] == scored[1::2]
    trained = [re.findall(rf"rank {rank} trains on (\d+)", text) for rank in (0, 1)]
    assert trained[0] == trained[1] and len(set(trained[0])) > 2


def test_a_plan_needs_a_place_to_write_to(locked_options, capsys):
    """A folder that cannot be written to is found before the run."""
    assert main(["plan", *locked_options]) == 2
    assert re.search(r"--checkpoint_dir: .*locked cannot be written to: Permission denied", capsys.readouterr().err)


@pytest.mark.slow  # a ratio of two times on the clock
def test_planned_steps_take_the_time_of_real_ones(plan_of, train_tiny, tmp_path):
    """Within 25 %, by the medians of turns; a machine with other work gets a second chance."""
    options = ("--d_model", "64", "--max_steps", "40", "--eval_strategy", "no", "--save_strategy", "no")
    for attempt in range(2):
        planned, real = [], []
        for turn in range(3):
            planned.append(plan_of(*options).measured.step_seconds)
            run = tmp_path / f"run{attempt}{turn}"
            assert train_tiny(run, *options, "--logging_steps", "10") == 0
            logs = read_json(run / "trainer_state.json")["log_history"]
            speed = statistics.median(entry["tokens_per_second"] for entry in logs if "tokens_per_second" in entry)
            tokens = read_json(run / "resolved_config.json")["provenance"]["samples_per_step"] * mean_length(run)
            real.append(tokens / speed)
        ratio = statistics.median(planned) / statistics.median(real)
        if 0.75 < ratio < 1.25:
            return
    pytest.fail(f"planned steps take {ratio:.2f} of the real ones' time")


def mean_length(run):
    """Scored tokens in a sample of the finished run's training text."""
    from gpt2_hf.data import load_data
    from gpt2_hf.data.tokenizer import load_tokenizer
    from gpt2_hf.options.arguments import DataArguments

    config = read_json(run / "resolved_config.json")
    args = DataArguments(train_file=config["train_file"], max_train_samples=config["max_train_samples"])
    return load_data(args, load_tokenizer(config["tokenizer_name"]), 32, ("train",)).samples["train"].lengths.mean()


# Enough activations that they matter beside the libraries: about 400 MiB.
LARGE_STEP = ["--d_model", "256", "--num_layers", "6", "--num_heads", "4", "--max_length", "256", "--dropout", "0.1"]
LARGE_STEP += ["--sequence_mode", "blocks", "--logging_steps", "1"]


# A process begins as large as the one that starts it, in the books of Linux: a small one must stand between.
LARGEST_CHILD = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.slow  # lines of uneven length, in the default suite, are the harder case: test_planned_peak.py
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs the peak memory of a child process")
@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="one batch"),
        pytest.param(("--gradient_accumulation_steps", "2", "--dropout", "0.0"), id="accumulated"),
    ],
)
def test_planned_memory_is_that_of_a_real_run(tiny_options, tmp_path, more):
    """Two processes side by side: the plan's peak is within 15 % of the most that the run takes."""
    options = [*tiny_options, *LARGE_STEP, *more, "--checkpoint_dir", str(tmp_path / "run")]
    command = [sys.executable, "-m", "gpt2_hf"]
    planning = subprocess.Popen([*command, "plan", *options], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    limited = ["--max_steps", "6", "--save_strategy", "no", "--max_eval_samples", "8"]
    running = subprocess.Popen(
        [sys.executable, "-c", LARGEST_CHILD, *command, "train", *options, *limited],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = planning.communicate(timeout=240)
    largest, _ = running.communicate(timeout=240)
    assert planning.returncode == running.returncode == 0
    number, unit = re.search(r"memory: ([\d.]+) (\w+) at the peak, measured", out).groups()
    planned = float(number) * {"GiB": 2**30, "MiB": 2**20}[unit]
    real = int(largest) * (1 if sys.platform == "darwin" else 1024)
    assert planned == pytest.approx(real, rel=0.15)


@pytest.mark.slow
def test_planned_time_is_that_of_a_real_run(tmp_path):
    """The quickstart with 60 steps as a process of its own: the plan's total is within 25 %."""
    config = ["--config", "training_args/quickstart.json", "--max_steps", "60", "--max_training_hours", "none"]
    config += ["--schedule_by_time", "false"]
    command = [sys.executable, "-m", "gpt2_hf"]
    options = [*config, "--checkpoint_dir", str(tmp_path / "run")]
    planned = subprocess.run([*command, "plan", *options], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    hours, minutes, seconds = map(int, re.search(r"(\d+):(\d+):(\d+) in all", planned.stdout).groups())
    begin = time.monotonic()
    subprocess.run([*command, "train", *options], cwd=REPOSITORY, capture_output=True, check=True)
    assert 3600 * hours + 60 * minutes + seconds == pytest.approx(time.monotonic() - begin, rel=0.25)


def test_a_disk_that_is_not_there_is_one_line(tmp_path, monkeypatch):
    """A drive of Windows or a share is its own parent; a folder that is to be made has one that is there."""
    assert existing_parent(tmp_path / "a" / "b") == tmp_path
    monkeypatch.setattr(os.path, "isdir", lambda path: False)
    with pytest.raises(UserError, match=r"--checkpoint_dir: .* cannot be reached"):
        existing_parent(tmp_path)
