"""One TensorBoard curve for a run, however often it is resumed, under tags that a person finds.

train/…  loss, perplexity, learning_rate, grad_norm, epoch     at each log
eval/…   loss, perplexity                                      at each evaluation; test/… at the end
speed/…  tokens_per_second, mfu, memory_gib, evaluation_seconds
curves/… loss, perplexity: training and validation in one chart. They are two runs, NAME and NAME/validation, that have
         the same tag, which gives each its colour.
texts    sample at each evaluation, config at each start
layout   "Custom Scalars": the two charts again, as margin charts, the one kind that TensorBoard never smooths

Smoothing takes a mean over the last points. It suits a training loss of many logs, whose noise it hides. A curve of
five falling points it draws too high: with 0.6, the default, by what the curve has fallen in one or two points. To
write a point several times is no remedy: TensorBoard's loader keeps one point a step.
"""

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import scalar
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import rewrite_logs
from transformers.trainer_callback import ExportableState

from ...checkpoints.event_files import (
    EVENT_FILE_SUFFIX,
    RUNS_FOLDER,
    VALIDATION_FOLDER,
    event_files,
    event_folder_name,
)

_OWN_TAGS = {
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "memory_gib": "speed/memory_gib",
    "eval_runtime": "speed/evaluation_seconds",
}
# The clock that TensorBoard has itself, and what never changes: no curves, only clutter.
_NO_CURVE_ENDINGS = ("hours", "_tokens", "_per_second", "_runtime", "_preparation_time")
# A margin chart takes its middle and both its margins from a tag each; these margins have no width.
_LAYOUT = {
    "training and validation": {
        "loss": ["Margin", ["curves/loss"] * 3],
        "perplexity": ["Margin", ["curves/perplexity"] * 3],
    }
}
_DESCRIPTIONS = {
    "curves/loss": "Nats per token. Of the run NAME: train/loss, with teachers train/cross_entropy. "
    "Of the run NAME/validation: eval/loss.",
    "curves/perplexity": "exp(curves/loss).",
    "train/loss": "Nats per token, the mean over the steps since the last log, dropout on.",
    "train/cross_entropy": "Nats per token of the labels alone, where the loss has a part of teachers.",
    "train/perplexity": "exp(train/loss); with teachers exp(train/cross_entropy); none with label smoothing.",
    "train/learning_rate": "Of the step that is logged.",
    "train/grad_norm": "Norm of the gradient of the step that is logged, before clipping.",
    "train/epoch": "Passes over the training data.",
    "train/loss_spike": "Nats above the last ordinary log; a point only where the loss jumps.",
    "eval/loss": "Nats per token: the sum over all scored tokens of the split, over their number.",
    "eval/perplexity": "exp(eval/loss).",
    "test/loss": "Nats per token of the best model on the test split.",
    "test/perplexity": "exp(test/loss).",
    "speed/tokens_per_second": "Trained tokens of all devices; evaluations and checkpoints are not counted.",
    "speed/mfu": "Model FLOP/s utilization (Chowdhery et al. 2022, appendix B): share of the devices' dense peak.",
    "speed/memory_gib": "GPU: the most that tensors have taken. CPU: what the process holds.",
    "speed/evaluation_seconds": "Time of one evaluation.",
}
# Logged numbers that also go to the charts of both.
_TRAINING_CURVES = {"loss": "curves/loss", "perplexity": "curves/perplexity"}
_VALIDATION_CURVES = {"eval_loss": "curves/loss", "eval_perplexity": "curves/perplexity"}


# What the disk has refused is tried again after so long.
_RETRY_SECONDS = 60.0


