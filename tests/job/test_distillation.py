"""`--distill_from` on the command line: what is refused, what is written down, and that a run goes on exactly."""

import shutil

import pytest
import torch

from gpt2_hf.__main__ import main
from gpt2_hf.commands.model_loading import load_trained
from gpt2_hf.data.tokenizer import load_tokenizer
from gpt2_hf.errors import UserError
from gpt2_hf.options.parsing import parse
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.trainer.distillation import fingerprint

from .. import ranks
from ..conftest import needs_fork_server, read_json
from ..runs import assert_same_state, final_state, history
from ..tiny_models import make_model, make_stock


@pytest.fixture(scope="module")
def tied_run(tmp_path_factory, tiny_options):
    """A second teacher, whose unused tokens share an embedding."""
    folder = tmp_path_factory.mktemp("tied") / "run"
    options = ["--tie_unused_tokens", "--seed", "1", "--max_steps", "10", "--checkpoint_dir", str(folder)]
    assert main(["train", *tiny_options, *options]) == 0
    return folder


def without_option(options, name):
    """Options of the command line without one that has a value."""
    at = options.index(name)
    return [*options[:at], *options[at + 2 :]]


def test_a_run_with_teachers_is_recorded_and_goes_on_bit_for_bit(train_tiny, finished_run, tied_run, tmp_path, capsys):
    """Two teachers, one of them tied as the student is; a teacher that was moved is the same one."""
    teachers = [str(finished_run / "best_model"), str(tied_run / "checkpoint-10")]
    options = ("--tie_unused_tokens", "--lr_scheduler_type", "constant", "--distill_from")
    assert train_tiny(tmp_path / "whole", *options, *teachers) == 0
    out = capsys.readouterr().out
    assert f"teachers: {teachers[0]} (0.0M parameters), {teachers[1]}" in out
    assert "weight 0.45, temperature 1.2" in out and ", cross-entropy " in out
    record = read_json(tmp_path / "whole" / "resolved_config.json")
    assert (record["distill_from"], record["distill_alpha"], record["distill_temperature"]) == (teachers, 0.45, 1.2)
    fingerprints = [fingerprint(load_trained(path)[0]) for path in teachers]
    assert record["provenance"]["teachers"] == fingerprints and len({*fingerprints}) == 2

    assert train_tiny(tmp_path / "cut", *options, *teachers, "--max_steps", "10") == 0
    shutil.copytree(teachers[0], tmp_path / "moved")
    moved = [str(tmp_path / "moved"), teachers[1]]
    assert train_tiny(tmp_path / "cut", *options, *moved, "--resume_from", "latest") == 0
    assert_same_state(*(final_state(tmp_path / run, 25) for run in ("cut", "whole")))
    assert history(tmp_path / "cut") == history(tmp_path / "whole")
    assert all(entry["cross_entropy"] > entry["loss"] for entry in history(tmp_path / "whole") if "loss" in entry)


def test_a_resumed_run_keeps_its_teachers(train_tiny, finished_run, tied_run, tmp_path, capsys):
    """Other weights under the same name, other teachers, or none are refused; another weight in the loss is said."""
    teacher = tmp_path / "teacher"
    shutil.copytree(finished_run / "best_model", teacher)
    options = ("--distill_from", str(teacher))
    assert train_tiny(tmp_path / "run", *options, "--max_steps", "10") == 0
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    shutil.copy(tied_run / "best_model" / "model.safetensors", teacher)
    for changed in (options, ("--distill_from", str(tied_run / "best_model")), ()):
        assert train_tiny(tmp_path / "run", *changed, "--resume_from", "latest") == 2
        assert "--resume_from: the weights of the models in --distill_from are not those" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before
    shutil.copy(finished_run / "best_model" / "model.safetensors", teacher)
    resume = ("--distill_alpha", "0.6", "--resume_from", "latest", "--max_steps", "12")
    assert train_tiny(tmp_path / "run", *options, *resume) == 0
    assert "distill_alpha 0.45 → 0.6" in capsys.readouterr().out


