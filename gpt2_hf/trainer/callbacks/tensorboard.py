"""One TensorBoard curve for a run, however often it is resumed, under tags that a person finds.

train/…  loss, perplexity, learning_rate, grad_norm, epoch     at each log
eval/…   loss, perplexity                                      at each evaluation; test/… at the end
speed/…  tokens_per_second, mfu, memory_gib, evaluation_seconds
texts    sample at each evaluation, config at each start
layout   "Custom Scalars": training and validation in one chart
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import scalar
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import rewrite_logs

from ...checkpoints.ownership import EVENT_FILE_SUFFIX, RUNS_FOLDER

_OWN_TAGS = {
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "memory_gib": "speed/memory_gib",
    "eval_runtime": "speed/evaluation_seconds",
}
# One number a run, the clock that TensorBoard has itself, and what never changes: no curves, only clutter.
_NO_CURVES = ("train_", "total_flos")
_NO_CURVE_ENDINGS = ("hours", "_tokens", "_per_second", "_runtime", "_preparation_time")
_DESCRIPTIONS = {
    "train/loss": "Nats per token, the mean over the steps since the last log, dropout on.",
    "train/cross_entropy": "Nats per token of the labels alone, where the loss has a part of teachers.",
    "train/perplexity": "exp(train/loss); with teachers exp(train/cross_entropy).",
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
_LAYOUT = {
    "training and validation": {
        "loss": ["Multiline", ["train/loss", "eval/loss"]],
        "perplexity": ["Multiline", ["train/perplexity", "eval/perplexity"]],
    }
}


class ContinuousTensorBoardCallback(TensorBoardCallback):
    """Writes to `output_dir/runs` itself, not to a new folder per start.

    Steps that an interrupted run logged after its last checkpoint are purged when they are run again.

    Args:
        texts: JSON files (`name: path`) to be shown as texts, such as the resolved config.
    """

    tb_writer: SummaryWriter | None
    logging_dir: str | None

    def __init__(self, texts: Mapping[str, Path] | None = None):
        super().__init__()
        self.texts = texts or {}

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Known from the beginning, because a run with nothing left to train logs its test score all the same.
        self.logging_dir = self.logging_dir or os.path.join(str(args.output_dir), RUNS_FOLDER)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        if self.tb_writer is None:
            folder = os.path.join(str(self.logging_dir), state.trial_name or "")  # a search has a curve per trial
            purge_step = state.global_step + 1
            self.tb_writer = SummaryWriter(folder, purge_step=purge_step, filename_suffix=EVENT_FILE_SUFFIX)
        self.tb_writer.add_custom_scalars(_LAYOUT)
        for name, path in self.texts.items():
            self.tb_writer.add_text(Path(name).stem, _as_code(path.read_text(encoding="utf-8")), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs:
            return
        writer = self._writer()
        for name, value in logs.items():
            tag = tag_of(name)
            if tag is not None and isinstance(value, int | float):
                summary = scalar(tag, value)
                summary.value[0].metadata.summary_description = _DESCRIPTIONS.get(tag, "")
                writer.file_writer.add_summary(summary, state.global_step)
        writer.flush()

    def on_sample(self, state: TrainerState, text: str) -> None:
        """Show a text that the model has just written."""
        writer = self._writer()
        writer.add_text("sample", _as_code(text), state.global_step)
        writer.flush()

    def close(self) -> None:
        """Finish writing; what is logged later gets a file of its own."""
        if self.tb_writer is not None:
            self.tb_writer.close()
            self.tb_writer = None

    def _writer(self) -> SummaryWriter:
        if self.tb_writer is None:
            self.tb_writer = SummaryWriter(log_dir=self.logging_dir, filename_suffix=EVENT_FILE_SUFFIX)
        return self.tb_writer


def tag_of(name: str) -> str | None:
    """The tag under which a logged number is found; `None` for what is no curve."""
    if name in _OWN_TAGS:
        return _OWN_TAGS[name]
    if name.startswith(_NO_CURVES) or name.endswith(_NO_CURVE_ENDINGS):
        return None
    (tag,) = rewrite_logs({name: 0.0})
    return str(tag)


def _as_code(text: str) -> str:
    """Markdown that shows a text as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
