"""One TensorBoard curve for a run, however often it is resumed."""

import os
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback

RUNS_FOLDER = "runs"


class ContinuousTensorBoardCallback(TensorBoardCallback):
    """Writes to `output_dir/runs` itself, not to a new folder per start.

    Steps that an interrupted run logged after its last checkpoint are purged when they are run again.
    """

    tb_writer: SummaryWriter | None
    logging_dir: str | None

    def on_init_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Known from the beginning, because a run with nothing left to train logs its test score all the same.
        self.logging_dir = self.logging_dir or os.path.join(str(args.output_dir), RUNS_FOLDER)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and self.tb_writer is None:
            self.tb_writer = SummaryWriter(log_dir=self.logging_dir, purge_step=state.global_step + 1)
        super().on_train_begin(args, state, control, **kwargs)