def test_what_cannot_teach_is_refused(tiny_options, finished_run, tmp_path, capsys):
    """Another tokenizer, too few positions, another number of tokens, no model: one line, and nothing written."""
    load_tokenizer().save_pretrained(tmp_path / "gpt2")
    make_stock().save_pretrained(tmp_path / "gpt2")
    teacher = finished_run / "best_model"
    shutil.copytree(teacher, tmp_path / "padded")
    make_model(vocab_size=400).save_pretrained(tmp_path / "padded")
    shutil.copytree(teacher, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"x" * 100)
    output = ("--checkpoint_dir", str(tmp_path / "run"))
    longer = [*without_option(tiny_options, "--max_length"), "--max_length", "48"]
    capsys.readouterr()
    for options, path, message in (
        (tiny_options, tmp_path / "gpt2", "has another tokenizer than this run"),
        (longer, teacher, "has 32 positions and the samples have 48; use --max_length 32"),
        (tiny_options, tmp_path / "padded", "has 400 tokens and the model 384"),
        (tiny_options, tmp_path / "damaged", "model.safetensors"),
        (tiny_options, tmp_path / "nowhere", "nowhere"),
    ):
        assert main(["train", *options, *output, "--distill_from", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error and "--distill_from" in error, error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distill_alpha", "0.5"], "--distill_alpha has no effect without --distill_from"),
        (["--distill_temperature", "2"], "--distill_temperature has no effect without --distill_from"),
        (["--distill_from", "a", "--distill_alpha", "1.5"], "--distill_alpha must be at most 1, got 1.5"),
        (["--distill_from", "a", "--distill_temperature", "0"], "--distill_temperature must be above 0"),
        (["--distill_from", "a", "--label_smoothing_factor", "0.1"], "--label_smoothing_factor spreads probability"),
    ],
)
def test_options_that_do_nothing_or_contradict_are_refused(options, message):
    """Before anything is read."""
    with pytest.raises(UserError, match=message):
        parse([GPT2HFTrainingArguments], [*options, "--use_cpu"])


@pytest.mark.usefixtures("quick_probe")
def test_a_plan_knows_what_teachers_cost(tiny_options, finished_run, tmp_path, capsys):
    """Their memory, their arithmetic, and the time of steps that are made with them."""
    lines = []
    options = [*tiny_options, "--max_train_samples", "40", "--checkpoint_dir", str(tmp_path / "run"), "--nproc", "2"]
    for teachers in ([], ["--distill_from", str(finished_run / "best_model")]):
        assert main(["plan", *options, *teachers]) == 0
        lines.append(capsys.readouterr().out)
    assert "teachers" not in lines[0]
    assert "the head included, and 2 for teachers" in lines[1] and "teachers 0 MiB, " in lines[1]
    assert not (tmp_path / "run").exists()


def test_a_fingerprint_is_that_of_the_numbers():
    """Of each of them, whatever the model's mode and path."""
    model = make_model()
    before = fingerprint(model)
    assert fingerprint(make_model().bfloat16()) != before
    assert fingerprint(make_model().train()) == before
    with torch.no_grad():
        model.transformer.h[2].mlp.c_proj.weight[5, 7] += 1e-6
    assert fingerprint(model) != before


@pytest.mark.distributed
@needs_fork_server
@pytest.mark.parametrize("fsdp", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_processes_learn_the_same_as_one(tiny_options, finished_run, tied_run, tmp_path, fsdp):
    """Copies of the student, or shards of it: the losses of one process, plain ones included, to rounding."""
    options = [*tiny_options, "--max_steps", "6", "--logging_steps", "2", "--dropout", "0", "--global_batch_size", "8"]
    options += [
        "--tie_unused_tokens",
        "--distill_from",
        str(finished_run / "best_model"),
        str(tied_run / "best_model"),
    ]
    logs = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        sharded = ["--fsdp"] if fsdp and processes == 2 else []
        command = ["train", *options, *sharded, "--batch_size", "4", "--checkpoint_dir", str(folder)]
        ranks.run(processes, command, tmp_path / f"log{processes}", fsdp=fsdp)
        logs.append(history(folder))
    for key in ("loss", "cross_entropy", "grad_norm", "eval_loss"):
        one, two = ([entry[key] for entry in log if key in entry] for log in logs)
        assert one and two == pytest.approx(one, abs=2e-5), key
