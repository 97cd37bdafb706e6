"""Stopping at the end of a step, on all processes at the same one: the budget is used up, or a signal has come."""

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...data import Samples
from ...errors import FolderLostError
from ...runtime.distributed import any_process, is_distributed, largest_of_each
from ...runtime.stop_signals import SignalWatch
from .time_budget import TimeBudgetCallback


class EvaluationInterruptedError(Exception):
    """A signal came during an evaluation; it is done again when the run is resumed."""


class StopCallback(TrainerCallback):
    """Asks the budget and the signals after each step, in one exchange between the processes.

    Before training begins, while weights are loaded, a signal ends the process at once; see `SignalWatch`.
    An evaluation is not waited for when a signal comes: it can take longer than the notice that clusters give.

    Args:
        budget: the time budget, which has measured the step already.
        signals: the signals received.
        folder_is_lost: whether the output folder was moved, or taken by another process.
    """

    def __init__(self, budget: TimeBudgetCallback, signals: SignalWatch, folder_is_lost: Callable[[], bool]):
        self.budget = budget
        self.signals = signals
        self.folder_is_lost = folder_is_lost
        self._has_stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._has_stopped = False
        self.signals.immediate = False

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Processes can only agree where all have as many batches, which the trainer sees to for `Samples`.
        if is_distributed() and not isinstance(getattr(kwargs.get("eval_dataloader"), "dataset", None), Samples):
            return
        if any_process(self.signals.received is not None):
            raise EvaluationInterruptedError

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # Each process has its own clock; with different learning rates the copies of the model would drift apart.
        used_up, received, lost, self.budget.time_share = largest_of_each(
            self.budget.is_used_up(control),
            self.signals.received is not None,
            self.folder_is_lost(),
            self.budget.measured_time_share(),
        )
        if lost:
            raise FolderLostError(args.output_dir)
        if used_up:
            self.budget.stop(state, control)
        if received:
            control.should_save = control.should_training_stop = True
        self._has_stopped = bool(used_up or received)
        return control

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._has_stopped:  # the Trainer takes a stop for the end of the epoch; what there is time for is done
            control.should_log = control.should_evaluate = control.should_save = False
        return control
