"""`--size auto` fills in what was not stated, says so, and keeps it when a run goes on."""

import contextlib
import gc
import io
import json
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt2_hf import GPT2HFConfig, GPT2HFForCausalLM
from gpt2_hf.__main__ import main
from gpt2_hf.checkpoints.folders import list_checkpoints
from gpt2_hf.data import PaddingCollator
from gpt2_hf.data.samples import BlockSamples
from gpt2_hf.job import sizing
from gpt2_hf.job.run import Run
from gpt2_hf.options.arguments import DataArguments, ModelArguments
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.planning import probe
from gpt2_hf.planning import size as size_rule
from gpt2_hf.planning.size import RULE, Candidate, Measured, Size, Task
from gpt2_hf.runtime.stopwatch import Stopwatch
from gpt2_hf.runtime.utilization import held_memory
from gpt2_hf.trainer.remaining import with_margin

from .. import ranks
from ..conftest import read_json
from ..data_fixtures import documents_of
from ..tiny_models import make_model

# With it size counts for nothing, so that the smallest is the best: it reads most.
RULE_OF_THE_SMALL = replace(RULE, capacity=0.0)
AUTO = ("--size", "auto", "--max_training_hours", "1", "--max_steps", "6", "--sample_tokens", "0")


def measure_for_a_moment() -> None:
    """For each process of a run."""
    sizing._MEASURE_SECONDS = 0.0


def quick_options(text: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a run on a machine that is measured for a moment."""
    monkeypatch.setattr(sizing, "_MEASURE_SECONDS", 0.0)
    monkeypatch.setattr(sizing, "LADDER", (Size(16, 1), Size(32, 1), Size(32, 2)))
    monkeypatch.setattr(size_rule, "RULE", RULE_OF_THE_SMALL)
    return ["train", *text, "--do_predict", "false"]


@pytest.fixture(scope="module")
def text(corpus_folder: Path, tokenizer_folder: Path) -> list[str]:
    """A text that is long enough to be sized for."""
    files = ["--train_file", str(corpus_folder / "t*.txt"), "--validation_file", str(corpus_folder / "validation.txt")]
    return [*files, "--tokenizer_name", str(tokenizer_folder), "--precision", "fp32", "--use_cpu"]


@pytest.fixture
def options(text: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return quick_options(text, monkeypatch)


@pytest.fixture(scope="module")
def sized_run(text: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that chose, and what it printed; tests only read it."""
    folder, out = tmp_path_factory.mktemp("sized") / "run", io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(out):
        options = quick_options(text, monkeypatch)
        assert main([*options, *AUTO, "--checkpoint_dir", str(folder)]) == 0
    return folder, out.getvalue()


def test_choices_are_plain_options_of_the_run(sized_run):
    """The record names them and no size; the model and the Trainer have them."""
    folder, out = sized_run
    record = read_json(folder / "resolved_config.json")
    assert "size" not in record
    (line,) = (line for line in out.splitlines() if line.startswith("chosen: "))
    words = line.split()[1:]
    choices = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    assert {"d_model", "num_layers", "learning_rate", "optim", "dropout", "sequence_mode"} <= choices.keys()
    for name, value in choices.items():
        assert sizing._plain(record[name]) == value
    model = read_json(folder / "best_model" / "config.json")
    assert (model["n_embd"], model["n_layer"]) == (record["d_model"], record["num_layers"]) == (16, 1)
    assert model["n_positions"] == record["max_length"] == 128


def test_each_size_that_is_tried_is_freed(options, tmp_path, monkeypatch):
    """With garbage collection off, no size outlives its measurement."""
    models, alive = [], []
    build, measure = sizing.build_model, probe.quick_step_seconds

    def build_and_keep_an_eye(*args):
        model = build(*args)
        models.append(weakref.ref(model))
        return model

    def count(*args):
        alive.append(sum(model() is not None for model in models))
        return measure(*args)

    monkeypatch.setattr(sizing, "build_model", build_and_keep_an_eye)
    monkeypatch.setattr(probe, "quick_step_seconds", count)
    gc.disable()
    try:
        assert main([*options, *AUTO, "--checkpoint_dir", str(tmp_path / "run")]) == 0
    finally:
        gc.enable()
    assert alive == [1, 1, 1] and not any(model() for model in models)


@pytest.mark.parametrize(("peak", "fits"), [(700, True), (900, False)])
def test_a_size_leaves_room_on_a_gpu(peak, fits):
    """The steps that are measured have no dropout, no evaluation and no average of the weights."""
    assert sizing._leaves_room(peak, memory=1000) == fits


def test_what_is_measured_is_on_the_device(tmp_path, monkeypatch):
    """Before the optimizer is made: with FSDP the Trainer leaves a model on the CPU until it trains."""
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, precision="fp32", per_device_train_batch_size=2)
    text = BlockSamples(documents_of([[5, 6, 7] * 10] * 20), 16, separator_id=0)
    data = SimpleNamespace(samples={"train": text, "validation": text}, collator=PaddingCollator(0))
    model, calls, make = make_model(), [], probe.make_probe_trainer

    def watched(*given):
        trainer = make(*given)
        create = trainer.create_optimizer
        model.to = lambda device: calls.append(device)
        trainer.create_optimizer = lambda: calls.append("optimizer") or create()
        return trainer

    monkeypatch.setattr(probe, "make_probe_trainer", watched)
    assert probe.quick_step_seconds(args, model, data, most_steps=2, seconds=0.0, check=lambda trainer: None) > 0
    assert calls == [args.device, "optimizer"]
    trainer = make(args, model, data, str(tmp_path))
    calls.clear()
    assert probe.activation_bytes(trainer, text, probe.first_epoch(args, text, data.collator, model)) > 0
    assert calls == [args.device, torch.device("cpu")]  # and back, so that FSDP finds it where it was


