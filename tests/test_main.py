"""The commands: help at once, clear errors, the right exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from gpt2_hf.__main__ import _COMMANDS, main
from gpt2_hf.options.arguments import COMMON

from .conftest import REPOSITORY, needs_posix_signals, python

COMMANDS = ["train", "plan", "evaluate", "generate", "demo", "export", "report", "tokenizer"]


# The three names of the command; the first is what the installed script holds.
GPT2_HF = ["-c", "import sys; from gpt2_hf.__main__ import main; sys.exit(main())"]
PYTHON_M = ["-m", "gpt2_hf"]
RUN_CLM = [str(REPOSITORY / "run_clm.py")]

# What needs no torch, and its exit code.
LIGHT = [
    *[([word], code) for word, code in [("--help", 0), ("--version", 0), ("trian", 2)]],
    *[(["train", *argv], code) for argv, code in [(["--lr", "1"], 2), (["--help-all"], 0), (["--version"], 0)]],
    *[([command, "--help"], 0) for command in COMMANDS],
    *[([command, "--outptu_dir", "x"], 2) for command in COMMANDS],
    (["train", "--d_model", "100", "--num_heads", "12"], 2),
    (["train", "--weight_decay", "inf"], 2),
]
HEAVY = ("torch", "transformers", "datasets", "numpy")


def test_help_is_immediate():
    """The overview lists the commands."""
    result = subprocess.run([sys.executable, *PYTHON_M, "--help"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and all(f"\n  {command} " in result.stdout for command in COMMANDS)


def test_help_and_typing_errors_do_without_torch():
    """Each by itself ends with its code, and has imported nothing that takes seconds."""
    program = f"""
import sys
from gpt2_hf.__main__ import main
for argv, code in {LIGHT}:
    try:
        ended = main(argv)
    except SystemExit as end:
        ended = end.code
    assert ended == code, (argv, ended)
    imported = [name for name in {HEAVY} if name in sys.modules]
    assert not imported, (argv, imported)
