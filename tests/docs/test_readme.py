"""The README tells the truth: its commands are those that CI runs, and they work."""

import re
import shlex
import subprocess
import sys

import pytest

from gpt2_hf.__main__ import main

from ..conftest import REPOSITORY, read_json

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (REPOSITORY / "docs" / "how-to" / "troubleshooting.md").read_text(encoding="utf-8")
MAIN_JOB = "pip install -c constraints.txt -e . && python run_clm.py --config training_args/quickstart.json"
TESTS = 'pip install -c constraints.txt -e ".[test]" && pytest'


def test_first_screen_has_the_two_commands():
    """Set up and run, set up and test: both within the first 40 lines."""
    first_screen = "\n".join(README.splitlines()[:40])
    assert MAIN_JOB in first_screen and TESTS in first_screen


def test_ci_runs_the_readmes_test_command():
    """CI installs and tests with the very line that the README shows."""
    assert TESTS in (REPOSITORY / ".ci" / "run").read_text().splitlines()


def test_every_option_that_the_troubleshooting_names_exists():
    """What the table says to type is an option of the main job."""
    from gpt2_hf.options import arguments
    from gpt2_hf.options.parsing import parse
    from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments

    dataclass_types = [arguments.ModelArguments, arguments.DataArguments, GPT2HFTrainingArguments]
    typed = [code for code in re.findall(r"`([^`]+)`", TROUBLESHOOTING) if code.startswith("--")]
    assert len(typed) > 20
    for code in typed:
        options = shlex.split(code.replace("path/to/folder", "wikitext"))
        if len(options) > 1:
            parse(dataclass_types, [*options, "--use_cpu"])
        else:  # named without a value
            assert is_option(dataclass_types, options[0]), code


def is_option(dataclass_types, flag):
    """Whether the parser knows a flag."""
    from gpt2_hf.options.parsing import Parser

    return flag in Parser(dataclass_types)._option_string_actions


def test_quickstart_starts_and_learns(tmp_path, capsys):
    """The first 30 steps of the quickstart, with its real model, tokenizer and text."""
    config = str(REPOSITORY / "training_args" / "quickstart.json")
    whole = ["--max_training_hours", "none", "--schedule_by_time", "false"]
    options = ["--max_steps", "30", *whole, "--warmup_steps", "5", "--checkpoint_dir", str(tmp_path / "run")]
    assert main(["train", "--config", config, *options]) == 0
    out = capsys.readouterr().out
    assert "--- a sample of the model ---" in out and f"results: {tmp_path / 'run'}" in out
    # ln(50257) is 10.82; the promise, 1.5 nats under it, is kept after a twentieth of the run
    assert read_json(tmp_path / "run" / "eval_results.json")["eval_loss"] < 9.32


@pytest.mark.slow
def test_quickstart_ends_within_three_minutes(tmp_path):
    """The whole quickstart, as its own process."""
    command = [sys.executable, "run_clm.py", "--config", "training_args/quickstart.json"]
    result = subprocess.run(
        [*command, "--checkpoint_dir", str(tmp_path / "run")], cwd=REPOSITORY, capture_output=True, timeout=180
    )
    assert result.returncode == 0
    assert read_json(tmp_path / "run" / "eval_results.json")["eval_loss"] < 9.32
