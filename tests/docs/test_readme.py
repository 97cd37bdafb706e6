"""The README tells the truth: its commands are those that CI runs, and they work."""

import re
import shlex
import subprocess
import sys

import pytest

from gpt2_hf.__main__ import main

from ..conftest import REPOSITORY, read_json

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
HOW_TO = REPOSITORY / "docs" / "how-to"
CLUSTER = (HOW_TO / "cluster.md").read_text(encoding="utf-8")
TROUBLESHOOTING = (HOW_TO / "troubleshooting.md").read_text(encoding="utf-8")
MAIN_JOB = "pip install -c constraints.txt -e . && python run_clm.py --config training_args/quickstart.json"
TESTS = 'pip install -c constraints.txt -e ".[test]" && pytest'


def test_first_screen_has_the_two_commands():
    """Set up and run, set up and test: both within the first 40 lines."""
    first_screen = "\n".join(README.splitlines()[:40])
    assert MAIN_JOB in first_screen and TESTS in first_screen


def test_ci_runs_the_readmes_test_command():
    """CI installs and tests with the very line that the README shows."""
    assert TESTS in (REPOSITORY / ".ci" / "run").read_text().splitlines()


def test_every_file_that_the_readme_names_exists():
    """Links and paths in the README lead somewhere."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", README):
        assert (REPOSITORY / target).exists(), target


def test_every_option_that_the_readme_names_exists():
    """Flags in the README's commands are known to the parsers."""
    from gpt2_hf.options import arguments
    from gpt2_hf.options.parsing import Parser
    from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments

    parser = Parser([arguments.ModelArguments, arguments.DataArguments, GPT2HFTrainingArguments], add_help=False)
    known = set(parser._option_string_actions)
    for dataclass_type in (
        arguments.ClusterArguments,
        arguments.GenerationArguments,
        arguments.EvaluationArguments,
        arguments.ExportArguments,
        arguments.ReportArguments,
    ):
        known |= {f"--{name}" for name in arguments.names_of(dataclass_type)}
    text = README + CLUSTER
    commands = [
        line
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if re.search(r"gpt2[-_]hf|run_clm\.py", line)
    ]
    # a cell of the table of devices: the launcher's own options stand before the script
    commands += re.findall(r"`([^`\n]*(?:run_clm\.py|-m gpt2_hf|gpt2-hf train|train\.sbatch) --[^`\n]*)`", text)
    assert commands
    for line in commands:
        after = re.split(r"run_clm\.py|train\.sbatch|-m gpt2_hf|gpt2[-_]hf:?\w* ", line)[-1]
        for token in shlex.split(after, comments=True):
            if token.startswith("--") and token not in ("--config", "--dry_run"):
                assert token in known, f"{token} in: {line}"


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
