"""The command `gpt2-hf`, the same as `python -m gpt2_hf`: train, plan, evaluate, generate, demo, export,
import, report, tokenizer.

Only this module turns errors into exit codes.
"""

import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import (
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_NO_READER,
    EXIT_USER_ERROR,
    SaveError,
    TrainingDivergedError,
    UserError,
    first_line,
    in_one_line,
)
from .options.secrets import hide, remember_arguments
from .runtime.standard_streams import lasting_streams, replacing_characters

if TYPE_CHECKING:
    from .options.fields import OptionGroup
    from .options.parsing import Parsed
    from .options.source import ClassInSource

_SECONDS_FOR_THE_FIRST = 3.0

_USAGE = """usage: gpt2-hf COMMAND [--config FILE.json] [--option value ...]

Train GPT-2 with Hugging Face tools: exact evaluation, crash-safe checkpoints, a time budget.

commands:
  train     train a model, evaluate it, and write a report
  plan      say what a training run will be, and measure how long it will take
  evaluate  loss and perplexity of a model on a text, or of several: averaged, or compared
  generate  continue a prompt
  demo      a web page on this machine: write with a model, and see what surprises it
  export    write a model for other programs: transformers, llama.cpp (GGUF), onnxruntime
  import    take over a model that nanoGPT or llm.c has trained
  report    draw a run again, or compare several in one picture
  tokenizer train a tokenizer on your own text

gpt2-hf COMMAND --help lists the options of a command with their defaults; of train and plan the common ones, and
--help-all all of them.
Options stand in a flat JSON file, on the command line, or both; the command line wins.
gpt2-hf --version prints the version.

Two other names: `python -m gpt2_hf COMMAND` is the same, with the Python that you name;
`python run_clm.py`, in a copy of the repository, is `gpt2-hf train`.
"""

# What the help of a command ends with, and options that it does not list because the command refuses them.
_EPILOGS = {
    "train": "With --dry_run it is `gpt2-hf plan`. `python run_clm.py`, in a copy of the repository, is the same as "
    "`gpt2-hf train`.",
    "evaluate": "Data options that are left out are those of the model's training, where its record is beside it.",
}
_REFUSED = {"evaluate": ("tokenizer_name", "shuffle_buffer_size", "shift_blocks")}