def test_a_few_lines_say_what_was_chosen_and_why(sized_run):
    """Size, speed, epochs and time; then the options as they may be typed."""
    _, out = sized_run
    lines = [line for line in out.splitlines() if line.startswith(("size: ", "chosen: "))]
    assert lines[0].startswith("size: width 16 with 1 layer (0.0M parameters, ") and " of 1:00:00" in lines[0]
    assert "width 32 with 1 layer" in lines[1] and "0.00 higher" in lines[1]
    assert lines[-1].startswith("chosen: --sequence_mode blocks --max_length 128")


def test_what_is_stated_stays(options, tmp_path):
    """On the command line, and in the config file that asks for a size."""
    config = tmp_path / "mine.json"
    config.write_text(json.dumps({"size": "auto", "d_model": 96, "num_heads": 3, "learning_rate": 0.002}))
    stated = ("--num_layers", "1", "--max_length", "64", "--dropout", "0.3", "--batch_size", "3")
    words = [*options, *AUTO[2:], "--config", str(config), *stated, "--checkpoint_dir", str(tmp_path / "run")]
    assert main(words) == 0
    record = read_json(tmp_path / "run" / "resolved_config.json")
    wanted = {"d_model": 96, "num_heads": 3, "num_layers": 1, "max_length": 64, "dropout": 0.3, "max_steps": 6}
    wanted |= {"learning_rate": 0.002, "per_device_train_batch_size": 3, "optim": "muon", "schedule_by_time": True}
    assert {name: record[name] for name in wanted} == wanted


def test_options_that_act_beside_what_is_chosen(options, tmp_path, capsys):
    """Muon and its learning rate, checkpoints at stated steps; what a resumed run has chosen is checked too."""
    run = ("--checkpoint_dir", str(tmp_path / "run"), "--save_total_limit", "none")
    assert main([*options, *AUTO, *run, "--save_every", "3", "--muon_learning_rate", "0.02"]) == 0
    record = read_json(tmp_path / "run" / "resolved_config.json")
    assert (record["optim"], record["muon_learning_rate"]) == ("muon", 0.02)
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
    capsys.readouterr()
    resumed = ("--size", "auto", "--max_training_hours", "1", "--max_steps", "8", "--resume_from", "checkpoint-4")
    assert main([*options, *resumed, *run, "--lr_scheduler_type", "constant"]) == 2
    message = "--schedule_by_time needs --max_training_hours, and --lr_scheduler_type cosine or linear"
    assert message in capsys.readouterr().err
    assert main([*options, *AUTO, *run, "--muon_learning_rate", "0.02", "--optim", "sgd"]) == 2
    assert "--muon_learning_rate has no effect with --optim sgd" in capsys.readouterr().err


