"""What a run will be, before any hour is spent.

In: the arguments of a run, its data and model, and what a probe measured. Out: numbers, and advice that names flags.
"""

import bisect
import functools
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..data import LoadedData, Samples
from ..errors import UserError
from ..model.modeling_gpt2_hf import GPT2HFForCausalLM
from ..options.arguments import DECAYS_BY_TIME
from ..options.training_arguments import GPT2HFTrainingArguments, divide_batch
from ..runtime.distributed import any_process, largest_of_each
from ..runtime.stopwatch import duration
from ..runtime.utilization import card_memory, device_memory, held_memory, is_out_of_memory
from ..trainer.gpt2_trainer import GPT2HFTrainer
from ..trainer.muon import state_bytes
from ..trainer.remaining import with_margin
from ..trainer.weight_average import average_bytes
from . import cards, probe
from .steps import Events, Schedule, list_events, make_schedule, schedule_warning

# A share of all evaluations above which they are worth a line.
_MUCH_EVALUATION = 0.25
# Warmup as a share of the steps: what is advised, and above what it is worth advice.
_GOOD_WARMUP = 0.1
_LARGEST_WARMUP = 0.2


@dataclass(frozen=True)
class Plan:
    """A run in numbers: times in seconds, sizes in bytes of one device.

    Attributes:
        schedule, events: steps, evaluations, checkpoints.
        num_parameters: of the model, the tied head counted once.
        optimizer_bytes: the optimizer's state.
        num_samples, num_tokens: of the training text; tokens that are scored.
        flops_per_token: arithmetic of a training step, that of teachers included, without attention.
        activation_bytes: the most that the forward pass on a batch keeps.
        peak_bytes: at the most; measured, or the least possible where that already does not fit.
        memory_bytes: what the device has.
        measured: the probe's figures; `None` where the run does not fit.
        start_seconds: from the command to the first step.
        save_seconds: a checkpoint.
        report_seconds: results, sample and report at the end, the test split not counted.
        free_disk_bytes: at `output_dir`.
        teacher_bytes: of the models that are learned from: weights, and the work space of their heads.
        average_bytes: of a moving average of the weights.
        card_bytes: total memory of the GPU; 0 where there is none.
    """

    args: GPT2HFTrainingArguments
    schedule: Schedule
    events: Events
    num_parameters: int
    optimizer_bytes: int
    num_samples: int
    num_tokens: int
    flops_per_token: float
    activation_bytes: int
    peak_bytes: int
    memory_bytes: int
    measured: probe.Measurement | None
    start_seconds: float
    save_seconds: float
    report_seconds: float
    free_disk_bytes: int
    teacher_bytes: int = 0
    average_bytes: int = 0
    card_bytes: int = 0

    @property
    def checkpoint_bytes(self) -> int:
        """Size of one checkpoint."""
        return probe.checkpoint_bytes(self.num_parameters, self.optimizer_bytes + self.average_bytes)

    @property
    def num_kept(self) -> int:
        """Checkpoints at the most: those kept, the best one, one that is being written, and that of the time limit."""
        if not self.events.saves:
            return 0
        best = self.args.metric_for_best_model is not None and bool(self.events.evaluations)
        return len(self.events.kept) + best + 1 + (not self.fits_budget)

    @property
    def seconds(self) -> dict[str, float]:
        """The whole run by its parts; empty where nothing could be measured."""
        if self.measured is None:
            return {}
        evaluation = self.measured.evaluation_seconds + self.measured.sample_seconds
        return {
            "start": self.start_seconds,
            "steps": self.schedule.total_steps * self.measured.step_seconds,
            "evaluations": len(self.events.evaluations) * evaluation,
            "checkpoints": len(self.events.saves) * self.save_seconds,
            "end": self.measured.test_seconds + self.report_seconds,
        }

    @property
    def total_seconds(self) -> float:
        """The whole run, unless a time budget ends it earlier."""
        return sum(self.seconds.values())

    @property
    def fits_budget(self) -> bool:
        """Whether the last step comes before the time budget ends."""
        hours = self.args.max_training_hours
        return hours is None or self.total_seconds <= hours * 3600

    @functools.cached_property
    def steps_in_budget(self) -> int:
        """The most steps of a run that ends within the time budget, its evaluations and checkpoints included."""
        assert self.args.max_training_hours is not None
        # as much as the run itself keeps free for its end
        closing = self.seconds["end"] + self.save_seconds
        if self.measured is not None and self.events.evaluations:
            closing += self.measured.evaluation_seconds + self.measured.sample_seconds
        room = self.args.max_training_hours * 3600 - (with_margin(closing) - closing)
        return bisect.bisect_right(
            range(1, self.schedule.total_steps + 1), room, key=lambda steps: self._shortened(steps).total_seconds
        )

    def _shortened(self, steps: int) -> "Plan":
        schedule = replace(self.schedule, total_steps=steps)
        return replace(self, schedule=schedule, events=list_events(self.args, schedule))

    @property
    def fits_memory(self) -> bool:
        """Whether the largest batch fits into the device."""
        return self.peak_bytes <= self.memory_bytes

    def lines(self) -> list[str]:
        """The plan as a person reads it, advice last."""
        schedule = self.schedule
        warmup = min(schedule.warmup_steps, schedule.total_steps)
        of_teachers = ", and 2 for teachers" if self.teacher_bytes else ""
        lines = [
            f"parameters: {self.num_parameters:,}",
            f"training samples: {self.num_samples:,} with {self.num_tokens:,} scored tokens per epoch",
            f"steps: {schedule.steps_per_epoch:,} per epoch, {schedule.total_steps:,} in all, "
            f"{warmup:,} of them warmup ({warmup / schedule.total_steps:.0%})",
            f"arithmetic: {self.flops_per_token / 1e9:.2f} GFLOP per token (6 per parameter and token, the head "
            f"included{of_teachers}), {self.flops_per_token * self.num_tokens / 1e12:,.1f} TFLOP per epoch",
            self._memory_line(),
            *self._time_lines(),
            f"disk: {_size(self.checkpoint_bytes)} per checkpoint, at most {self.num_kept} at a time: "
            f"{_size(self.num_kept * self.checkpoint_bytes)}; {_size(self.free_disk_bytes)} are free",
        ]
        if self.card_bytes:
            lines.append(cards.describe(self.card_bytes))
        return lines + [f"advice: {line}" for line in self.advice()]

    def _memory_line(self) -> str:
        weights = 4 * self.num_parameters
        kept = 2 * weights + self.optimizer_bytes + self.average_bytes + self.teacher_bytes
        rest = self.peak_bytes - kept - self.activation_bytes
        teachers = f"teachers {_size(self.teacher_bytes)}, " if self.teacher_bytes else ""
        average = f"moving average {_size(self.average_bytes)}, " if self.average_bytes else ""
        how = "measured on the largest batch" if self.measured is not None else "or more"
        return (
            f"memory: {_size(self.peak_bytes)} at the peak, {how}: weights {_size(weights)}, "
            f"gradients {_size(weights)}, optimizer {_size(self.optimizer_bytes)}, {average}"
            f"activations {_size(self.activation_bytes)}, {teachers}"
            f"libraries, data and work space {_size(max(rest, 0))}; the device has {_size(self.memory_bytes)} free"
        )

    def _time_lines(self) -> list[str]:
        measured = self.measured
        if measured is None:
            return []
        peak = "" if measured.share_of_peak is None else f", {measured.share_of_peak:.0%} of the device's peak"
        names = {
            "steps": f"{self.schedule.total_steps:,} steps",
            "evaluations": f"{len(self.events.evaluations):,} evaluations",
            "checkpoints": f"{len(self.events.saves):,} checkpoints at most",
        }
        parts = ", ".join(f"{names.get(name, name)} {duration(value)}" for name, value in self.seconds.items())
        epoch = self.schedule.steps_per_epoch * measured.step_seconds
        lines = [
            f"speed: {measured.step_seconds:.3g} s per step, {measured.tokens_per_second:,.0f} tokens/s per device"
            f"{peak} (measured on {measured.num_steps} steps)",
            f"time: {duration(epoch)} per epoch; {duration(self.total_seconds)} in all: {parts}",
        ]
        if self.args.max_training_hours is not None:
            verdict = "the run fits" if self.fits_budget else "the run does not fit"
            if not self.fits_budget and self.args.schedule_by_time:
                verdict = f"it ends the run, and the learning rate with it, after about {self.steps_in_budget:,} steps"
            lines.append(f"budget: {duration(self.args.max_training_hours * 3600)}; {verdict}")
        return lines

    def advice(self) -> list[str]:
        """What to change, each line with its flag."""
        lines = []
        if (warning := schedule_warning(self.schedule)) is not None and self.fits_budget:
            lines.append(warning)
        if not self.fits_memory:
            lines.append(self._memory_advice())
        if not self.fits_budget and not self.args.schedule_by_time:
            lines.append(self._budget_advice())
        elif not self.fits_budget and (warmup := self._warmup_within(self.steps_in_budget)):
            lines.append(
                f"about {self.steps_in_budget:,} steps fit into the budget, and {self.schedule.warmup_steps:,} are "
                f"warmup; use{warmup}"
            )
        parts = self.seconds
        if parts and parts["evaluations"] > _MUCH_EVALUATION * self.total_seconds:
            share = parts["evaluations"] / self.total_seconds
            lines.append(f"evaluations take {share:.0%} of the time; use {self._evaluation_advice()}")
        needed = self.num_kept * self.checkpoint_bytes
        if needed > self.free_disk_bytes:
            lines.append(
                f"the disk has no room for {self.num_kept} checkpoints; use --save_total_limit 1, fewer --max_epochs "
                "(the checkpoint of each is kept), or a --checkpoint_dir on a larger disk"
            )
        return lines

    def _memory_advice(self) -> str:
        args = self.args
        if 2 * 4 * self.num_parameters + self.optimizer_bytes + self.average_bytes > self.memory_bytes:
            return "weights, gradients and optimizer alone do not fit; use a smaller --d_model or --num_layers"
        if args.train_batch_size > 1:
            share, parts = divide_batch(args.train_batch_size, devices=1, most=args.train_batch_size // 2)
            flags = f"--batch_size {share}"
            if args.global_batch_size is None:
                flags += f" --gradient_accumulation_steps {args.gradient_accumulation_steps * parts}"
            return f"the largest batch does not fit; use {flags}, the same step in more parts"
        if not args.gradient_checkpointing:
            return "a single sample does not fit; use --activation_checkpointing, or a smaller --max_length"
        return "a single sample does not fit; use a smaller --max_length, --d_model or --num_layers"

    def _evaluation_advice(self) -> str:
        epoch, total = self.schedule.steps_per_epoch, self.schedule.total_steps
        if any(step % epoch and step != total for step in self.events.evaluations):
            return "a larger --eval_every, or a smaller --max_eval_samples"
        # those after epochs stay, whatever --eval_every
        later = ", or an --eval_delay" if len(self.events.evaluations) > 1 else ""
        return f"a smaller --max_eval_samples{later}"

    def _budget_advice(self) -> str:
        steps, warmup = self.steps_in_budget, self._warmup_within(self.steps_in_budget)
        hours = f"--max_training_hours {math.ceil(1.1 * self.total_seconds / 36) / 100:g}"
        if self.schedule.warmup_share > _LARGEST_WARMUP:
            hours += f" --warmup_steps {_GOOD_WARMUP:g}"
        if not steps:
            return f"the budget ends before the first step is evaluated and saved; use {hours}"
        ways = [hours, f"--max_steps {steps}{warmup}"]
        if self.args.lr_scheduler_type in DECAYS_BY_TIME and not self.args.lr_scheduler_kwargs:
            ways.append(f"or --schedule_by_time{warmup}")
        return (
            f"the budget ends at about step {steps:,} of {self.schedule.total_steps:,}, with the learning rate still "
            f"high; use {', '.join(ways)}"
        )

    def _warmup_within(self, steps: int) -> str:
        """The flag for a warmup that suits a run of so many steps; empty if the present one does."""
        if self.schedule.warmup_steps <= _GOOD_WARMUP * steps:
            return ""
        return f" --warmup_steps {int(_GOOD_WARMUP * steps)}"


def make_plan(
    args: GPT2HFTrainingArguments,
    model: GPT2HFForCausalLM,
    data: LoadedData,
    start_seconds: float,
    report_seconds: float,
    write_sample: Callable[[GPT2HFForCausalLM], str] | None,
    check: Callable[[GPT2HFTrainer], None],
    teachers: Sequence[GPT2HFForCausalLM] = (),
) -> Plan:
    """Count, probe and look at the disk; nothing is written to `output_dir`.

    Raises:
        UserError: if `check` refuses the options, or the place of `output_dir` cannot be written to.
    """
    samples = data.samples["train"]
    schedule = make_schedule(args, len(samples))
    num_parameters = model.num_parameters()
    optimizer_bytes = state_bytes(model, args.uses_muon)
    kept_bytes = optimizer_bytes + average_bytes(args.ema_decay, num_parameters)
    batches = probe.first_epoch(args, samples, data.collator, model)
    with tempfile.TemporaryDirectory() as folder:
        trainer = probe.make_probe_trainer(args, model, data, folder, teachers)
        check(trainer)
        teacher_bytes, flops_of_teachers = probe.cost_of_teachers(args, trainer)
        # All processes must do the same, or they would wait for each other: the smallest memory and the largest need
        # of them count.
        memory, held = -int(largest_of_each(-device_memory(args.device))[0]), held_memory(args.device)
        measured, activations = None, 0
        # What does not fit must not be tried: on a CPU the system would kill the process. Where there is ample room
        # the activations are counted last, since memory that was used and freed before blurs the measured peak.
        in_doubt = any_process(probe.generous_peak_bytes(args, model, batches) + teacher_bytes > memory)
        if in_doubt:
            activations = _activation_bytes(trainer, samples, batches, memory)
        peak = int(largest_of_each(probe.least_peak_bytes(args, held, num_parameters, kept_bytes, activations))[0])
        if peak <= memory:
            try:
                measured = probe.measure(args, trainer, data, batches, write_sample)
                peak = measured.peak_bytes
            except (MemoryError, RuntimeError) as error:
                alone = args.world_size > 1 and trainer.shapes_change  # others may wait in the middle of a step
                if alone or not is_out_of_memory(error):
                    raise
                peak = max(peak, memory + 1)
        peak = int(largest_of_each(peak)[0])
        if not in_doubt:
            activations = _activation_bytes(trainer, samples, batches, memory)
    place = existing_parent(Path(str(args.output_dir)))
    return Plan(
        args=args,
        schedule=schedule,
        events=list_events(args, schedule),
        num_parameters=num_parameters,
        optimizer_bytes=optimizer_bytes,
        num_samples=len(samples),
        num_tokens=int(samples.epoch_lengths.sum(dtype="int64")),
        flops_per_token=6.0 * model.num_matmul_parameters + flops_of_teachers,
        activation_bytes=activations,
        peak_bytes=peak,
        memory_bytes=memory,
        measured=measured,
        start_seconds=start_seconds,
        save_seconds=probe.save_seconds(place, probe.checkpoint_bytes(num_parameters, kept_bytes)),
        report_seconds=report_seconds,
        free_disk_bytes=shutil.disk_usage(place).free,
        teacher_bytes=teacher_bytes,
        average_bytes=kept_bytes - optimizer_bytes,
        card_bytes=card_memory(args.device),
    )


def _activation_bytes(trainer: GPT2HFTrainer, samples: Samples, batches: probe.Batches, memory: int) -> int:
    """What a forward pass keeps; all of the memory where it does not fit."""
    try:
        return probe.activation_bytes(trainer, samples, batches)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return memory


def existing_parent(path: Path) -> Path:
    """The folder that is there already, of those that a path goes through."""
    path = path.absolute()
    for parent in (path, *path.parents):
        if os.path.isdir(parent):
            return parent
    raise UserError(f"--checkpoint_dir: {path.anchor} cannot be reached; name a folder on a disk that is there")


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