_LESS_IN_TRAINING = (
    "half the --batch_size needs less (for the same step with twice the --gradient_accumulation_steps, unless "
    "--global_batch_size divides it), then --activation_checkpointing"
)
# What needs less memory, by command.
_LESS_MEMORY = {
    "train": f"{_LESS_IN_TRAINING}; the run goes on from its last checkpoint with --resume_from latest",
    "plan": _LESS_IN_TRAINING,
    "evaluate": "half the --batch_size needs less",
    "generate": "a smaller --batch_size or --max_new_tokens needs less",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code (0, 1, 2, 3, 75, 130 or 141; see docs/reference/exit-codes.md)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    is_text = arguments[:1] == ["generate"]
    with lasting_streams() if arguments[:1] == ["train"] else replacing_characters(result_in_utf8=is_text):
        try:
            code = _run(arguments)
        except BrokenPipeError as error:
            return EXIT_NO_READER if _has_lost_reader("\n") else _fail(error)
        return EXIT_NO_READER if _has_lost_reader() else code  # at Python's end an error cannot be caught


def _has_lost_reader(probe: str = "") -> bool:
    """Whether the reader of standard output, such as `head`, is gone; what is left for it then goes nowhere.

    Args:
        probe: is written, because an empty text does not show it where nothing waits in a buffer.
    """
    try:
        print(end=probe, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _run(arguments: list[str]) -> int:
    remember_arguments(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0 if arguments else EXIT_USER_ERROR
    command, *rest = arguments
    try:
        if "--version" in arguments[:2]:  # of `python run_clm.py` it is the second
            from . import __version__

            print(__version__)
            return 0
        if command not in _COMMANDS:
            raise UserError(f"unknown command {command!r}; choose one of {', '.join(_COMMANDS)}")
        return _COMMANDS[command](rest)
    except (UserError, TrainingDivergedError, SaveError) as error:
        # Every process that cannot save has its own reason; wrong input is the same for all.
        _say_error(error, everywhere=isinstance(error, SaveError))
        return error.exit_code
    except KeyboardInterrupt:  # while training, Ctrl-C saves a checkpoint first, see `stop_signals`
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise  # see `main`
    except (MemoryError, RuntimeError) as error:
        from .runtime.distributed import is_lost_connection
        from .runtime.utilization import is_out_of_memory

        if is_out_of_memory(error):
            remedy = _LESS_MEMORY.get(command, "end other programs, or use a machine with more")
            _say_error(f"the memory is too small to {command} ({first_line(error)}): {remedy}", everywhere=True)
            return EXIT_USER_ERROR
        if not is_lost_connection(error):
            return _fail(error)
        reason = in_one_line(error)
        is_training = command == "train"
        remedy = "The checkpoints are intact: go on with --resume_from latest" if is_training else "Run it again"
        message = "another process of the run is gone or cannot be reached; its own output says why"
        _say_error(f"{message}. {remedy} ({reason[:200]})", everywhere=True)
        return EXIT_FAILURE
    except Exception as error:
        return _fail(error)


def _fail(error: Exception) -> int:
    """An error that nobody has expected: raised again, unless its traceback would show a secret."""
    text = "".join(traceback.format_exception(error))
    if hide(text) == text:
        raise error
    print(hide(text), file=sys.stderr, flush=True)
    return EXIT_FAILURE


def _say_error(error: Exception | str, everywhere: bool) -> None:
    """Print an error as a line; of several processes only the first, unless it is about something everywhere."""
    rank = int(os.environ.get("RANK", 0))
    if rank and not everywhere:
        # A launcher ends all processes when the first has failed. One that it lets live is the only one that failed.
        time.sleep(_SECONDS_FOR_THE_FIRST)
    process = f" (process {rank})" if rank else ""
    print(hide(f"error{process}: {error}"), file=sys.stderr, flush=True)


class _CommandLine:
    """What was typed after the name of a command."""

    def __init__(self, command: str, argv: list[str]):
        from .options.parsing import ConfigFile

        self.command = command
        self.argv, path = _take_option(argv, "--config")
        self.config = None if path is None else ConfigFile(path)

    def parse(self, *sources: "type | OptionGroup") -> "Parsed":
        from .options.parsing import parse

        texts: dict[str, Any] = {"prog": f"gpt2-hf {self.command}", "epilog": _EPILOGS.get(self.command)}
        return parse(sources, self.argv, self.config, refused=_REFUSED.get(self.command, ()), **texts)

    def check(self, *sources: "type | tuple[ClassInSource, ...]") -> None:
        """Show the help, or find what is wrong, before the classes that stand in a source are imported."""
        from .options.source import group_in_source

        groups = [group_in_source(*source) if isinstance(source, tuple) else source for source in sources]
        known = [group for group in groups if group is not None]
        if len(known) == len(groups):
            self.parse(*known)


# Each command reads its options before it imports what it runs, so that help and errors do not wait for that.


def _train(argv: list[str], dry_run: bool = False) -> int:
    from .runtime.stopwatch import Stopwatch

    watch = Stopwatch()
    from .options.arguments import ClusterArguments, DataArguments, ModelArguments
    from .options.source import TRAINING

    argv, typed = _take_flag(argv, "--dry_run")
    if dry_run and typed is False:
        raise UserError("--dry_run false contradicts the command plan; leave it out, or use train")
    dry_run = dry_run or bool(typed)
    line = _CommandLine("plan" if dry_run else "train", argv)
    cluster = [ClusterArguments] if dry_run else []
    line.check(ModelArguments, DataArguments, TRAINING, *cluster)
    from .runtime.stop_signals import SignalWatch

    signals = SignalWatch()
    if not dry_run:
        signals.install()  # what is imported now takes a minute on a busy disk
    try:
        from .options.training_arguments import GPT2HFTrainingArguments

        parsed = line.parse(ModelArguments, DataArguments, GPT2HFTrainingArguments, *cluster)
        if line.config is not None and parsed.given.get("output_dir") == "config":
            from .job.resuming import refuse_moved_run

            refuse_moved_run(line.config.path, parsed.values[2])
        if dry_run:
            from .job.dry_run import plan

            model_args, data_args, args, devices = parsed.values
            return plan(model_args, data_args, args, devices, parsed.given, watch)
        from .job.main_job import train

        model_args, data_args, args = parsed.values
        code = train(model_args, data_args, args, parsed.given, watch, signals)
        from .runtime.distributed import leave

        leave()
        return code
    finally:
        signals.restore()


def _plan(argv: list[str]) -> int:
    return _train(argv, dry_run=True)


def _evaluate(argv: list[str]) -> int:
    from .options.arguments import DataArguments, EvaluationArguments

    parsed = _CommandLine("evaluate", argv).parse(EvaluationArguments, DataArguments)
    from .commands.evaluate import run_evaluation

    args, data_args = parsed.values
    return run_evaluation(args, data_args, given=parsed.given)


def _generate(argv: list[str]) -> int:
    from .options.arguments import GenerationArguments

    parsed = _CommandLine("generate", argv).parse(GenerationArguments)
    from .commands.generate import run_generation

    (args,) = parsed.values
    return run_generation(args, given=parsed.given)


def _demo(argv: list[str]) -> int:
    from .options.arguments import DemoArguments

    parsed = _CommandLine("demo", argv).parse(DemoArguments)
    from .commands.demo import run_demo

    (args,) = parsed.values
    return run_demo(args, parsed.given)


def _export(argv: list[str]) -> int:
    from .options.arguments import ExportArguments

    parsed = _CommandLine("export", argv).parse(ExportArguments)
    from .commands.export import run_export

    return run_export(*parsed.values)


def _import(argv: list[str]) -> int:
    from .options.arguments import ImportArguments

    parsed = _CommandLine("import", argv).parse(ImportArguments)
    from .commands.import_model import run_import

    return run_import(*parsed.values)


def _report(argv: list[str]) -> int:
    from .options.arguments import ReportArguments

    if argv and not argv[0].startswith("-"):
        argv = ["--runs", *argv]
    parsed = _CommandLine("report", argv).parse(ReportArguments)
    from .commands.report import run_report

    (args,) = parsed.values
    return run_report(args, parsed.given)


def _tokenizer(argv: list[str]) -> int:
    from .options.source import TOKENIZER_TRAINING

    line = _CommandLine("tokenizer", argv)
    line.check(TOKENIZER_TRAINING)
    from .data.tokenizer_training import TokenizerTrainingArguments, run_tokenizer_training

    return run_tokenizer_training(*line.parse(TokenizerTrainingArguments).values)


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "plan": _plan,
    "evaluate": _evaluate,
    "generate": _generate,
    "demo": _demo,
    "export": _export,
    "import": _import,
    "report": _report,
    "tokenizer": _tokenizer,
}


def _take_option(argv: list[str], name: str) -> tuple[list[str], str | None]:
    """Remove `name VALUE` or `name=VALUE` from the arguments."""
    rest: list[str] = []
    value = None
    tokens = iter(argv)
    for token in tokens:
        if token != name and not token.startswith(f"{name}="):
            rest.append(token)
            continue
        if value is not None:
            raise UserError(f"{name} is given twice; keep one, and give what differs as options")
        value = next(tokens, None) if token == name else token.split("=", 1)[1]
        if value is None:
            raise UserError(f"{name} needs a value")
    return rest, value


def _take_flag(argv: list[str], name: str) -> tuple[list[str], bool | None]:
    """Remove a flag from the arguments, as `parsing` reads one: alone, or with true or false; the last one counts."""
    from argparse import ArgumentTypeError

    from .options.fields import Reader, spellings

    names, read = spellings(name.removeprefix("--")), Reader(bool)
    rest: list[str] = []
    value = None
    tokens = deque(argv)
    while tokens:
        token = tokens.popleft()
        option, is_joined, text = token.partition("=")
        if option not in names:
            rest.append(token)
            continue
        if not is_joined:
            text = tokens.popleft() if tokens and not tokens[0].startswith("-") else "true"
        try:
            value = read(text)
        except ArgumentTypeError as error:
            raise UserError(f"{option}: {error}") from error
    return rest, value


if __name__ == "__main__":
    sys.exit(main())
