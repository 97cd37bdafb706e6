"""`--size auto`: a model and a recipe that suit the text, this machine and `--max_training_hours`.

    before the text is read   how it is cut into samples
    after                     sizes are trained for a moment, from the smallest up, and `planning.size` compares them
    resumed                   what was chosen before, from the checkpoint

What is chosen is written into the options of the run, as if it had been typed. What was typed stays.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..commands.model_loading import build_model, tie_unused_tokens
from ..commands.training_protocol import read_trained_config
from ..data import LoadedData, Samples
from ..errors import UserError
from ..options.arguments import CHOSEN_BY_SIZE, DECAYS_BY_TIME, DataArguments, ModelArguments
from ..options.fields import default_value
from ..options.parsing import check_acting
from ..options.training_arguments import MUON, GPT2HFTrainingArguments
from ..planning import probe
from ..planning.size import (
    LADDER,
    LEAST_DECAY,
    MIN_STEPS,
    RULE,
    Candidate,
    Measured,
    Size,
    Task,
    best,
    candidates,
    decay_for,
    dropout_for,
)
from ..runtime import distributed
from ..runtime.stopwatch import duration
from ..runtime.utilization import device_memory, free_unused, is_out_of_memory, used_memory
from ..trainer.remaining import with_margin
from .check import check_training
from .results import report_seconds
from .run import Run

# The smallest text that a size is chosen for, in tokens.
_LEAST_TOKENS = 10_000
# Tokens of an optimizer step and of a block: on a CPU those of training_args/wikitext2_cpu.json.
_TOKENS_PER_STEP, _TOKENS_PER_STEP_OF_ACCELERATOR = 2048, 16_384
_BLOCK, _BLOCK_OF_ACCELERATOR = 128, 512
# Evaluations of a run of few hours at the most, besides those after its epochs.
_MOST_EVALUATIONS = 5
_LOGS = 40
# Muon's learning rate for widths that were tried; the singular values of its updates grow with the width.
_RATE, _WIDEST_TRIED = 0.01, 256
# A size is measured for this share of the time, but no longer than so many seconds and steps; all sizes together, with
# what it takes to build them, for no more than the second share.
_MEASURE_SHARE, _MEASURE_SECONDS, _MEASURE_STEPS = 0.002, 2.0, 8
_MEASURE_SHARE_OF_ALL = 0.04
# What a run may take of a GPU's memory beyond the steps that were measured: dropout, evaluations, an average.
_MORE_MEMORY = 1.25
# Beside each evaluation: a sample of text, and a checkpoint if it was the best.
_SECONDS_PER_EVALUATION = 2.0

TABLE_HEAD = "size        parameters  tokens/s  epochs  expected loss above the best"


@dataclass(frozen=True)
class Sizing:
    """What was chosen, and why.

    Attributes:
        found: the sizes that were measured.
        chosen: one of them.
        task: what there was to choose for.
        choices: options and their values that were not stated.
    """

    found: list[Candidate]
    chosen: Candidate
    task: Task
    choices: dict[str, Any]

    def lines(self, hours: float) -> list[str]:
        """What was chosen and why, for the user."""
        chosen, text = self.chosen, self.task.text_tokens
        time_used = duration(self.task.seconds_for(chosen.tokens, chosen.measured.tokens_per_second))
        lines = [
            f"size: {_describe(chosen)} will train for {chosen.epochs:.1f} epochs of {text:,} tokens, in {time_used} "
            f"of {duration(hours * 3600)}"
        ]
        place = self.found.index(chosen)
        for other in [*self.found[max(place - 1, 0) : place], *self.found[place + 1 : place + 2]]:
            judgement = f"its loss is expected to be {other.loss - chosen.loss:.2f} higher"
            lines.append(f"size: {_describe(other)} would train for {other.epochs:.1f} epochs; {judgement}")
        lines.append("chosen: " + " ".join(f"--{name} {_plain(value)}" for name, value in self.choices.items()))
        return lines

    def record(self) -> dict[str, Any]:
        """What was measured and chosen, for the record of the run."""
        return {
            "chosen": _name(self.chosen.size),
            "text_tokens": self.task.text_tokens,
            "candidates": [
                {
                    "size": _name(each.size),
                    "parameters": each.measured.parameters,
                    "tokens_per_second": round(each.measured.tokens_per_second, 1),
                    "tokens": round(each.tokens),
                    "loss": round(each.loss, 4),
                }
                for each in self.found
            ],
        }

    def table(self) -> list[str]:
        """The sizes that were measured, a line each."""
        rows = [TABLE_HEAD]
        for each in self.found:
            parameters, speed = each.measured.parameters / 1e6, each.measured.tokens_per_second
            mark = "  <- chosen" if each is self.chosen else ""
            above = each.loss - self.chosen.loss
            rows.append(
                f"{each.size!s:<10}  {parameters:>8.1f}M  {speed:>8,.0f}  {each.epochs:>6.1f}  {above:.3f}{mark}"
            )
        return rows


def _name(size: Size) -> str:
    return f"{size.d_model}x{size.num_layers}"


def _describe(candidate: Candidate) -> str:
    size, measured = candidate.size, candidate.measured
    layers = f"{size.num_layers} layer{'s' * (size.num_layers != 1)}"
    parameters, speed = f"{measured.parameters / 1e6:.1f}M parameters", f"{measured.tokens_per_second:,.0f} tokens/s"
    return f"width {size.d_model} with {layers} ({parameters}, {speed})"


def _plain(value: Any) -> str:
    value = getattr(value, "value", value)
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


class Chooser:
    """Fills the options of a run that were not stated.

    Args:
        run: whose options are changed.

    Attributes:
        choices: what was chosen so far.
    """

    def __init__(self, run: Run):
        self.run = run
        self.choices: dict[str, Any] = {}

    def is_stated(self, name: str) -> bool:
        """Whether an option was typed, stands in a config file, or was set in Python to what is no default."""
        if name in self.run.given:
            return True
        owner = self._owner(name)
        return not self.run.given and getattr(owner, name) != default_value(type(owner), name)

    def set(self, **values: Any) -> None:
        """Choose values for options, but for those that are stated; what the values exclude is still refused."""
        for name, value in values.items():
            if not self.is_stated(name):
                self.choices[name] = value
                setattr(self._owner(name), name, value)

    def settle(self) -> None:
        """Check model and data as if all options had been typed."""
        self.run.model_args = dataclasses.replace(self.run.model_args)
        self.run.data_args = dataclasses.replace(self.run.data_args)

    def finish(self) -> None:
        """Forget the size, which is done with, and check all options as if they had been typed."""
        self.run.model_args.size = None
        self.settle()
        self.run.args.check_schedule()
        check_acting(self.run.args, [name for name, layer in self.run.given.items() if layer == "command line"])

    def _owner(self, name: str) -> ModelArguments | DataArguments | GPT2HFTrainingArguments:
        owners = (self.run.model_args, self.run.data_args, self.run.args)
        return next(owner for owner in owners if name in type(owner).__dataclass_fields__)


def is_wanted(run: Run) -> bool:
    """Whether a size is to be chosen, after what cannot be combined with it is refused.

    Raises:
        UserError: if the run has no time limit, or there is nothing to choose or to count.
    """
    if run.model_args.size is None:
        return False
    for name, value, why in (
        ("model_name_or_path", run.model_args.model_name_or_path, "which fixes the size"),
        ("streaming", run.data_args.streaming, "whose token count is unknown"),
        ("distill_from", run.args.distill_from, "whose cost is not measured"),
    ):
        if value:
            raise UserError(f"--size auto cannot be combined with --{name}, {why}; leave one of them out")
    if run.args.max_training_hours is None:
        raise UserError("--size auto needs a time: give --max_training_hours, such as 0.5 for half an hour")
    return True


def settle_text(chooser: Chooser) -> None:
    """Choose how the text is cut, before it is read.

    Raises:
        UserError: if no size can have the stated heads.
    """
    run = chooser.run
    _sizes(chooser)  # refuses before much is read
    on_cpu = run.args.device.type == "cpu"
    chooser.set(sequence_mode="blocks", max_length=_BLOCK if on_cpu else _BLOCK_OF_ACCELERATOR)
    if run.data_args.sequence_mode == "blocks" and run.args.train_sampling_strategy == "random":
        chooser.set(shift_blocks=True)
    chooser.settle()


def settle_size(chooser: Chooser, tokenizer: PreTrainedTokenizerBase, data: LoadedData) -> Sizing:
    """Choose everything else.

    Raises:
        UserError: if text, time or memory are too small for any size.
    """
    args = chooser.run.args
    samples = data.samples["train"]
    assert isinstance(samples, Samples) and args.max_training_hours is not None
    text_tokens = int(samples.epoch_lengths.sum(dtype=np.int64))
    if text_tokens < _LEAST_TOKENS:
        raise UserError(
            f"--size auto: the training text has {text_tokens:,} tokens, and no size is known to suit fewer than "
            f"{_LEAST_TOKENS:,}; give more text, or leave --size out and state --d_model and --num_layers"
        )
    _settle_steps(chooser)
    meter = _Meter(chooser, tokenizer, data)
    report = report_seconds(chooser.run)  # before sizes are tried, which takes its own time

    def task_left() -> Task:
        return _task(chooser, text_tokens, data, report)

    # The task too, which each process would reckon by a clock of its own: all must evaluate and end at the same steps.
    with chooser.run.watch.measure("sizing"):
        found, task = distributed.decided_by_first(lambda: (_search(chooser, meter, task_left), task_left()))
    chosen = best(found)
    _settle_recipe(chooser, chosen, task)
    return Sizing(found, chosen, task, chooser.choices)


def _settle_steps(chooser: Chooser) -> None:
    """What decides how fast a size trains."""
    args, on_cpu = chooser.run.args, chooser.run.args.device.type == "cpu"
    sizes = ("per_device_train_batch_size", "global_batch_size", "gradient_accumulation_steps")
    if not any(chooser.is_stated(name) for name in sizes):
        tokens = _TOKENS_PER_STEP if on_cpu else _TOKENS_PER_STEP_OF_ACCELERATOR
        length = chooser.run.model_args.max_length
        chooser.set(per_device_train_batch_size=max(tokens // (length * args.world_size), 1))
    chooser.set(per_device_eval_batch_size=2 * args.train_batch_size)
    if not args.wants_fsdp:  # which Muon cannot be combined with
        chooser.set(optim=MUON)
    chooser.set(tie_unused_tokens=True)
    if on_cpu and chooser.run.model_args.max_length <= 256:
        chooser.set(attn_implementation="eager")  # faster than torch's kernel for blocks this short


def _search(chooser: Chooser, meter: "_Meter", task_left: Callable[[], Task]) -> list[Candidate]:
    found = candidates(_sizes(chooser), meter.measure, task_left)
    if found:
        return found
    if meter.smallest is None:
        raise UserError(
            f"--size auto: the memory is too small for the smallest size{meter.shortage}; use a smaller --batch_size "
            "or --max_length"
        )
    task = task_left()
    needed = task.seconds_for(MIN_STEPS * task.tokens_per_step, meter.smallest.tokens_per_second) - task.seconds
    hours = chooser.run.args.max_training_hours
    assert hours is not None
    stated = chooser.is_stated("d_model") and chooser.is_stated("num_layers")
    what = "this size" if stated else "even the smallest size"
    enough = math.ceil(1.1 * (hours * 3600 + needed) / 36) / 100
    raise UserError(
        f"--size auto: in {duration(hours * 3600)} {what} makes fewer than {MIN_STEPS} steps beside start and "
        f"evaluations; the shortest that makes sense here is --max_training_hours {enough:g}"
    )


def _sizes(chooser: Chooser) -> list[Size]:
    """The ladder, with what is stated in its place.

    Raises:
        UserError: if the stated heads divide none of the widths.
    """
    model = chooser.run.model_args
    width = model.d_model if chooser.is_stated("d_model") else None
    layers = model.num_layers if chooser.is_stated("num_layers") else None
    if width is not None:
        dataclasses.replace(model, size=None)  # refuses heads that do not divide it
    heads = model.num_heads or 1
    sizes = {Size(width or size.d_model, layers or size.num_layers) for size in LADDER}
    fitting = sorted(size for size in sizes if size.d_model % heads == 0)
    if not fitting:
        widths = ", ".join(str(each) for each in sorted({size.d_model for size in LADDER}))
        raise UserError(
            f"--num_heads {heads} divides none of the widths of --size auto ({widths}); use another number, or state "
            "--d_model as well"
        )
    return fitting


def _task(chooser: Chooser, text_tokens: int, data: LoadedData, report: float) -> Task:
    """What is left to do from now on; the report at the end takes `report` seconds."""
    run, args = chooser.run, chooser.run.args
    assert args.max_training_hours is not None
    tokens = {split: _scored(data, split) for split in ("validation", "test")}
    evaluates = args.eval_strategy != IntervalStrategy.NO
    per_step = round(args.samples_per_step * _mean_length(data))
    most = args.num_train_epochs if chooser.is_stated("num_train_epochs") else RULE.most_epochs
    if args.max_steps > 0:
        most = min(most, args.max_steps * per_step / text_tokens)
    return Task(
        text_tokens=text_tokens,
        validation_tokens=tokens["validation"] if evaluates else 0,
        test_tokens=tokens["test"],
        seconds=args.max_training_hours * 3600 - run.watch.elapsed - with_margin(report),
        most_evaluations=_MOST_EVALUATIONS,
        seconds_per_evaluation=_SECONDS_PER_EVALUATION,
        tokens_per_step=per_step,
        most_epochs=most,
    )


def _mean_length(data: LoadedData) -> float:
    """Scored tokens of a training sample."""
    samples = data.samples["train"]
    assert isinstance(samples, Samples)
    return float(samples.epoch_lengths.mean())


def _scored(data: LoadedData, split: str) -> int:
    samples = data.samples.get(split)
    return int(samples.lengths.sum(dtype=np.int64)) if isinstance(samples, Samples) else 0


def _settle_recipe(chooser: Chooser, chosen: Candidate, task: Task) -> None:
    """What follows from the size and the tokens that it will train on."""
    args = chooser.run.args
    tokens = min(chosen.tokens, task.tokens_in_time(chosen.measured.tokens_per_second))  # other sizes took time since
    steps = max(round(tokens / task.tokens_per_step), 1)
    chooser.set(d_model=chosen.size.d_model, num_layers=chosen.size.num_layers)
    rate = _RATE * math.sqrt(min(_WIDEST_TRIED / chosen.size.d_model, 1.0))
    chooser.set(learning_rate=rate if args.uses_muon else rate / 5)
    decay = LEAST_DECAY
    if args.uses_muon:
        decay = decay_for(
            chosen.epochs, task.text_tokens / task.tokens_per_step, args.muon_learning_rate or args.learning_rate
        )
    chooser.set(weight_decay=decay, dropout=dropout_for(chosen.epochs), warmup_steps=min(100, max(steps // 10, 1)))
    if args.lr_scheduler_type in DECAYS_BY_TIME and not args.lr_scheduler_kwargs:  # which none by time has
        chooser.set(schedule_by_time=True)
    worn_out = chosen.epochs >= 0.99 * task.most_epochs
    if worn_out or args.schedule_by_time:
        # Time ends the run, unless repeating stops helping before. Half as many epochs again: no speed is quite even.
        chooser.set(num_train_epochs=float(math.ceil(task.most_epochs if worn_out else 1.5 * chosen.epochs + 1)))
    elif not chooser.is_stated("num_train_epochs"):  # the learning rate falls by steps; no more than fit
        chooser.set(max_steps=steps)
    evaluations = task.evaluations(chosen.measured.tokens_per_second)
    if args.eval_strategy == IntervalStrategy.STEPS:
        chooser.set(eval_steps=max(steps // evaluations, 1))
    chooser.set(logging_steps=max(min(steps // _LOGS, 100), 1))
    knows_best = args.eval_strategy != IntervalStrategy.NO and args.metric_for_best_model is not None
    if knows_best and not chooser.is_stated("save_steps"):
        chooser.set(save_strategy=SaveStrategy.BEST)  # not after each of many short epochs
    chooser.finish()


class _Meter:
    """Trains sizes for a moment."""

    def __init__(self, chooser: Chooser, tokenizer: PreTrainedTokenizerBase, data: LoadedData):
        self.chooser, self.tokenizer, self.data = chooser, tokenizer, data
        self.smallest: Measured | None = None
        self.shortage = ""  # of memory, in words, where it is known without a trial
        self._began = self.chooser.run.watch.elapsed

    def measure(self, size: Size) -> Measured | None:
        """Parameters and speed of a size; `None` if the memory is too small for it, or enough time was spent."""
        run = self.chooser.run
        assert run.args.max_training_hours is not None
        budget = run.args.max_training_hours * 3600
        if self.smallest is not None and run.watch.elapsed - self._began > _MEASURE_SHARE_OF_ALL * budget:
            return None
        model_args = dataclasses.replace(
            run.model_args, d_model=size.d_model, num_layers=size.num_layers, dropout=self._dropout(), size=None
        )
        args = run.args
        model = build_model(model_args, self.tokenizer)
        tied = tie_unused_tokens(model, self.tokenizer, self.data) if model_args.tie_unused_tokens else 0
        samples = self.data.samples["train"]
        if args.device.type == "cpu":  # where the system would kill the process
            batches = probe.first_epoch(args, samples, self.data.collator, model)
            needed, there = probe.generous_peak_bytes(args, model, batches), device_memory(args.device)
            if needed > there:
                self.shortage = f" (it may need {needed / 2**30:.1f} GiB, and {there / 2**30:.1f} GiB are free)"
                return None
        parameters = model.num_parameters() - tied * size.d_model
        try:
            most = min(_MEASURE_SHARE * budget, _MEASURE_SECONDS)
            check = functools.partial(check_training, run)
            seconds = probe.quick_step_seconds(args, model, self.data, _MEASURE_STEPS, most, check)
            peak = used_memory(args.device)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            return None
        finally:
            del model
            free_unused(args.device)
        if args.device.type == "cuda" and not _leaves_room(peak, device_memory(args.device)):
            return None
        tokens = args.samples_per_step * _mean_length(self.data)
        measured = Measured(parameters, tokens / seconds)
        self.smallest = self.smallest or measured
        return measured

    def _dropout(self) -> float:
        """The stated one; otherwise none, which is what short runs have."""
        return self.chooser.run.model_args.dropout if self.chooser.is_stated("dropout") else 0.0


def _leaves_room(peak: int, memory: int) -> bool:
    """Whether a run fits into the memory of a GPU whose measured steps take `peak`; both in bytes."""
    return peak * _MORE_MEMORY <= memory


def restore(chooser: Chooser, checkpoint: Path) -> None:
    """Take over what was chosen when the run began; what is stated now stays, and is compared with it later."""
    saved = read_trained_config(str(checkpoint))
    values = {name: saved[name] for name in CHOSEN_BY_SIZE if name in saved}
    for name, kind in (("save_strategy", SaveStrategy), ("eval_strategy", IntervalStrategy)):
        if name in values:
            values[name] = kind(values[name])
    chooser.set(**values)
    chooser.run.args.divide_global_batch()  # among the devices that there are now
    chooser.finish()
