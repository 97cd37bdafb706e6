"""A moving average of the weights in training, which is what is evaluated, shown and saved.

In: the weights after the steps. Out: their average, in the model's place while somebody asks for it, and at the end.

At every k-th step a ← b a + (1 − b) w, with b = decay^k; k is a fiftieth of the steps that the average spans, 10 at
the most, which gives the same as k = 1 for less work. At first b is smaller, n / (n + 9) at update n, from 0, so that
a young average spans a ninth of the run and not the random weights of its beginning.

Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging"; exponential, as Tarvainen
and Valpola 2017 (arXiv 1703.01780) have it. It begins as TensorFlow's ExponentialMovingAverage and timm's do.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..checkpoints.sharding import reshard
from ..errors import UserError

_UPDATES_IN_SPAN = 50
_LONGEST_INTERVAL = 10
_YOUTH = 9


class WeightAverage(TrainerCallback):
    """The moving average of the weights of a training.

    Args:
        decay: share of the average that is left after a step, in (0, 1); it spans about 1 / (1 − decay) steps.
        model: gives the model in training, without what was put around it.

    Attributes:
        num_updates: number of times that weights were added; before the first one there is no average.
    """

    def __init__(self, decay: float, model: Callable[[], nn.Module]):
        self._decay, self._model = decay, model
        self._interval = min(max(round(1 / (1 - decay) / _UPDATES_IN_SPAN), 1), _LONGEST_INTERVAL)
        self.reset()

    def reset(self) -> None:
        """Give the average up; the model keeps the weights that it has."""
        self.num_updates = 0
        self._weights: list[Tensor] = []  # of this process, those that are trained
        self._average: list[Tensor] = []
        self._in_model = 0  # how many times over the model has been asked to be the average

    def begin(self, num_updates: int = 0) -> None:
        """Take the model's weights for the average.

        Args:
            num_updates: that were made to come there, by an earlier run.

        Raises:
            UserError: if weights are in 16 bits, in which an average stands still.
        """
        reshard(self._model())
        weights = [each for each in self._model().parameters() if each.requires_grad]
        if any(each.dtype not in (torch.float32, torch.float64) for each in weights):
            raise UserError(
                "--ema_decay needs weights in fp32: in 16 bits a small change is rounded away; load the model in "
                "fp32, or leave it out"
            )
        self.num_updates = num_updates
        self._weights = [on_this_process(each) for each in weights]
        self._average = [each.clone() for each in self._weights]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin, unless a checkpoint has brought an average."""
        if not self._average:
            self.begin()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the weights of every k-th step."""
        if state.global_step % self._interval:
            return
        kept = min(self._decay**self._interval, self.num_updates / (self.num_updates + _YOUTH))
        torch.optim.swa_utils.get_ema_multi_avg_fn(kept)(self._average, self._weights, self.num_updates)
        self.num_updates += 1

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the average in the model."""
        self.settle()

    @contextlib.contextmanager
    def in_model(self) -> Iterator[None]:
        """The model has the average as its weights; afterwards, bit for bit, those in training."""
        if not self.num_updates:
            yield
            return
        if not self._in_model:
            self._exchange()
        self._in_model += 1
        try:
            yield
        finally:
            self._in_model -= 1
            if not self._in_model:
                self._exchange()

    def settle(self) -> None:
        """Leave the average in the model, for good."""
        if self.num_updates and not self._in_model:
            self._exchange()
        self.reset()

    @torch.no_grad()
    def _exchange(self) -> None:
        reshard(self._model())  # or what is whole would stay as it was
        for weight, average in zip(self._weights, self._average, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)


def average_bytes(decay: float | None, num_parameters: int) -> int:
    """What a moving average takes, in memory and in a checkpoint: the weights in fp32, once more; 0 without one."""
    return 4 * num_parameters if decay is not None else 0


def on_this_process(parameter: Tensor) -> Tensor:
    """What a process has of a parameter, which it may share with others; the same memory, without a gradient."""
    detached = parameter.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached
