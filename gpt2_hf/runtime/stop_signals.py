"""Signals that announce the end, and the exit codes that say "run me again"."""

import atexit
import contextlib
import copy
import multiprocessing
import os
import signal
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from ..errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

# SIGUSR1 or SIGUSR2 is what clusters send some minutes before a job's limit, SIGHUP what a closed terminal sends.
# Windows has none of them nor a real SIGTERM.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")
_SIGNALS = [signal.Signals[name] for name in _NAMES if hasattr(signal, name)]


class SignalWatch:
    """Remembers the first signal; a second Ctrl-C ends the process at once.

    Args:
        ends_process: whether it may; otherwise it raises `KeyboardInterrupt`, for the process is a notebook's or that
            of another program.

    Attributes:
        received: the first signal, if one came.
        immediate: leave with the exit code as soon as a signal comes, because there is nothing to save: before
            training begins and after its last checkpoint.
    """

    def __init__(self, ends_process: bool = True) -> None:
        self.ends_process = ends_process
        self.received: signal.Signals | None = None
        self.immediate = True
        self._interrupts = 0
        self._leaves = False
        self._pid = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take over the signals that this platform has, unless that is done; only the main thread may."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            if number.name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
                continue  # nohup: the run is to outlive its terminal
            self._previous[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a forked worker; the process that made it decides
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1 and not self.ends_process:
                self.restore()
                raise KeyboardInterrupt
            if self._interrupts > 1:
                os._exit(EXIT_INTERRUPTED)  # checkpoints are complete or absent, so nothing needs unwinding
        if self.received is None:
            self.received = signal.Signals(number)
            what = "nothing is left to save" if self.immediate else "finishing the step, then saving"
            # print() is not safe inside a signal handler that may interrupt another print()
            with contextlib.suppress(OSError):  # nobody is there to read it
                os.write(2, f"\n{self.received.name} received: {what}\n".encode())
        if self.immediate and not self._leaves:
            self._leaves = True  # a closed terminal may send two, and the second must not break off the clean-up
            raise SystemExit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """What the process should end with after the signal."""
        return EXIT_INTERRUPTED if self.received is signal.SIGINT else EXIT_PREEMPTED


@dataclass(frozen=True)
class IgnoringSignals:
    """The start of a process that prepares batches: a Ctrl-C or a cluster's warning is not its own.

    Args:
        then: what the process was to start with.
    """

    then: Callable[[int], object] | None = None

    def __call__(self, worker: int) -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        if self.then is not None:
            self.then(worker)


# The processes that prepare batches of ours; other children of this process are none of our business.
_workers: "weakref.WeakSet[BaseProcess]" = weakref.WeakSet()


def shield_workers(loader: Any) -> Any:
    """A torch `DataLoader`, or accelerate's around one, whose processes are deaf to signals that are meant for this
    one, and end when it does.
    """
    made = getattr(loader, "base_dataloader", loader)  # what starts them; an attribute set on accelerate's stays there
    if not isinstance(made.worker_init_fn, IgnoringSignals):
        made.worker_init_fn = IgnoringSignals(made.worker_init_fn)
    if made.num_workers > 0:
        method = (made.multiprocessing_context or multiprocessing).get_start_method()
        made.multiprocessing_context = _context_that_remembers(method)
        # Registered after multiprocessing's own handler, and so run before it.
        atexit.unregister(_end_workers)
        atexit.register(_end_workers, os.getpid())
    return loader


def _context_that_remembers(start_method: str) -> BaseContext:
    """A context of multiprocessing whose processes are kept in `_workers`."""
    context: Any = copy.copy(multiprocessing.get_context(start_method))  # whose type has no `Process`
    make = context.Process

    def make_and_remember(*args: Any, **kwargs: Any) -> BaseProcess:
        worker: BaseProcess = make(*args, **kwargs)
        _workers.add(worker)
        return worker

    context.Process = make_and_remember
    return context


def _end_workers(parent: int) -> None:
    """End what is still there of them: they are deaf to the signal that multiprocessing sends before it waits."""
    if os.getpid() != parent:
        return  # a fork of the process that made them
    workers = [worker for worker in multiprocessing.active_children() if worker in _workers]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take it for a failure
    for worker in workers:
        worker.kill()
