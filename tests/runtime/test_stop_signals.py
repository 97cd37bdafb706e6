"""Signals that announce the end, in the process that trains and in those that prepare its batches."""

import signal
import subprocess
import sys

import pytest
import torch
from accelerate.data_loader import DataLoaderShard, skip_first_batches

from gpt2_hf.runtime.stop_signals import IgnoringSignals, SignalWatch, shield_workers

from ..conftest import needs_posix_signals, python


def test_watch_remembers_the_first_signal_and_gives_the_handlers_back():
    """A signal sets the exit code; afterwards the earlier handlers are in force."""
    before = signal.getsignal(signal.SIGTERM)
    watch = SignalWatch()
    watch.immediate = False
    watch.install()
    try:
        signal.raise_signal(signal.SIGTERM)
        assert watch.received is signal.SIGTERM and watch.exit_code == 75
    finally:
        watch.restore()
    assert signal.getsignal(signal.SIGTERM) is before


def test_signal_with_nothing_to_save_leaves_at_once():
    """While the run only reads and tokenises, a signal ends it with the code that says to run again."""
    watch = SignalWatch()
    watch.install()
    try:
        with pytest.raises(SystemExit) as exit_:
            signal.raise_signal(signal.SIGTERM)
        assert exit_.value.code == 75
    finally:
        watch.restore()


def test_a_second_signal_does_not_break_off_the_leaving():
    """A closed terminal may send two: what the first one lets go is let go whole."""
    watch = SignalWatch()
    watch.install()
    try:
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        watch.restore()


@needs_posix_signals
def test_second_ctrl_c_ends_at_once():
    """Two Ctrl-C end the process with 130 whatever it is doing."""
    code = (
        "import signal; from gpt2_hf.runtime.stop_signals import SignalWatch\n"
        "watch = SignalWatch(); watch.install(); watch.immediate = False\n"
        "signal.raise_signal(signal.SIGINT); print('going on', flush=True)\n"
        "signal.raise_signal(signal.SIGINT); print('never')"
    )
    result = python(code)
    assert result.returncode == 130
    assert "going on" in result.stdout and "never" not in result.stdout


@needs_posix_signals
def test_nohup_stays_in_force():
    """A SIGHUP that the run was told to ignore is ignored; otherwise it is the end, as a closed terminal."""
    before = signal.getsignal(signal.SIGHUP)
    try:
        for handler, received in ((signal.SIG_IGN, None), (signal.SIG_DFL, signal.SIGHUP)):
            signal.signal(signal.SIGHUP, handler)
            watch = SignalWatch()
            watch.immediate = False
            watch.install()
            signal.raise_signal(signal.SIGHUP)
            watch.restore()
            assert watch.received is received and signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_workers_leave_signals_to_the_process_that_trains():
    """A Ctrl-C reaches every process of the terminal; one that prepares batches goes on, after its own start."""
    names = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")
    before = {
        getattr(signal, name): signal.getsignal(getattr(signal, name)) for name in names if hasattr(signal, name)
    }
    begun = []
    try:
        IgnoringSignals(begun.append)(3)
        signal.raise_signal(signal.SIGINT)
        assert begun == [3]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@needs_posix_signals
@pytest.mark.parametrize(
    ("end", "code"), [("raise RuntimeError('an error')", 1), ("cycle = [batches]; cycle += [cycle]", 0)]
)
def test_a_process_with_living_workers_can_end(end, code):
    """By an error, or with batches that only the garbage collector would free: it does not wait for deaf workers."""
    script = f"""
import torch
from torch.utils.data import DataLoader
from gpt2_hf.runtime.stop_signals import shield_workers
loader = DataLoader(torch.arange(1000), num_workers=1, multiprocessing_context="fork")
batches = iter(shield_workers(loader))
next(batches)
{end}
"""
    result = python(script)
    assert result.returncode == code, result.stderr


def test_the_loader_inside_accelerates_is_shielded():
    """It is what starts the processes; what is set on the one around it stays there."""
    loader = DataLoaderShard(torch.arange(10), num_workers=1)
    assert shield_workers(loader) is loader
    assert isinstance(loader.base_dataloader.worker_init_fn, IgnoringSignals)
    assert isinstance(skip_first_batches(loader, 1).base_dataloader.worker_init_fn, IgnoringSignals)  # after a resume


@needs_posix_signals
@pytest.mark.parametrize("method", ["fork", "forkserver"])  # the latter starts them as `spawn` does, and elsewhere
def test_children_of_the_host_program_are_left_to_it(tmp_path, method):
    """Only workers of ours are killed at the end; another daemonic child is asked to end and can tidy up."""
    program = tmp_path / "program.py"
    program.write_text(f"""
import multiprocessing, os, signal, time


def child(started):
    def tidy_up(number, frame):
        print("tidied up", flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, tidy_up)
    started.set()
    time.sleep(60)


if __name__ == "__main__":
    import torch
    from torch.utils.data import DataLoader
    from gpt2_hf.runtime.stop_signals import shield_workers

    context = multiprocessing.get_context("{method}")
    started = context.Event()
    context.Process(target=child, args=(started,), daemon=True).start()
    started.wait()
    loader = DataLoader(torch.arange(1000), num_workers=1, multiprocessing_context="{method}")
    batches = iter(shield_workers(loader))
    print(next(batches).item(), flush=True)
    keep = [batches]
    keep.append(keep)  # to be found by the garbage collector alone
""")
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=90)
    assert result.returncode == 0 and result.stdout.split("\n") == ["0", "tidied up", ""], result.stderr
