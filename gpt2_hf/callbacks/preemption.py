"""Signals that announce the end: finish the step, save, and leave with a code that says "run me again"."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..distributed import any_process, is_distributed
from ..errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

# SIGUSR1 is what clusters send some minutes before a job's limit. Windows has neither it nor a real SIGTERM.
_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")


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
        for name in _SIGNALS:
            if hasattr(signal, name):
                number = signal.Signals[name]
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


class EvaluationInterruptedError(Exception):
    """A signal came during an evaluation; it is made up for when the run goes on."""


class PreemptionCallback(TrainerCallback):
    """Save and stop at the end of the step in which a signal came, on all processes alike.

    An evaluation is not waited for: it can take longer than the notice that clusters give.
    """

    def __init__(self, watch: SignalWatch):
        self.watch = watch

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Several processes hold unequal numbers of batches, so they can only agree after the evaluation. The one
        # after the last step is finished too: there is no training left that could make up for it.
        if self.watch.received is not None and state.global_step < state.max_steps and not is_distributed():
            raise EvaluationInterruptedError

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if any_process(self.watch.received is not None, args.device):
            control.should_save = True
            control.should_training_stop = True
        return control