"""
    result = python(program)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("name", "argv", "code"),
    [(GPT2_HF, ["train", "--help-all"], 0), (PYTHON_M, ["train", "--lr", "1"], 2), (RUN_CLM, ["--help"], 0)],
)
def test_help_and_typing_errors_do_not_keep_one_waiting(name, argv, code):
    """By each name of the command: under a second of processor time in the best of three, without torch."""
    resource = pytest.importorskip("resource", reason="the processor time of a child process is a POSIX matter")
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-X", "importtime", *name, *argv]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert result.returncode == code, result.stderr[-1000:]
        imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
        assert "gpt2_hf.errors" in imported and not imported & {*HEAVY}
        # its own processor time: what other work on the machine adds is not the command's
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        if min(seconds) < 1.0:
            return
    pytest.fail(f"{argv} took {min(seconds):.1f} s of processor time")


@needs_posix_signals
def test_a_signal_while_libraries_are_imported_is_heeded(tmp_path, popen):
    """On a busy disk that takes a minute; a cluster's warning then ends in the code that says to run again."""
    (tmp_path / "transformers.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    process = popen([sys.executable, *PYTHON_M, "train"], env=environment, stdout=subprocess.PIPE, cwd=tmp_path)
    assert process.stdout.readline() == b"importing\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=50) == 75


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_defaults(command, capsys):
    """--help of a command groups its options and shows defaults."""
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert exit_.value.code == 0
    assert f"usage: gpt2-hf {command} [--config FILE.json] [--option value ...]" in out
    assert "(default: " in out


@pytest.mark.parametrize("flag", ["--help-all", "--help_all"])
def test_help_shows_own_options_first_and_each_name_once(flag, capsys):
    """Groups in the order of the work, the user's names, the kind of value; what is inherited comes last."""
    with pytest.raises(SystemExit):
        main(["train", flag])
    out = capsys.readouterr().out
    groups = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert groups == ["options:", "model:", "data:", "training:", "training, of TrainingArguments:"]
    assert "--per_device_train_batch_size, --batch_size N" in out and "--learning_rate X" in out
    assert "--batch-size" not in out
    own, inherited = out.split("training, of TrainingArguments:")
    assert "--max_training_hours X" in own and "--adafactor" not in own
    assert "--torch_compile [true|false]" in inherited and "--batch_size" not in inherited


def test_help_of_train_shows_what_people_use(capsys):
    """About thirty options, which all exist; the others, and no option twice, are in --help-all."""
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    short = capsys.readouterr().out
    shown = set(re.findall(r"^  --(\w+)", short, flags=re.MULTILINE))
    assert shown == COMMON | {"help"} and 30 <= len(shown) <= 45
    with pytest.raises(SystemExit):
        main(["plan", "--help-all"])
    everything = re.findall(r"^  --(\w+)", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(everything) == len(set(everything)) > 120 and shown <= set(everything)
    further = int(re.search(r"--help-all shows (\d+) further options", short)[1])
    assert len(everything) == len(shown) + further


def test_help_of_evaluate_lists_what_it_takes(capsys):
    """And says which text and protocol are scored; what it always refuses is neither listed nor suggested."""
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    out = capsys.readouterr().out
    assert "Data options that are left out are those of the model's training, where" in " ".join(out.split())
    assert "--streaming" in out and not re.findall(r"--(?:tokenizer_name|shuffle_buffer_size|shift_blocks)", out)
    assert main(["evaluate", "--tokenizer", "gpt2"]) == 2
    assert "tokenizer_name" not in capsys.readouterr().err


def test_no_option_is_shown_with_the_help_of_its_opposite(capsys):
    """--no_x is understood, as in transformers, and not listed."""
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    out = capsys.readouterr().out
    assert "--do_predict [true|false]" in out and not re.findall(r"--no[_-]\w+", out)


def test_the_three_names_of_the_command_are_told_apart(capsys):
    """One is recommended: it is the one in every usage line and hint."""
    main(["--help"])
    out = capsys.readouterr().out
    assert out.startswith("usage: gpt2-hf COMMAND")
    assert "`python -m gpt2_hf COMMAND` is the same" in out and "`python run_clm.py`" in out
    hints = [
        path for path in (REPOSITORY / "gpt2_hf").rglob("*.py") if "python -m gpt2_hf " in path.read_text("utf-8")
    ]
    assert [path.name for path in hints] == ["__main__.py"]  # the text above


def test_without_a_command_the_overview_is_shown(capsys):
    """Nothing asked for is a usage error, but a helpful one."""
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian'; choose one of train, plan"),
        (["train", "--config"], "--config needs a value"),
        (["train", "--config", "a.json", "--config=b.json"], "--config is given twice; keep one"),
        (["train", "--dry_run", "maybe"], "--dry_run: invalid value: 'maybe' (true or false is expected)"),
        (["plan", "--dry_run=false"], "--dry_run false contradicts the command plan; leave it out, or use train"),
        (["report", "a", "--runs", "b"], "--runs is given twice; put all values after one: --runs a b"),
        (["generate", "--temperature", "-1"], "--temperature must be at least 0"),
        (["generate", "--top_p", "0"], "--top_p must be above 0, got 0"),
        (["export", "--model_path", "./nowhere"], "--model_path: there is no checkpoint './nowhere'"),
    ],
)
def test_bad_commands_are_one_line(argv, message, capsys):
    """Exit code 2 and one line on stderr."""
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "plans"),
    [
        (["--dry_run"], True),
        (["--dry-run=true"], True),
        (["--dry_run", "yes"], True),
        (["--dry_run", "false"], False),
        (["--dry_run=false"], False),
        (["--dry_run", "--dry_run=no"], False),
    ],
)
def test_a_dry_run_is_true_or_false(flags, plans, capsys):
    """As every other flag: `--nproc` is known to a plan alone."""
    assert main(["train", *flags, "--nproc", "0"]) == 2
    assert ("--nproc must be at least 1" in capsys.readouterr().err) == plans


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are a POSIX matter")
@pytest.mark.parametrize("command", ["train", "tokenizer"])
def test_a_config_may_come_through_a_pipe(command, tmp_path, monkeypatch, capsys):
    """`--config <(program)` of a shell can be read once only."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    content = {"train_file": "./nowhere.txt", "output_dir": "out"}
    writer = threading.Thread(target=Path("pipe").write_text, args=(json.dumps(content),), daemon=True)
    writer.start()
    assert main([command, "--config", "pipe"]) == 2
    assert "nowhere.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "python"],
)
@pytest.mark.parametrize("command", ["train", "plan", "evaluate", "generate", "tokenizer"])
def test_too_little_memory_on_the_device_is_one_line(monkeypatch, capsys, error, command):
    """The likeliest failure on a small card, or a small machine, names its remedies, which are the command's own."""

    def run_out(argv):
        raise error

    monkeypatch.setitem(_COMMANDS, command, run_out)
    assert main([command]) == 2
    err = capsys.readouterr().err
    assert f"too small to {command} (" in err and err.count("\n") == 1
    assert ("--resume_from latest" in err) == (command == "train")
    assert ("--batch_size" in err) == (command != "tokenizer")
    assert ("--global_batch_size" in err) == ("--gradient_accumulation_steps" in err) == (command in ("train", "plan"))


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_process_that_is_lost_is_one_line(monkeypatch, capsys, command):
    """Only a training has something to go on from."""

    def lose(argv):
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:144] Connection closed by peer")

    monkeypatch.setitem(_COMMANDS, command, lose)
    assert main([command]) == 1
    err = capsys.readouterr().err
    assert "another process of the run is gone" in err and err.count("\n") == 1
    assert ("--resume_from latest" in err) == (command == "train")


