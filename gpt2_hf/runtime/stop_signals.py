"""Signals that announce the end, and the exit codes that say "run me again"."""

import atexit
import multiprocessing.util  # its exit handler is to be registered before ours, and runs after it
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

from ..errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

# SIGUSR1 is what clusters send some minutes before a job's limit. Windows has neither it nor a real SIGTERM.
_SIGNALS = [signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]


class SignalWatch:
    """Remembers the first signal; a second Ctrl-C ends the process at once.

    Attributes:
        received: the first signal, if one came.
        immediate: leave with the exit code as soon as a signal comes, because there is nothing to save: before
            training begins and after its last checkpoint.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.immediate = True
        self._interrupts = 0
        self._pid = os.getpid()
        self._previous: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Take over the signals that this platform has; only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
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
            if self._interrupts > 1:
                os._exit(EXIT_INTERRUPTED)  # checkpoints are complete or absent, so nothing needs unwinding
        if self.received is None:
            self.received = signal.Signals(number)
            what = "nothing is left to save" if self.immediate else "finishing the step, then saving"
            # print() is not safe inside a signal handler that may interrupt another print()
            os.write(2, f"\n{self.received.name} received: {what}\n".encode())
        if self.immediate:
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


@atexit.register
def _end_workers() -> None:
    """End what is still there of them: they are deaf to the signal that multiprocessing sends before it waits."""
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would take it for a failure
    for worker in workers:
        worker.kill()


def shield_workers(loader: Any) -> Any:
    """A torch `DataLoader` whose processes are deaf to signals that are meant for this one."""
    if not isinstance(loader.worker_init_fn, IgnoringSignals):
        loader.worker_init_fn = IgnoringSignals(loader.worker_init_fn)
    return loader
