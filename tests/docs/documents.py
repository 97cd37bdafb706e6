"""The pages of the repository, and the commands that they show."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from gpt2_hf.data.tokenizer_training import TokenizerTrainingArguments
from gpt2_hf.options import arguments
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments

from ..conftest import REPOSITORY

_TRAINING = [arguments.ModelArguments, arguments.DataArguments, GPT2HFTrainingArguments]
ARGUMENTS = {
    "train": _TRAINING,
    "plan": [*_TRAINING, arguments.ClusterArguments],
    "evaluate": [arguments.EvaluationArguments, arguments.DataArguments],
    "generate": [arguments.GenerationArguments],
    "demo": [arguments.DemoArguments],
    "export": [arguments.ExportArguments],
    "import": [arguments.ImportArguments],
    "report": [arguments.ReportArguments],
    "tokenizer": [TokenizerTrainingArguments],
}

# What stands before the command's own words: launchers, the container's image, the script.
_COMMAND = re.compile(r"(?:gpt2-hf|-m gpt2_hf) (\w[\w-]*)(.*)|(?:run_clm\.py|train\.sbatch|gpt2_hf) (--.*)")


def pages() -> list[Path]:
    """Every page that a reader is led to."""
    top = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    folders = [REPOSITORY / name / "README.md" for name in ("examples", "training_args", "benchmarks")]
    docs = [page for page in (REPOSITORY / "docs").rglob("*.md") if "_build" not in page.parts]
    return [*top, *folders, *sorted(docs)]


def code_blocks(text: str, language: str) -> list[str]:
    """The code of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


def shown_commands(text: str) -> Iterator[str]:
    """Each line of the page's shell blocks, and each cell or phrase in backquotes that is a whole command."""
    for block in code_blocks(text, "bash"):
        yield from block.replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    yield from re.findall(r"`([^`\n]*(?:gpt2-hf|-m gpt2_hf|run_clm\.py|train\.sbatch) [^`\n]*)`", prose)


def parsed_words(line: str) -> tuple[str, list[str]] | None:
    """A command of this package and its words; `None` for other programs' commands, and those that are cut short."""
    line = re.split(r" (?:&&|\||>) ", line)[-1] if "run_clm.py" in line else re.split(r" (?:&&|\||>) ", line)[0]
    match = _COMMAND.search(line)
    if match is None or "..." in line or "…" in line:
        return None
    command, words = (match[1], match[2]) if match[1] else ("train", match[3])
    if command not in ARGUMENTS or not words.strip() or "--help" in words:  # a mention, or a look at the help
        return None
    return command, shlex.split(words, comments=True)
