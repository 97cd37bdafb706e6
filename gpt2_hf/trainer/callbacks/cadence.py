"""When a run logs, evaluates and saves, beyond the Trainer's every-so-many-steps.

The Trainer knows either steps or epochs. This adds, to the step strategy, the end of each epoch, and to both the very
end, without doing anything twice. All of it is decided at the end of a step, so that an evaluation always comes before
the checkpoint that is to remember it. At the end of an epoch the Trainer asks again, where callbacks see it, and
`GPT2HFTrainer._maybe_log_save_evaluate` leaves out what is done. Each new best is saved by
`ExactEvaluationTrainer._determine_best_metric`.
"""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy


class CadenceCallback(TrainerCallback):
    """Evaluate and save at the end of each epoch and of the run.

    Attributes:
        has_epochs: whether the training data have an end.
    """

    has_epochs = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        is_last = state.global_step >= state.max_steps
        if not self.has_epochs:
            # Streamed text has no epochs; the Trainer would count from 0 again after each resume.
            state.epoch = state.global_step / state.max_steps
        at_epoch = ends_epoch(state)
        in_between = at_epoch and args.marks_epochs
        if args.eval_strategy == IntervalStrategy.STEPS:
            control.should_evaluate |= (is_last or in_between) and state.global_step >= args.eval_delay
        elif args.eval_strategy == IntervalStrategy.EPOCH:
            control.should_evaluate |= (is_last or at_epoch) and state.epoch >= args.eval_delay
        if args.save_strategy == SaveStrategy.STEPS:
            control.should_save |= is_last or in_between
        elif args.save_strategy == SaveStrategy.EPOCH:
            control.should_save |= is_last or at_epoch
        if args.logging_strategy != IntervalStrategy.NO:
            control.should_log |= is_last or (at_epoch and args.logging_strategy == IntervalStrategy.EPOCH)
        return control


def ends_epoch(state: TrainerState) -> bool:
    """Whether the step that has just ended is the last one of an epoch, or of a run whose data have no length."""
    return state.epoch is not None and state.epoch > 0 and float(state.epoch).is_integer()