def test_a_size_on_the_command_line_goes_over_a_config(options, tmp_path):
    """Of a file with every default only what has nothing to do with the size is left."""
    config = tmp_path / "all.json"
    config.write_text(json.dumps({"d_model": 32, "num_layers": 1, "max_steps": 9, "seed": 7, "sample_tokens": 0}))
    words = [*options, *AUTO[:4], "--config", str(config), "--checkpoint_dir", str(tmp_path / "run")]
    assert main(["plan", *words[1:]]) == 0
    assert main([*words, "--max_steps", "2"]) == 0
    record = read_json(tmp_path / "run" / "resolved_config.json")
    assert (record["d_model"], record["num_layers"], record["max_steps"], record["seed"]) == (16, 1, 2, 7)


def test_stated_heads_are_for_the_sizes_that_can_have_them(options, tmp_path, monkeypatch):
    """They need not divide the width that a model has without --size."""
    monkeypatch.setattr(sizing, "LADDER", (Size(16, 1), Size(20, 1), Size(32, 1)))
    assert main([*options, *AUTO, "--num_heads", "5", "--checkpoint_dir", str(tmp_path / "run")]) == 0
    record = read_json(tmp_path / "run" / "resolved_config.json")
    assert (record["d_model"], record["num_heads"]) == (20, 5)


def recipe(tmp_path: Path, epochs: float, task: Task, given=None, **training) -> GPT2HFTrainingArguments:
    """The options of a run that reads its text so often at 20,000 tokens a second; those in `given` were typed."""
    args = GPT2HFTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_training_hours=12, **training)
    run = Run(ModelArguments(size="auto"), DataArguments(), args, Stopwatch(), given=given or {})
    tokens = epochs * task.text_tokens
    chosen = Candidate(Size(64, 2), Measured(1_000_000, 20_000), tokens, epochs, 4.0)
    sizing._settle_recipe(sizing.Chooser(run), chosen, task)
    return args


LONG = Task(
    text_tokens=10**9,
    validation_tokens=25_000_000,
    test_tokens=0,
    seconds=43_200.0,
    most_evaluations=5,
    seconds_per_evaluation=2.0,
    tokens_per_step=2048,
    most_epochs=20,
)


def test_a_run_is_evaluated_as_often_as_reckoned(tmp_path):
    """The time that the choice of the size left for evaluations is what they take."""
    epochs = LONG.tokens_in_time(20_000) / LONG.text_tokens
    steps = epochs * LONG.text_tokens / LONG.tokens_per_step
    assert steps / recipe(tmp_path, epochs, LONG).eval_steps == pytest.approx(LONG.evaluations(20_000), rel=0.01)


@pytest.mark.parametrize(
    ("schedule", "by_time"), [("polynomial", None), ("cosine", False), ("constant_with_warmup", None)]
)
def test_a_schedule_by_steps_ends_with_the_time(tmp_path, schedule, by_time):
    """Of a text that is read a third of a time; if it is worn out before, or its epochs are stated, they end it."""
    given = {"lr_scheduler_type": "--lr_scheduler_type"}
    options = {"lr_scheduler_type": schedule}
    if by_time is not None:
        given["schedule_by_time"] = "--schedule_by_time"
    args = recipe(tmp_path, 0.3, LONG, given, **options)
    assert args.max_steps == round(0.3 * LONG.text_tokens / LONG.tokens_per_step) and not args.schedule_by_time
    assert recipe(tmp_path, 20, LONG, given, **options).max_steps == -1
    stated = recipe(tmp_path, 0.3, LONG, {**given, "num_train_epochs": "--max_epochs"}, num_train_epochs=2, **options)
    assert (stated.max_steps, stated.num_train_epochs) == (-1, 2)
    shaped = recipe(tmp_path, 0.3, LONG, {"lr_scheduler_kwargs": "config"}, lr_scheduler_kwargs={"num_cycles": 1})
    assert shaped.max_steps == args.max_steps and not shaped.schedule_by_time  # a cosine by time has no arguments
    for kind in ("cosine", "linear"):
        by_clock = recipe(tmp_path, 0.3, LONG, {"lr_scheduler_type": "config"}, lr_scheduler_type=kind)
        assert (by_clock.max_steps, by_clock.num_train_epochs, by_clock.schedule_by_time) == (-1, 2, True)


