"""What a command prints may have no reader; it goes on."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time

import pytest

from gpt2_hf.__main__ import _CommandLine
from gpt2_hf.checkpoints import folders
from gpt2_hf.job.main_job import train
from gpt2_hf.options.arguments import DataArguments, ModelArguments
from gpt2_hf.options.training_arguments import GPT2HFTrainingArguments
from gpt2_hf.runtime import stop_signals
from gpt2_hf.runtime.standard_streams import _LastingFile, lasting_streams

from ..conftest import REPOSITORY, read_json
from ..faults import harness

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes as POSIX has them")

_PRINTS = """
import os, sys
from gpt2_hf.runtime.standard_streams import lasting_streams
with lasting_streams():
    for number in range(3):
        print("a line with ←", number, flush=True)
        print("an error", number, file=sys.stderr)
os.write({out}, b"the end")
"""


def _python(code, *flags, shell_end="", **options):
    line = f'"$0" {" ".join(flags)} -c "$1" {shell_end}'
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **options}
    command = ["bash", "-c", line, sys.executable, code]
    return subprocess.run(command, env=environment, capture_output=True, timeout=60)


@pytest.mark.parametrize("flags", [(), ("-u",)])
@pytest.mark.parametrize(
    ("out", "shell_end"),
    [
        (2, "> >(exec <&-; sleep 0.5)"),  # a pipe that nobody reads
        (2, ">&-"),
        (1, "2>&-"),
        pytest.param(2, "> /dev/full", marks=pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")),
    ],
)
def test_what_nobody_reads_ends_nothing(flags, out, shell_end):
    """A pipe without reader, a closed stream and a full disk: the process goes on, and ends with 0."""
    begin = "import time; time.sleep(0.3)\n" if "sleep" in shell_end else ""  # until the reader has left
    result = _python(begin + _PRINTS.format(out=out), *flags, shell_end=shell_end)
    assert result.returncode == 0
    assert (result.stderr if out == 2 else result.stdout).endswith(b"the end")
    assert b"Error" not in result.stderr + result.stdout


def test_output_is_what_it_was():
    """Everything arrives, in its order; a character that the encoding lacks is replaced."""
    result = _python(_PRINTS.format(out=1), PYTHONIOENCODING="ascii")
    assert result.stdout == b"a line with ? 0\na line with ? 1\na line with ? 2\nthe end"
    assert result.stderr.count(b"an error") == 3


def test_a_slow_reader_ends_nothing():
    """Where somebody has asked that no write waits, what does not fit is dropped."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    with os.fdopen(read, "rb"), _LastingFile(write, "w") as file:
        for _ in range(4):
            assert file.write(b"x" * 100_000) > 0
        print("a line", file=io.TextIOWrapper(io.BufferedWriter(file)), flush=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux")
def test_a_result_that_cannot_be_written_is_no_success():
    """Only a training goes on: of other commands the output is what was asked for."""
    result = subprocess.run(
        ["bash", "-c", '"$0" -m gpt2_hf --version > /dev/full', sys.executable], cwd=REPOSITORY, capture_output=True
    )
    assert result.returncode != 0 and b"No space left" in result.stderr


def train_from_python(argv, output):
    """As a program of somebody's own does, whose stream is that of a Windows console."""
    groups = ModelArguments, DataArguments, GPT2HFTrainingArguments
    model_args, data_args, args = _CommandLine("train", argv).parse(*groups).values
    with open(output, "w", encoding="cp1252") as file, contextlib.redirect_stdout(file):
        code = train(model_args, data_args, args)
        assert sys.stdout is file and file.errors == "strict"
    os._exit(code)


@pytest.mark.parametrize("loses_reader", [False, True])
def test_a_training_from_python_outlives_its_output(tiny_options, tmp_path, loses_reader):
    """`train()`, where the sample has characters that the stream has not, and where `| head` has seen enough."""
    output, run = tmp_path / "output", tmp_path / "run"
    options = [*tiny_options, "--checkpoint_dir", str(run)]
    validation = tmp_path / "validation.txt"
    validation.write_text("Привет, мир\n" * 20, encoding="utf-8")
    options[options.index("--validation_file") + 1] = str(validation)
    if loses_reader:
        os.mkfifo(output)
        reader = os.open(output, os.O_RDONLY | os.O_NONBLOCK)
    process = harness.start_function(train_from_python, options, str(output))
    if loses_reader:
        seen, deadline = b"", time.monotonic() + 100
        while b"\n" not in seen:
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.02)
            with contextlib.suppress(BlockingIOError):
                seen += os.read(reader, 1 << 16)
        os.close(reader)
    process.join(100)
    assert process.exitcode == 0
    newest, broken = folders.newest_valid(run)
    assert newest is not None and newest.name == "checkpoint-25" and not broken
    assert (run / "test_results.json").is_file()
    assert loses_reader or "sample: ??????" in output.read_text("cp1252")


def test_streams_are_given_back(capsys):
    """Streams that are no files stay, and so does everything after the command."""
    before = sys.stdout, sys.stderr
    with lasting_streams():
        assert (sys.stdout, sys.stderr) == before
        print("seen")
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().out == "seen\n"


def test_a_signal_without_reader_is_still_remembered(monkeypatch):
    """The line about a signal cannot be written: the signal counts all the same."""

    def refuse(number, text):
        raise BrokenPipeError(32, "Broken pipe")

    watch = stop_signals.SignalWatch()
    watch.immediate = False
    watch.install()
    try:
        monkeypatch.setattr(os, "write", refuse)
        signal.raise_signal(signal.SIGTERM)
        assert watch.received is signal.SIGTERM and watch.exit_code == 75
    finally:
        watch.restore()


def hear_hangups():
    """As in a terminal, though the tests may run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.parametrize(("name", "saved"), [("SIGTERM", True), ("SIGHUP", True), (None, False)])
def test_a_run_outlives_its_terminal(tiny_options, tmp_path, name, saved):
    """Whoever reads the output goes away: a run ends as ever, and after a signal with a checkpoint and 75."""
    pipe, run = tmp_path / "pipe", tmp_path / "run"
    os.mkfifo(pipe)
    options = ["--checkpoint_dir", str(run), "--save_strategy", "no", "--eval_every", "100000"]
    options += ["--max_steps", "100000" if saved else "60", "--max_epochs", "100000"]
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    process = harness.start(["train", *tiny_options, *options], pipe, prepare=hear_hangups)
    seen, deadline = b"", time.monotonic() + 100
    while b"step 20/" not in seen:
        assert process.is_alive() and time.monotonic() < deadline, seen.decode()
        time.sleep(0.02)
        with contextlib.suppress(BlockingIOError):
            seen += os.read(reader, 1 << 16)
    os.close(reader)
    if name:
        os.kill(process.pid, getattr(signal, name))
    process.join(100)
    assert process.exitcode == (75 if saved else 0)
    newest, broken = folders.newest_valid(run)
    assert (newest is not None) == saved and not broken
    if not saved:
        assert read_json(run / "trainer_state.json")["global_step"] == 60