@pytest.mark.skipif(sys.platform == "win32", reason="pipes as POSIX has them")
@pytest.mark.parametrize(("flags", "generates"), [([], False), (["-u"], False), ([], True)])
def test_output_that_nobody_reads_ends_quietly(finished_run, flags, generates):
    """`| head` has enough, before the first line or in the middle: the code of SIGPIPE, and no traceback."""
    sampling = ["--prompt", "The", "--num_samples", "3", "--max_new_tokens", "2", "--batch_size", "1"]
    arguments = ["generate", "--model_path", str(finished_run / "best_model"), *sampling] if generates else ["--help"]
    command = [sys.executable, *flags, *PYTHON_M, *arguments]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141, err
    assert "Traceback" not in err and "BrokenPipe" not in err


def test_what_was_measured_is_kept_when_nobody_reads(finished_run, tmp_path):
    """A score may have taken hours; it is in the file, whoever has left, and the command ends as quietly."""
    output = tmp_path / "score.json"
    arguments = ["evaluate", "--model_path", str(finished_run / "best_model"), "--output_file", str(output)]
    command = [sys.executable, "-u", *PYTHON_M, *arguments]
    with subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.close()
        err = process.stderr.read()
    assert process.returncode == 141 and json.loads(output.read_text())["loss"] > 0, err
    assert "Traceback" not in err and "BrokenPipe" not in err


def test_another_broken_pipe_is_no_quiet_end(monkeypatch, capsys):
    """Only that of standard output has a reader who had enough; the traceback of another hides secrets too."""
    secret = "hf_abcdefghijklmnopqrstuvwxyz012345"

    def break_pipe(argv):
        raise BrokenPipeError(32, "Broken pipe") from RuntimeError(secret)

    monkeypatch.setitem(_COMMANDS, "evaluate", break_pipe)
    assert main(["evaluate", "--hub_token", secret]) == 1
    err = capsys.readouterr().err
    assert "BrokenPipeError" in err and secret not in err


def test_version(capsys):
    """--version prints the package's version, also behind a command, as `python run_clm.py --version` is."""
    import gpt2_hf

    for arguments in (["--version"], ["train", "--version"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out.strip() == gpt2_hf.__version__
