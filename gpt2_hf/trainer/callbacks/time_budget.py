"""A run that is given H hours ends within H hours, with a checkpoint and an evaluation."""

import itertools
import math
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ...checkpoints.folders import TIME_LIMIT
from ...runtime.distributed import any_process, of_first_process
from ...runtime.stopwatch import Stopwatch

# On top of the measured times: a share for those that grow, and a few seconds for ending the process.
_MARGIN = 1.15
_LEAVING_SECONDS = 3.0


class TimeBudgetCallback(TrainerCallback, ExportableState):
    """Says when to stop so that everything still to come fits into the budget; `StopCallback` asks and stops.

    Room is kept for the last checkpoint and the job's closing work in any case; for the last evaluation, and then for
    the score of the test split, if there was room for them when their time became known. Where even an evaluation
    takes longer than the whole budget, the budget is for training.

    Args:
        max_hours: the budget of this invocation, start-up included; `None` for no limit.
        watch: the invocation's stopwatch.
        closing_seconds: estimates the time of the job's work after the last evaluation and checkpoint, but the test.
        test_seconds: estimates the time to score the test split; 0 if there is none, infinite while it is not known.
        evaluation_seconds: estimates the time of an evaluation; 0 if the run never evaluates, infinite while it is
            not known.
        save_seconds: estimates the time of a checkpoint; 0 if the run never saves.
    """

    def __init__(
        self,
        max_hours: float | None = None,
        watch: Stopwatch | None = None,
        closing_seconds: Callable[[], float] = lambda: 0.0,
        test_seconds: Callable[[], float] = lambda: 0.0,
        evaluation_seconds: Callable[[], float] = lambda: 0.0,
        save_seconds: Callable[[], float] = lambda: 0.0,
    ):
        self.max_hours = max_hours
        self.watch = watch if watch is not None else Stopwatch()
        self.closing_seconds = closing_seconds
        self.test_seconds = test_seconds
        self.evaluation_seconds = evaluation_seconds
        self.save_seconds = save_seconds
        self.expired = False
        self.skipped_evaluation = False
        self.earlier_seconds = 0.0  # of all invocations before this one
        self._last_step_end: float | None = None
        self._training_began: float | None = None
        self._room_for = 0  # how many parts of the optional work, see `_seconds_to_end`

    @property
    def total_seconds(self) -> float:
        """Seconds that this run has taken over all its invocations."""
        return self.earlier_seconds + self.watch.elapsed

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        return {"args": {}, "attributes": {"total_seconds": self.total_seconds}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step:
            self.earlier_seconds = float(saved["attributes"].get("total_seconds", 0.0))
        self._last_step_end = None

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # From the end of one step to the end of the next, so that loading the batch counts; but the first step
        # and those after an evaluation or a checkpoint begin here.
        if self._last_step_end is None:
            self._last_step_end = self.watch.elapsed

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        now = self.watch.elapsed
        if self._last_step_end is not None:
            self.watch.add("step", now - self._last_step_end)
        self._last_step_end = now

    def is_used_up(self, control: TrainerControl) -> bool:
        """Whether another step, and whatever is due now, leaves too little room for the end on this process."""
        if self.max_hours is None:
            return False
        due = self.watch.longest("step") or 0.0
        if control.should_evaluate and math.isfinite(seconds := self.evaluation_seconds()):
            due += seconds
        if control.should_evaluate or control.should_save:  # a new best is saved too
            due += self.save_seconds()
        left = self.max_hours * 3600 - self.watch.elapsed - due
        fitting = [parts for parts, seconds in enumerate(self._seconds_to_end()) if seconds <= left]
        if not fitting or fitting[-1] < self._room_for:
            return True
        self._room_for = fitting[-1]
        return False

    def stop(self, state: TrainerState, control: TrainerControl) -> None:
        """End training here, with an evaluation if there is time for one; on all processes or on none."""
        assert self.max_hours is not None
        self.expired = state.global_step < state.max_steps
        evaluation = self.evaluation_seconds()
        end = self.watch.elapsed + _with_margin(evaluation + self.save_seconds())
        self.skipped_evaluation = any_process(end >= self.max_hours * 3600)
        control.should_evaluate = evaluation > 0 and not self.skipped_evaluation
        control.should_log = control.should_training_stop = True
        control.should_save = self.save_seconds() > 0

    def _seconds_to_end(self) -> list[float]:
        """From stopping to the end of the process: without optional work, with an evaluation, with the test too."""
        needed = self.save_seconds() + self.closing_seconds()
        optional = (0.0, self.evaluation_seconds(), self.test_seconds())
        return [_with_margin(needed + seconds) for seconds in itertools.accumulate(optional)]

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last_step_end = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last_step_end = None

    def share_of_training_time(self) -> float:
        """How much of the time between the first step and the closing work has gone by, from 0 to 1."""
        if self.max_hours is None:
            return 0.0
        end = self.max_hours * 3600 - self._seconds_to_end()[self._room_for]
        if self._training_began is None:
            self._training_began = self.watch.elapsed
        share = (self.watch.elapsed - self._training_began) / max(end - self._training_began, 1e-9)
        # Each process has its own clock; different learning rates would let the copies of the model drift apart.
        return of_first_process(min(share, 1.0))

    def checkpoint_names(self) -> list[str]:
        """The name of the checkpoint that is being saved, if the budget made it."""
        return [TIME_LIMIT] if self.expired else []


def _with_margin(seconds: float) -> float:
    return _MARGIN * seconds + _LEAVING_SECONDS
