"""Stop a run whose loss or gradient is no longer finite before the weights take part in it."""

import math
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...errors import TrainingDivergedError
from ...runtime.distributed import any_process
from ..weight_average import on_this_process

# The host asks an accelerator whether a step was bad where it reads numbers anyway: at a log, an evaluation or a
# checkpoint; and after so many steps without one. Bad steps are skipped on the device in the meantime, so nothing
# depends on this number but how many steps are lost.
_CHECK_AFTER = 500
# A loss scale this small means that every recent fp16 step overflowed.
_SMALLEST_LOSS_SCALE = 1e-3


class NonFiniteGuard(TrainerCallback):
    """Watches the gradient norm of every step.

    On a CPU the norm is read at once. On an accelerator reading it would stall the step, so the optimizer is
    told on the device to skip the update (`found_inf`, which torch's fused optimizers take, but on a Mac pass over),
    and the host reads the verdict when a log is due, before anything is saved, and at the end. With another optimizer
    the norm is read in every step. With fp16, overflows are ordinary and the loss scaler deals with them; there a run
    has diverged when the scale has shrunk to nothing.

    Raises:
        TrainingDivergedError: when a norm was not finite.
    """

    def __init__(self, deferred: bool | None = None):
        self.deferred = deferred
        self.reset()

    def reset(self) -> None:
        """Begin anew, as for another call of `train()`."""
        self._bad_step: torch.Tensor | None = None  # the first bad step, −1 if there is none
        self._steps_since_check = 0

    def observe(self, grad_norm: torch.Tensor | float, optimizer: Any, step: int, uses_scaler: bool) -> None:
        """Look at the gradient norm of the step that is about to update the weights."""
        if uses_scaler:
            return
        norm = torch.as_tensor(grad_norm)
        inner = getattr(optimizer, "optimizer", optimizer)
        can_defer = bool(getattr(inner, "_step_supports_amp_scaling", False))
        deferred = self.deferred if self.deferred is not None else norm.device.type not in ("cpu", "mps")
        if not (deferred and can_defer):
            if not math.isfinite(norm.item()):
                raise diverged(step, norm.item())
            return
        bad = ~torch.isfinite(norm)
        inner.found_inf = bad.to(torch.float32)
        if self._bad_step is None:
            self._bad_step = torch.full((), -1, dtype=torch.int64, device=norm.device)
        first = bad & (self._bad_step < 0)
        self._bad_step = torch.where(first, torch.full_like(self._bad_step, step), self._bad_step)

    def check(self) -> None:
        """Ask the device whether a step was bad since the run began."""
        self._steps_since_check = 0
        if self._bad_step is not None and (step := int(self._bad_step.item())) >= 0:
            raise diverged(step, math.nan)

    def check_weights(self, model: nn.Module, step: int) -> None:
        """Raise if a weight is not finite, as a learning rate beyond reason can make it in one step."""
        trained = [p for p in model.parameters() if p.requires_grad]  # quantised ones, which are not, may not be asked
        shards = [on_this_process(p) for p in trained]
        flags: dict[torch.device, list[torch.Tensor]] = {}
        for shard in shards:
            flags.setdefault(shard.device, []).append(torch.isfinite(shard).all())
        finite = all(bool(torch.stack(of_device).all()) for of_device in flags.values())
        if any_process(not finite):
            raise TrainingDivergedError(
                f"training diverged at step {step}: the weights are no longer finite and are not saved; the last "
                "checkpoint is untouched. Go on from it with a much lower --learning_rate",
                step,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self._steps_since_check += 1
        is_read = control.should_log or control.should_save or control.should_evaluate
        is_last = control.should_training_stop or state.global_step >= state.max_steps
        if is_read or is_last or self._steps_since_check >= _CHECK_AFTER:
            self.check()
        return control

    @staticmethod
    def check_scale(scale: float, step: int) -> None:
        """Raise if fp16's loss scale says that no step is finite any more."""
        if scale < _SMALLEST_LOSS_SCALE:
            raise diverged(step, math.nan)


def diverged(step: int, grad_norm: float) -> TrainingDivergedError:
    """The error for a bad step, with the usual remedies."""
    return TrainingDivergedError(
        f"training diverged at step {step}: the gradient norm is {grad_norm}; the weights were not updated and the "
        "last checkpoint is untouched. Usual remedies: a lower --learning_rate, more --warmup_steps, "
        "--gradient_clip 1.0, --precision fp32",
        step,
    )