class ContinuousTensorBoardCallback(TensorBoardCallback, ExportableState):
    """Writes to `output_dir/runs/NAME`, not to a new folder per start; NAME is `run_name`, or that of the folder.

    Steps that an interrupted run logged after its last checkpoint are purged when they are run again. What the disk
    refuses is missing in the curves, and ends no training.

    Args:
        texts: JSON files (`name: path`) to be shown as texts, such as the resolved config.
        keeps_earlier: a training that begins anew where there are curves of an earlier one writes to `NAME-2`, and so
            on, as do evaluations before it. Otherwise it takes their place.
    """

    tb_writer: SummaryWriter | None
    logging_dir: str | None

    def __init__(self, texts: Mapping[str, Path] | None = None, keeps_earlier: bool = False):
        super().__init__()
        self.texts = texts or {}
        self.keeps_earlier = keeps_earlier
        self.number = 1  # of the training among those of its name; a checkpoint has it
        self._folder_of_all = self.logging_dir  # of the environment: TENSORBOARD_LOGGING_DIR
        self._validation_writer: SummaryWriter | None = None
        self._purge_steps: dict[str, int] = {}  # of each folder, until something is written there
        self._trial = ""
        self._has_trained = False
        self._refused_at: float | None = None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Lose what cannot be written; after a while it is tried again, with new files."""
        try:
            yield
        except OSError as error:
            # A writer's thread has died of it, and would say so at each further call.
            for writer in (self.tb_writer, self._validation_writer):
                with contextlib.suppress(OSError):
                    if writer is not None:
                        writer.file_writer.close()  # which ends its thread, whatever the disk says
            self.tb_writer = self._validation_writer = None
            is_first, self._refused_at = self._refused_at is None, time.monotonic()
            if is_first:
                print(
                    f"warning: curves cannot be written to {self.logging_dir} ({error}); training continues, and "
                    "the curves continue when there is room again",
                    file=sys.stderr,
                )

    @property
    def _waits(self) -> bool:
        """Whether the disk has just refused something; each attempt prints a traceback of TensorBoard's thread."""
        return self._refused_at is not None and time.monotonic() - self._refused_at < _RETRY_SECONDS

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Known from the beginning, because a run with nothing left to train logs its test score all the same.
        self._first_folder = self._first_folder_of(args)
        self._free_number = self._next_free() if self.keeps_earlier else 1
        self.logging_dir = self._folder_of(self._free_number)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"number": self.number}}

    def _first_folder_of(self, args: TrainingArguments) -> str:
        above = self._folder_of_all or os.path.join(str(args.output_dir), RUNS_FOLDER)
        return os.path.join(above, event_folder_name(str(args.output_dir), args.run_name))

    def _next_free(self) -> int:
        return next(each for each in itertools.count(1) if not event_files(Path(self._folder_of(each))))

    def _folder_of(self, number: int) -> str:
        return self._first_folder if number == 1 else f"{self._first_folder}-{number}"

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self._first_folder_of(args) != self._first_folder:  # output_dir or run_name were changed
            self.close()
            self.on_init_end(args, state, control)
        # Evaluations before the first training belong to its curve, later ones to that of the training before.
        free = self._free_number if self.tb_writer is not None and not self._has_trained else None
        self._has_trained = True
        self.close()
        self._purge_steps = dict.fromkeys(("", VALIDATION_FOLDER), state.global_step + 1)
        self._trial = state.trial_name or ""  # a search has a curve per trial, in folders of their own
        if self.keeps_earlier:
            if state.global_step == 0 and not self._trial:
                self.number = free or self._next_free()
            self.logging_dir = self._folder_of(self.number)
        texts = {Path(name).stem: path.read_text(encoding="utf-8") for name, path in self.texts.items()}
        with self._writing():
            self._writer().add_custom_scalars(_LAYOUT)
            for name, text in texts.items():
                self._writer().add_text(name, _as_code(text), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or self._waits:
            return
        with self._writing():
            self._write_logs(logs, state.global_step)

    def _write_logs(self, logs: dict[str, Any], step: int) -> None:
        if "total_flos" in logs:
            return  # the Trainer's closing summary: one number a run
        for name, value in logs.items():
            if not isinstance(value, int | float):
                continue
            if (tag := tag_of(name)) is not None:
                _write(self._writer(), tag, value, step)
            if name in _TRAINING_CURVES:
                comparable = logs.get("cross_entropy", value) if name == "loss" else value
                _write(self._writer(), _TRAINING_CURVES[name], comparable, step)
            if name in _VALIDATION_CURVES:
                _write(self._writer_of_validation(), _VALIDATION_CURVES[name], value, step)
        self._writer().flush()
        self._purge_steps.pop("", None)
        if _VALIDATION_CURVES.keys() & logs.keys():
            self._writer_of_validation().flush()
            self._purge_steps.pop(VALIDATION_FOLDER, None)

    def on_sample(self, state: TrainerState, text: str) -> None:
        """Show a text that the model has just written."""
        if self._waits:
            return
        with self._writing():
            self._writer().add_text("sample", _as_code(text), state.global_step)
            self._writer().flush()

    def close(self) -> None:
        """Finish writing; what is logged later gets a file of its own."""
        with self._writing():
            for writer in (self.tb_writer, self._validation_writer):
                if writer is not None:
                    writer.close()
        self.tb_writer = self._validation_writer = None
        self._purge_steps = {}
        self._trial = ""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def _writer(self) -> SummaryWriter:
        if self.tb_writer is None:
            self.tb_writer = self._new_writer()
        return self.tb_writer

    def _writer_of_validation(self) -> SummaryWriter:
        if self._validation_writer is None:
            self._validation_writer = self._new_writer(VALIDATION_FOLDER)
        return self._validation_writer

    def _new_writer(self, folder: str = "") -> SummaryWriter:
        path = Path(str(self.logging_dir), self._trial, folder)
        return SummaryWriter(str(path), purge_step=self._purge_steps.get(folder), filename_suffix=EVENT_FILE_SUFFIX)


def tag_of(name: str) -> str | None:
    """The tag under which a logged number is found; `None` for what is no curve."""
    if name in _OWN_TAGS:
        return _OWN_TAGS[name]
    if name.endswith(_NO_CURVE_ENDINGS):
        return None
    (tag,) = rewrite_logs({name: 0.0})
    return str(tag)


def _write(writer: SummaryWriter, tag: str, value: float, step: int) -> None:
    summary = scalar(tag, value)
    summary.value[0].metadata.summary_description = _DESCRIPTIONS.get(tag, "")
    writer.file_writer.add_summary(summary, step)


def _as_code(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
