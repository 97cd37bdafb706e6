"""Real training processes that start in a moment, to be killed.

Importing torch takes seconds; a fork server that has done so once starts each process in milliseconds. The
processes are the main job itself, with a tiny model.
"""

import contextlib
import functools
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_hf.commands.report import draw_curves

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext  # which Windows has not

_started: list[BaseProcess] = []

_PRELOADED = ["gpt2_hf.job.main_job", "gpt2_hf.__main__", "tests.faults.harness", "tests.ranks"]
# What a run imports when it needs it, and what the tests import whose functions are run.
_PRELOADED += ["matplotlib.figure", "matplotlib.backends.backend_agg", "huggingface_hub.repocard_data"]
_PRELOADED += ["pytest", "hypothesis", "tests.faults.frozen"]


@functools.cache
def blank_curves() -> bytes:
    """The picture of a run without numbers."""
    return draw_curves([])


def _run(
    argv: list[str], log: str, environment: dict[str, str], prepare: Callable[[], None] | None, curves: bytes | None
) -> None:
    """The body of a process: the command, its output in a file, its exit code the process's."""
    import torch

    os.environ.update(environment)
    if prepare is not None:
        prepare()

    import gpt2_hf.__main__ as command
    from gpt2_hf.commands import report

    if curves is not None:
        report.draw_curves = lambda history: curves
    torch.set_num_threads(1)
    command._SECONDS_FOR_THE_FIRST = 0.2  # what is said within it is not waited for here
    with open(log, "a", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        code = command.main(argv)
    os._exit(code)


@functools.cache
def warm_up() -> "ForkServerContext":
    """A fork server that has finished its imports; what each run is given is there, too."""
    blank_curves()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    first = context.Process(target=os.getpid)
    first.start()
    first.join()
    return context


def start(
    argv: list[str],
    log: Path,
    environment: dict[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
    draws: bool = False,
) -> BaseProcess:
    """Start the command `argv` in a process of its own, which calls `prepare` before; its curves may be blank."""
    return start_function(_run, argv, str(log), environment or {}, prepare, None if draws else blank_curves())


def start_function(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a function in a process of its own."""
    process = warm_up().Process(target=function, args=arguments)
    process.start()
    _started.append(process)
    return process


def kill_started() -> None:
    """Kill what was started here and is still there, as after an assertion that failed."""
    while _started:
        process = _started.pop()
        process.kill()
        process.join(30)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port: int = listener.getsockname()[1]
        return port


def start_ranks(argv: list[str], logs: list[Path], prepare: Callable[[], None] | None = None) -> list[BaseProcess]:
    """Start the command as the processes of one run, in the environment that torchrun gives them; a log for each."""
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(logs))}
    own = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(len(logs))} for rank in range(len(logs))
    ]
    return [start(argv, log, {**shared, **mine}, prepare) for log, mine in zip(logs, own, strict=True)]


def join(processes: list[BaseProcess], timeout: float = 120) -> list[int | None]:
    """Wait for all processes; their exit codes, `None` for one that is still running."""
    deadline = time.monotonic() + timeout
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    return [process.exitcode for process in processes]


def run(argv: list[str], log: Path, timeout: float = 120) -> int:
    """Run the command to its end; its exit code."""
    process = start(argv, log)
    process.join(timeout)
    assert process.exitcode is not None, f"still running after {timeout} s:\n{log.read_text()}"
    return process.exitcode


def kill_after(argv: list[str], log: Path, seconds: float) -> bool:
    """Start the command and kill it after some seconds, wherever it is; whether it was still running."""
    process = start(argv, log)
    process.join(seconds)
    alive = process.is_alive()
    if alive:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    return alive


def wait_for(log: Path, text: str, timeout: float = 60, process: subprocess.Popen | None = None) -> None:
    """Wait until a line of the output has some text; in vain if the process that writes it has ended."""
    deadline = time.monotonic() + timeout
    while not (log.is_file() and text in log.read_text()):
        waiting = time.monotonic() < deadline and (process is None or process.poll() is None)
        assert waiting, f"{text!r} did not come:\n{log.read_text() if log.is_file() else ''}"
        time.sleep(0.02)


def seeded(name: str) -> random.Random:
    """A random generator with a fresh seed, printed so that a failure can be repeated with GPT2_HF_SEED."""
    seed = int(os.environ.get("GPT2_HF_SEED", time.time_ns() % 1_000_000))
    print(f"{name}: GPT2_HF_SEED={seed}")
    return random.Random(seed)
