"""How many steps a run has, and after which of them it evaluates and saves.

In: the arguments of a run, and how many samples its text has. Out: numbers of steps. Next stage: `plan`.
"""

import math
from dataclasses import dataclass

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..options.arguments import WITHOUT_WARMUP
from ..options.training_arguments import GPT2HFTrainingArguments


@dataclass(frozen=True)
class Schedule:
    """Steps of a run.

    Attributes:
        steps_per_epoch: optimizer steps in one pass over the data.
        total_steps: optimizer steps of the whole run.
        warmup_steps: steps of linear warmup; there may be more than the run has.
    """

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int

    @property
    def warmup_share(self) -> float:
        """Share of the run that is warmup."""
        return self.warmup_steps / self.total_steps


def make_schedule(args: GPT2HFTrainingArguments, num_samples: int | None, devices: int | None = None) -> Schedule:
    """Count steps as the Trainer does: the last, smaller batch of an epoch is a batch too.

    Args:
        args: of the run.
        num_samples: of an epoch; without a number, that is for a stream, the one epoch is `max_steps` long.
        devices: that share a step; those that there are when left out.
    """
    if num_samples is None:
        return Schedule(args.max_steps, args.max_steps, _warmup_steps(args, args.max_steps))
    devices = devices or args.world_size
    share, accumulated = args.parts_on(devices)
    steps_per_epoch = math.ceil(math.ceil(num_samples / (share * devices)) / accumulated)
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    return Schedule(steps_per_epoch, total, _warmup_steps(args, total))


def _warmup_steps(args: GPT2HFTrainingArguments, total: int) -> int:
    return 0 if args.lr_scheduler_type in WITHOUT_WARMUP else args.get_warmup_steps(total)


def schedule_warning(schedule: Schedule) -> str | None:
    """A line for a warmup that leaves too little of the run, or none of it."""
    if schedule.warmup_share < 0.5:
        return None
    return (
        f"warmup takes {schedule.warmup_steps:,} of {schedule.total_steps:,} steps ({schedule.warmup_share:.0%}), so "
        "the learning rate hardly reaches its peak; consider --warmup_steps 0.1, a tenth of the run"
    )


@dataclass(frozen=True)
class Events:
    """Steps after which a run evaluates and saves; of the saved ones, those that rotation keeps.

    Whether an evaluation brings a new best model, which is saved at once, nobody can know; each is counted as one.
    """

    evaluations: frozenset[int]
    saves: frozenset[int]
    kept: frozenset[int]


def list_events(args: GPT2HFTrainingArguments, schedule: Schedule) -> Events:
    """Evaluations and checkpoints as `CadenceCallback` and `checkpoints.folders.rotate` will have them."""
    state = TrainerState(max_steps=schedule.total_steps)
    state.compute_steps(args, schedule.total_steps)
    total, epoch = schedule.total_steps, schedule.steps_per_epoch
    epoch_ends = set(range(epoch, total + 1, epoch))
    evaluations: set[int] = set()
    if args.eval_strategy == IntervalStrategy.STEPS:
        evaluations = {*range(state.eval_steps, total + 1, state.eval_steps), *epoch_ends, total}
    elif args.eval_strategy == IntervalStrategy.EPOCH:
        evaluations = {*epoch_ends, total}
    delay = args.eval_delay * (epoch if args.eval_strategy == IntervalStrategy.EPOCH else 1)
    evaluations = {step for step in evaluations if step >= delay}
    saves: set[int] = set()
    if args.save_strategy == SaveStrategy.STEPS:
        saves = {*range(state.save_steps, total + 1, state.save_steps), *epoch_ends, total}
    elif args.save_strategy == SaveStrategy.EPOCH:
        saves = {*epoch_ends, total}
    if args.save_strategy != SaveStrategy.NO and args.metric_for_best_model is not None:
        saves |= evaluations
    if args.eval_on_start:
        evaluations.add(0)
    kept = set(saves)
    if args.save_total_limit is not None:
        kept = {*sorted(saves)[-args.save_total_limit :], *(epoch_ends & saves)}
    return Events(frozenset(evaluations), frozenset(saves), frozenset(kept))
