"""What a person watching the terminal is told."""

import sys
from collections.abc import Iterator
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback as TransformersProgressCallback
from transformers.trainer_utils import has_length
from transformers.utils import is_in_notebook

from ...runtime.stopwatch import Stopwatch, duration
from .cadence import ends_epoch

_FORMATS = {
    "loss": "loss {:.4f}",
    "cross_entropy": "cross-entropy {:.4f}",
    "perplexity": "perplexity {:.2f}",
    "eval_loss": "validation loss {:.4f}",
    "eval_perplexity": "validation perplexity {:.2f}",
    "learning_rate": "learning rate {:.2e}",
    "grad_norm": "gradient norm {:.2f}",
    "loss_spike": "LOSS SPIKE of {:.2f} above the last ordinary log",
    "tokens_per_second": "{:,.0f} tokens/s",
    "mfu": "{:.0%} of the device's peak",
    "memory_gib": "{:.1f} GiB",
    "eval_tokens": "{:,.0f} tokens",
}
# Numbers of a log that a line leaves out: times of an evaluation, and what other lines say.
_TIMES = ("_runtime", "_per_second", "_preparation_time")
_ELSEWHERE = ("epoch", "hours", "session_hours", "num_input_tokens_seen")
# What the bar keeps showing between two logs.
_ON_BAR = ("loss", "perplexity", "tokens_per_second", "mfu", "memory_gib")
# The same for a narrow terminal, where what remains of the line must be enough for the budget.
_SHORT = {"loss": "loss {:.3f}", "tokens_per_second": "{} tok/s"}
_LEFT_OUT_FIRST = ("mfu", "memory_gib", "perplexity")
_COUNTS = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
_BAR = "{percentage:3.0f}%|{bar:10}| " + _COUNTS
_NARROW_BARS = (_BAR, "{percentage:3.0f}% " + _COUNTS, _COUNTS)
_SAMPLE_WIDTH = 200


class ProgressCallback(TransformersProgressCallback):
    """A progress bar on a terminal and in a notebook; everywhere a line per log, and the hours after each epoch."""

    def __init__(self, watch: Stopwatch, max_hours: float | None):
        super().__init__()
        self.watch = watch
        self.max_hours = max_hours
        self.shows_bar = False
        self._began: tuple[int, float] | None = None  # first step and time of this invocation
        self._latest: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._began = state.global_step, self.watch.elapsed
        self.shows_bar = (
            (sys.stderr.isatty() or is_in_notebook()) and not args.disable_tqdm and state.is_world_process_zero
        )
        if self.shows_bar:
            self.current_step = state.global_step
            self.training_bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                dynamic_ncols=True,
                bar_format=_BAR,
                smoothing=0,  # evaluations count in what remains as they did in what has gone by
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.shows_bar:
            self._label_bar(state.global_step)
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if self.shows_bar:
            super().on_prediction_step(args, state, control, eval_dataloader=eval_dataloader, **kwargs)
            if self.prediction_bar is not None:
                self.prediction_bar.set_description("evaluating", refresh=False)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "total_flos" in logs:
            return  # the Trainer's closing summary
        parts = [text.format(logs[name]) for name, text in _FORMATS.items() if name in logs]
        parts += [f"{_spoken(name)} {value:.4g}" for name, value in logs.items() if _is_further(name, value)]
        if not state.is_world_process_zero or not parts:
            return
        if "loss" in logs:
            self._latest = {name: logs[name] for name in _ON_BAR if name in logs}
            if self.shows_bar:
                self._label_bar(state.global_step)
            else:  # the bar has the clock
                parts += self._clock(state)
        self._write(f"step {state.global_step:,}/{state.max_steps:,}: " + ", ".join(parts))

    def on_sample(self, state: TrainerState, text: str) -> None:
        """Show the beginning of a text that the model has just written."""
        line = " ".join(text.split())
        self._write(f"sample: {line[:_SAMPLE_WIDTH]}{'…' if len(line) > _SAMPLE_WIDTH else ''}")

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and has_length(kwargs["train_dataloader"]) and ends_epoch(state):
            elapsed = self.watch.elapsed / 3600
            remaining = "unlimited" if self.max_hours is None else f"{max(self.max_hours - elapsed, 0):.2f}h"
            self._write(f"epoch {round(state.epoch)}: Elapsed: {elapsed:.2f}h | Remaining: {remaining}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.shows_bar:
            super().on_train_end(args, state, control, **kwargs)

    def _label_bar(self, step: int) -> None:
        """Show as much as the terminal is wide; loss, speed, times and budget always."""
        bar = self.training_bar
        if bar is None:
            return
        width = bar.format_dict["ncols"]
        for bar.bar_format, label in self._labels():
            bar.set_postfix_str(label, refresh=False)
            if width is None or len(bar.format_meter(**{**bar.format_dict, "n": step, "ncols": None})) <= width:
                return

    def _labels(self) -> Iterator[tuple[str, str]]:
        """Forms of the bar with what stands behind it, the longest first."""
        budget = self._budget_left()
        for number in range(len(_LEFT_OUT_FIRST) + 1):
            names = [name for name in self._latest if name not in _LEFT_OUT_FIRST[:number]]
            yield _BAR, ", ".join([*(_FORMATS[name].format(self._latest[name]) for name in names), *budget])
        latest = {**self._latest}
        if "tokens_per_second" in latest:
            latest["tokens_per_second"] = tqdm.format_sizeof(latest["tokens_per_second"])
        short = [_SHORT[name].format(latest[name]) for name in _SHORT if name in latest]
        if self.max_hours is not None:
            short.append(f"{tqdm.format_interval(self._seconds_left(self.max_hours))} left")
        for form in _NARROW_BARS:
            yield form, ", ".join(short)

    def _clock(self, state: TrainerState) -> list[str]:
        """Time that has gone by, that the steps left will take at the speed so far, and that the budget has left."""
        parts = [f"{duration(self.watch.elapsed)} elapsed"]
        if self._began is not None and state.global_step > self._began[0]:
            seconds_per_step = (self.watch.elapsed - self._began[1]) / (state.global_step - self._began[0])
            parts.append(f"{duration((state.max_steps - state.global_step) * seconds_per_step)} to go")
        return parts + self._budget_left()

    def _budget_left(self) -> list[str]:
        if self.max_hours is None:
            return []
        return [f"budget {duration(self._seconds_left(self.max_hours))} left"]

    def _seconds_left(self, max_hours: float) -> float:
        return max(max_hours * 3600 - self.watch.elapsed, 0)

    def _write(self, line: str) -> None:
        if self.training_bar is not None:
            self.training_bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)


def _is_further(name: str, value: Any) -> bool:
    """Whether a number is of one of several splits, or the user's own: computed as a metric, or logged."""
    said = name in _FORMATS or name in _ELSEWHERE or name.startswith("test_") or name.endswith(_TIMES)
    return isinstance(value, int | float) and not said


def _spoken(name: str) -> str:
    """`eval_news_loss` as `validation loss of news`, `eval_accuracy` as `validation accuracy`; others as they are."""
    if not name.startswith("eval_"):
        return name
    *split, metric = name.removeprefix("eval_").split("_")
    of_split = bool(split) and metric in ("loss", "perplexity", "tokens")
    return f"validation {metric} of {'_'.join(split)}" if of_split else f"validation {'_'.join([*split, metric])}"