def test_a_plan_shows_the_sizes_that_were_compared(options, tmp_path, capsys):
    """A row each, one of them marked, the loss of all others higher."""
    assert main(["plan", *options[1:], *AUTO[:4], "--checkpoint_dir", str(tmp_path / "none")]) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split() == sizing.TABLE_HEAD.split())
    rows = [line for line in lines[head + 1 :] if " × " in line.split("M ")[0]]
    assert len(rows) >= 2 and sum("<- chosen" in row for row in rows) == 1
    losses = [float(row.removesuffix("  <- chosen").split()[-1]) for row in rows]
    assert min(losses) == losses[next(i for i, row in enumerate(rows) if "<- chosen" in row)]
    assert not (tmp_path / "none").exists()


def test_a_resumed_run_keeps_its_choice(options, tmp_path, capsys, monkeypatch):
    """With another time; a choice that is made now would be another one."""
    run = ("--checkpoint_dir", str(tmp_path / "run"))
    save = ("--save_strategy", "steps", "--save_every", "3")
    assert main([*options, *AUTO, *save, *run, "--num_layers", "1"]) == 0
    first = read_json(tmp_path / "run" / "resolved_config.json")
    monkeypatch.setattr(sizing, "LADDER", (Size(64, 2),))
    capsys.readouterr()
    resumed = ("--size", "auto", "--max_training_hours", "3", "--max_steps", "8", "--resume_from", "checkpoint-4")
    assert main([*options, *resumed, *save, "--sample_tokens", "0", *run]) == 0
    out = capsys.readouterr().out
    second = read_json(tmp_path / "run" / "resolved_config.json")
    changed = {name for name in first if name != "provenance" and first[name] != second.get(name)}
    assert changed == {"max_training_hours", "max_steps"}
    assert "size: " not in out and "chosen: " not in out


