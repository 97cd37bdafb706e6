"""A run that is given H hours ends within H hours, with a checkpoint and an evaluation."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from ...checkpoints.folders import TIME_LIMIT, read_names
from ...runtime.distributed import any_process
from ...runtime.stopwatch import Stopwatch
from ..remaining import RemainingWork
from ..schedule import DecayByTime

# What remains of a schedule by time then is a learning rate of less than a hundredth of the peak, or six of a line.
_PROGRESS_AT_END = 0.94


class TimeBudgetCallback(TrainerCallback, ExportableState):
    """Says when to stop so that everything still to come fits into the budget; `StopCallback` asks and stops.

    Room is kept for the last checkpoint and the job's closing work in any case; for the last evaluation, and then for
    the score of the test split, if there was room for them when their time became known. Where even an evaluation
    takes longer than the whole budget, the budget is for training.

    Args:
        max_hours: the budget of this invocation, start-up included; `None` for no limit.
        watch: the invocation's stopwatch.
        remaining: what else there is to do now, and how long it takes.
    """

    def __init__(self, max_hours: float | None, watch: Stopwatch, remaining: Callable[[], RemainingWork]):
        self.max_hours = max_hours
        self.watch = watch
        self.remaining = remaining
        self.reset()

    def reset(self) -> None:
        """Begin anew, as for another call of `train()`."""
        self.expired = False
        self.skipped_evaluation = False
        self.earlier_seconds = 0.0  # of all invocations before this one
        self.time_share = 0.0  # of this invocation's training time that has gone by, the same on all processes
        self.schedule: DecayByTime | None = None  # follows `time_share`
        self.earlier_progress = 0.0  # of the schedule, in the invocations before this one
        self.schedule_has_ended = False  # in these
        self._last_step_end: float | None = None
        self._training_began: float | None = None
        self._room_for = 0  # how many parts of the optional work, see `RemainingWork.to_end`

    @property
    def total_seconds(self) -> float:
        """Seconds that this run has taken over all its invocations."""
        return self.earlier_seconds + self.watch.elapsed

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback."""
        progress = self.schedule.progress if self.schedule is not None else 0.0
        kept = {"total_seconds": self.total_seconds, "schedule_progress": progress}
        return {"args": {}, "attributes": {**kept, "expired": self.expired or self.schedule_has_ended}}

    @classmethod
    def kept_in(cls, state: TrainerState) -> dict[str, Any]:
        """What a checkpoint's state has of this callback."""
        return state.stateful_callbacks.get(cls.__name__, {}).get("attributes", {})

    @classmethod
    def schedule_ended_at(cls, checkpoint: Path, state: TrainerState) -> bool:
        """Whether a schedule by time is at its end in a checkpoint with this state: by its steps, or by the clock."""
        kept = cls.kept_in(state)
        progress = kept.get("schedule_progress", 0.0)
        # all that an earlier version kept of it
        named = read_names(checkpoint.parent).get(TIME_LIMIT) == checkpoint.name
        return bool(progress > 1 - 1e-9 or (kept.get("expired", named) and progress > _PROGRESS_AT_END))

    def restore(self, state: TrainerState) -> None:
        """Take over what the checkpoint of a resumed run keeps, before the schedule is made."""
        saved = state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        if state.global_step:
            self.earlier_seconds = float(saved["attributes"].get("total_seconds", 0.0))
            self.earlier_progress = float(saved["attributes"].get("schedule_progress", 0.0))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training_began = self.watch.elapsed
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
        remaining = self.remaining()
        due = self.watch.longest("step") or 0.0
        if control.should_evaluate and math.isfinite(remaining.evaluation):
            due += remaining.evaluation
        if control.should_evaluate or control.should_save:  # a new best is saved too
            due += remaining.checkpoint
        left = self.max_hours * 3600 - self.watch.elapsed - due
        fitting = [parts for parts, seconds in enumerate(remaining.to_end()) if seconds <= left]
        if not fitting or fitting[-1] < self._room_for:
            return True
        self._room_for = fitting[-1]
        return False

    def stop(self, state: TrainerState, control: TrainerControl) -> None:
        """End training here, with an evaluation if there is time for one; on all processes or on none."""
        assert self.max_hours is not None
        self.expired = state.global_step < state.max_steps
        remaining = self.remaining()
        end = self.watch.elapsed + remaining.evaluation_and_checkpoint
        self.skipped_evaluation = any_process(remaining.evaluation > 0 and end >= self.max_hours * 3600)
        control.should_evaluate = remaining.evaluation > 0 and not self.skipped_evaluation
        control.should_log = control.should_training_stop = True
        control.should_save = remaining.checkpoint > 0

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last_step_end = None

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last_step_end = None

    def measured_time_share(self) -> float:
        """How much of the time between the first step and the closing work has gone by on this process, 0 to 1."""
        if self.max_hours is None or self._training_began is None:
            return 0.0
        end = self.max_hours * 3600 - self.remaining().to_end()[self._room_for]
        share = (self.watch.elapsed - self._training_began) / max(end - self._training_began, 1e-9)
        return min(max(share, 0.0), 1.0)

    def end_lines(self, step: int) -> list[str]:
        """What there is to say, after the last step, of a training that the budget has ended or cut short."""
        lines = [f"time budget of {self.max_hours:g} h reached at step {step:,}"] if self.expired else []
        if self.skipped_evaluation:
            lines.append("no time was left for an evaluation")
        return lines

    def checkpoint_names(self) -> list[str]:
        """The name of the checkpoint that is being saved, if the budget made it."""
        return [TIME_LIMIT] if self.expired else []
