"""What a person watching the terminal is told."""

import sys
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback as TransformersProgressCallback

from ..stopwatch import Stopwatch
from .cadence import ends_epoch

_FORMATS = {
    "loss": "loss {:.4f}",
    "perplexity": "perplexity {:.2f}",
    "eval_loss": "validation loss {:.4f}",
    "eval_perplexity": "validation perplexity {:.2f}",
    "learning_rate": "learning rate {:.2e}",
    "grad_norm": "gradient norm {:.2f}",
    "loss_spike": "LOSS SPIKE of {:.2f} above the last ordinary log",
    "tokens_per_second": "{:,.0f} tokens/s",
    "eval_tokens": "{:,.0f} tokens",
}


class ProgressCallback(TransformersProgressCallback):
    """A progress bar on a terminal; everywhere one plain line per log, and the hours after each epoch."""

    def __init__(self, watch: Stopwatch, max_hours: float | None):
        super().__init__()
        self.watch = watch
        self.max_hours = max_hours
        self.shows_bar = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.shows_bar = sys.stderr.isatty() and not args.disable_tqdm
        if self.shows_bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.shows_bar:
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

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        parts = [text.format(logs[name]) for name, text in _FORMATS.items() if logs and name in logs]
        if state.is_world_process_zero and parts:
            self._write(f"step {state.global_step:,}/{state.max_steps:,}: " + ", ".join(parts))

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and ends_epoch(state):
            elapsed = self.watch.elapsed / 3600
            remaining = "unlimited" if self.max_hours is None else f"{max(self.max_hours - elapsed, 0):.2f}h"
            self._write(f"epoch {round(state.epoch)}: Elapsed: {elapsed:.2f}h | Remaining: {remaining}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.shows_bar:
            super().on_train_end(args, state, control, **kwargs)

    def _write(self, line: str) -> None:
        if self.training_bar is not None:
            self.training_bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)