@pytest.mark.parametrize("stated_by", [0, 1])
def test_a_resumed_run_divides_its_batch_anew(options, tmp_path, stated_by):
    """Whichever of the two states it, as is advised for another number of devices."""
    calls = [(*AUTO, "--num_layers", "1"), ("--size", "auto", "--max_training_hours", "1", "--max_steps", "8")]
    calls[stated_by] += ("--global_batch_size", "16")
    calls[1] += ("--sample_tokens", "0", "--resume_from", "checkpoint-4")
    for words in calls:
        save = ("--save_strategy", "steps", "--save_every", "3", "--checkpoint_dir", str(tmp_path / "run"))
        assert main([*options, *words, *save]) == 0
    config = read_json(tmp_path / "run" / "resolved_config.json")
    assert config["provenance"]["samples_per_step"] == 16 and config["global_batch_size"] == 16


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (("--model_name_or_path", "gpt2"), "--model_name_or_path, which fixes the size; leave one of them out"),
        (("--streaming", "--max_steps", "5"), "--streaming, whose token count is unknown; leave one of them out"),
        (("--distill_from", "a"), "--distill_from, whose cost is not measured; leave one of them out"),
        (("--max_training_hours", "none"), "give --max_training_hours, such as 0.5 for half an hour"),
        (("--max_train_samples", "3"), "--size auto: the training text has 384 tokens"),
        (
            ("--num_heads", "3"),
            "--num_heads 3 divides none of the widths of --size auto (16, 32); use another number, or",
        ),
        (
            ("--num_heads", "5", "--d_model", "96"),
            "--num_heads 5 does not divide --d_model 96; use --num_heads 4 or 6",
        ),
        (("--optim", "galore_adamw", "--max_training_hours", "1"), "--optim galore_adamw: "),
        (("--max_training_hours", "0.0005"), "the shortest that makes sense here is --max_training_hours 0."),
    ],
)
def test_what_cannot_be_sized_is_one_line(options, tmp_path, capsys, words, remedy):
    """With the remedy, and nothing written."""
    assert main([*options, "--size", "auto", *words, "--checkpoint_dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and remedy in error
    assert not (tmp_path / "run").exists()


def test_a_memory_that_is_too_small_is_one_line(options, tmp_path, capsys, monkeypatch):
    """Nothing is tried that would end the process."""
    monkeypatch.setattr(sizing, "device_memory", lambda device: 1000)
    assert main([*options, *AUTO, "--checkpoint_dir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "use a smaller --batch_size or --max_length" in err and "GiB, and 0.0 GiB are free)" in err


def test_a_small_model_does_not_need_gigabytes(tmp_path):
    """Of GPT-2's 50,257 logits a CPU holds those of few tokens at a time."""
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, precision="fp32")
    model = GPT2HFForCausalLM(GPT2HFConfig(n_positions=128, n_embd=64, n_layer=2, n_head=1))
    batches = probe.Batches([np.arange(16)], np.array([2048]), np.array([16 * 128**2]), 1.0)
    assert probe.generous_peak_bytes(args, model, batches) - held_memory(args.device) < 2 * 2**30


def test_without_a_metric_there_is_no_best_model_to_save(options, tmp_path):
    """Checkpoints come as without --size."""
    run = tmp_path / "run"
    assert main([*options, *AUTO, "--metric_for_best_model", "none", "--checkpoint_dir", str(run)]) == 0
    assert [path.name for path in list_checkpoints(run)] == ["checkpoint-6"]


def test_a_memory_that_turns_out_too_small_is_the_same_line(options, tmp_path, capsys, monkeypatch):
    """An allocation that fails is no error of its own; any other failure is."""

    def fail(*args):
        raise error

    monkeypatch.setattr(probe, "quick_step_seconds", fail)
    words = [*options, *AUTO, "--checkpoint_dir", str(tmp_path / "run")]
    error = RuntimeError("DefaultCPUAllocator: not enough memory")
    assert main(words) == 2
    assert "use a smaller --batch_size or --max_length" in capsys.readouterr().err
    error = RuntimeError("another one")
    with pytest.raises(RuntimeError, match="another one"):
        main(words)


def test_processes_agree_on_a_choice(tmp_path, text):
    """The first one measures; a step has as many tokens as with one process, and each line is printed once."""
    stated = ["--d_model", "16", "--num_layers", "1", "--do_predict", "false"]
    words = ["train", *text, *stated, *AUTO, "--checkpoint_dir", str(tmp_path / "run")]
    out = ranks.run(2, words, tmp_path / "log", prepare=measure_for_a_moment)
    record = read_json(tmp_path / "run" / "resolved_config.json")
    assert record["per_device_train_batch_size"] == 8 and record["provenance"]["samples_per_step"] == 16
    assert out.count("chosen: ") == 1 and record["provenance"]["size"]["chosen"] == "16x1"


def test_time_for_trying_sizes_is_no_time_for_the_report(tmp_path, monkeypatch):
    """A minute of it leaves a minute less to train, and no longer a report is reckoned with."""
    tasks = []

    def search(chooser, meter, task_left):
        chooser.run.watch.age_at_start += 60
        tasks.append(task_left())
        return [Candidate(Size(64, 2), Measured(10**6, 20_000), 10**6, 1, 4.0)]

    monkeypatch.setattr(sizing, "_search", search)
    text = BlockSamples(documents_of([list(range(1000))] * 1000), 128, separator_id=0)
    args = GPT2HFTrainingArguments(str(tmp_path), use_cpu=True, max_training_hours=1)
    run = Run(ModelArguments(size="auto", max_length=128), DataArguments(), args, Stopwatch(20.0))
    sizing.settle_size(sizing.Chooser(run), None, SimpleNamespace(samples={"train": text, "validation": text}))
    assert tasks[0].seconds == pytest.approx(3600 - 80 - with_margin(0.75 * 20), abs=20)
    assert "sizing" in run.watch.total


def test_processes_agree_on_the_steps(tmp_path, monkeypatch):
    """Of two that began 20 seconds apart the second takes over what the first reckons, not only the size."""
    monkeypatch.setattr(sizing, "_search", lambda *_: [Candidate(Size(64, 2), Measured(10**6, 20_000), 10**6, 1, 4.0)])
    decided = []
    monkeypatch.setattr(
        sizing.distributed,
        "decided_by_first",
        lambda decide: decided[0] if decided else decided.append(decide()) or decided[0],
    )
    text = BlockSamples(documents_of([list(range(1000))] * 1000), 128, separator_id=0)
    data = SimpleNamespace(samples={"train": text, "validation": text})
    settled = []
    for age in (20.0, 40.0):
        args = GPT2HFTrainingArguments(
            str(tmp_path),
            use_cpu=True,
            max_training_hours=0.03,
            lr_scheduler_type="polynomial",
            per_device_train_batch_size=2,
        )
        given = dict.fromkeys(("lr_scheduler_type", "per_device_train_batch_size"), "command line")
        run = Run(ModelArguments(size="auto", max_length=128), DataArguments(), args, Stopwatch(age), given=given)
        sizing.settle_size(sizing.Chooser(run), None, data)
        settled.append((args.max_steps, args.eval_steps, args.logging_steps, args.warmup_steps, args.num_train_epochs))
    assert settled[0] == settled[1] and settled[0][0] > 100
