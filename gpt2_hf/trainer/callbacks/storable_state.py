"""See after the first step whether a checkpoint can hold what optimizer and schedule keep, not hours later."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ...checkpoints.state_files import check_storable
from ...errors import UserError


class StorableStateCallback(TrainerCallback):
    """Refuses an optimizer or a schedule whose state has objects of its own in it, such as GaLore's projections.

    Checkpoints hold numbers and tensors, never a pickle.

    Raises:
        UserError: with what to choose in its place.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._seen.clear()

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        lr_scheduler: Any = None,
        **kwargs: Any,
    ) -> None:
        """Look at each once; an optimizer has no state before its first step, which fp16 may skip."""
        if args.save_strategy == SaveStrategy.NO or args.save_only_model:
            return
        if optimizer.state:
            self._look("optimizer", optimizer)
        self._look("learning-rate schedule", lr_scheduler)

    def _look(self, name: str, keeper: Any) -> None:
        if name in self._seen:
            return
        try:
            check_storable(keeper.state_dict())
        except TypeError as error:
            raise UserError(
                f"what this {name} keeps cannot be saved ({error}); take another one, such as --optim adamw_torch "
                "with --lr_scheduler_type cosine"
            ) from error
        self._seen.add(name)
